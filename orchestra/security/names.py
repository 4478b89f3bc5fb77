"""Who somebody is: the names in a verified certificate.

Pure: it reads certificates that somebody else has verified, and opens nothing. Only dNSName entries of the subject
alternative name count; a common name is decoration, a wildcard is nobody.
"""

from typing import Final, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from orchestra.config import host_name
from orchestra.errors import WrongCertificate

Kind = TypeVar("Kind", bound=x509.ExtensionType)

_USAGE: Final = {
    Usage.CLIENT_AUTH: "clientAuth ('TLS Web Client Authentication')",
    Usage.SERVER_AUTH: "serverAuth ('TLS Web Server Authentication')",
}


def player_name(certificate: x509.Certificate) -> str:
    """The one name of a player's certificate."""
    return _only_name(certificate, "a player")


def audience_name(certificate: x509.Certificate) -> str:
    """The one name of a remote audience's certificate. Nothing in it tells it from a player's: the policy must."""
    return _only_name(certificate, "an audience")


def conductor_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names of a conductor's certificate."""
    _require_usage(certificate, Usage.SERVER_AUTH, "a conductor")
    return _names(certificate)


def describe(certificate: x509.Certificate) -> str:
    """A certificate in a few words, whatever it holds: its names (or subject) and serial number."""
    try:
        names = ", ".join(_dns_names(certificate)) or certificate.subject.rfc4514_string()
    except (ValueError, WrongCertificate):
        names = ""
    return f"{_printable(names) or 'no name'} (serial {certificate.serial_number:x})"


def issuer(item: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Who signed a certificate or a revocation list, fit for a terminal."""
    try:
        return _printable(item.issuer.rfc4514_string()) or "nobody"
    except ValueError:
        return "somebody whose name cannot be read"


def _printable(text: str) -> str:
    """Names come from strangers and go to terminals and logs."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:200])


def _only_name(certificate: x509.Certificate, whose: str) -> str:
    _require_usage(certificate, Usage.CLIENT_AUTH, whose)
    names = _names(certificate)
    if len(names) > 1:
        raise _wrong(certificate, f"it has {len(names)} names, {whose}'s must have exactly one; issue one for it alone")
    return names[0]


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    names = _dns_names(certificate)
    if not names:
        problem = (
            "it has no DNS name in its subject alternative names (a common name does not count); issue one that has"
        )
        raise _wrong(certificate, problem)
    for name in names:
        if "*" in name:
            raise _wrong(certificate, f"'{name}' is a wildcard; issue one for a full host name")
        if not _is_host_name(name):
            raise _wrong(certificate, f"'{name}' is not a lower-case host name; issue one for such a name")
    return tuple(dict.fromkeys(names))


def _is_host_name(name: str) -> bool:
    try:
        return host_name(name) == name
    except ValueError:
        return False


def _dns_names(certificate: x509.Certificate) -> list[str]:
    found = _extension(certificate, x509.SubjectAlternativeName)
    return [] if found is None else found.get_values_for_type(x509.DNSName)


def _require_usage(certificate: x509.Certificate, usage: x509.ObjectIdentifier, whose: str) -> None:
    usages = _extension(certificate, x509.ExtendedKeyUsage)
    if usages is None or usage not in usages:
        problem = f"{whose}'s needs the extended key usage {_USAGE[usage]}, and it has not; issue one that has"
        raise _wrong(certificate, problem)


def _extension(certificate: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        serial = f"serial {certificate.serial_number:x}"
        raise WrongCertificate(whose=serial, problem="its extensions cannot be read; issue a sound one") from None


def _wrong(certificate: x509.Certificate, problem: str) -> WrongCertificate:
    return WrongCertificate(whose=describe(certificate), problem=problem)
