"""The vault seals the secret parameters of jobs, so that neither the store nor a backup of it says what they are.

Its key is in a file of its own, which is made at the first start and never goes into the database. Who has that file
and a store can read what is sealed in it; who has only one of the two cannot, nor guess: what makes two requests
comparable is keyed too.
"""

import hmac
import os
import stat
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec.structs import replace

from orchestra.errors import FileProblem
from orchestra.model import Run, Secrets

NO_KEY: Final = "the conductor has not the key any more with which the job's secret parameters were sealed"

_SIZE: Final = 32
_NONCE: Final = 12
_decode = msgspec.msgpack.Decoder(dict[str, str]).decode


class Unsealable(Exception):
    """It was sealed with another key, for another score, or is damaged."""


class Vault:
    """Seals and unseals with the key in ``file``; :meth:`open` reads or makes it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._cipher: ChaCha20Poly1305
        self._comparing: bytes

    def open(self) -> bool:
        """Have the key; whether it had to be made."""
        made = not os.path.lexists(self.file)
        if made:
            _make(self.file)
        key = _read(self.file)
        self._cipher = ChaCha20Poly1305(_derived(key, b"seal"))
        self._comparing = _derived(key, b"compare")
        return made

    def seal(self, score: str, values: Mapping[str, str]) -> Secrets:
        """``values`` as a store may have them. They can be unsealed for this score alone."""
        plain = msgspec.msgpack.encode(sorted(values.items()))
        body = msgspec.msgpack.encode(dict(values))
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, body, score.encode())
        return Secrets(tuple(sorted(values)), sealed, hmac.digest(self._comparing, plain, "sha256"))

    def unseal(self, score: str, sealed: bytes) -> dict[str, str]:
        """The values again, or :class:`Unsealable`."""
        try:
            return _decode(self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], score.encode()))
        except (InvalidTag, ValueError, msgspec.DecodeError):
            raise Unsealable from None


def unsealed(vault: Vault | None, run: Run, sealed: bytes | None) -> Run:
    """``run`` with its secret parameters, or with the reason why it must be refused: it is the player's already."""
    if sealed is None:
        return run
    if vault is None:
        return replace(run, trouble=NO_KEY)
    try:
        return replace(run, secrets=vault.unseal(run.score, sealed))
    except Unsealable:
        return replace(run, trouble=NO_KEY)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"orchestra " + purpose, "sha256")


def _make(file: str) -> None:
    """Make the key, whole or not at all, and on the disk when this returns: what is sealed next needs it."""
    part = f"{file}.part"
    try:
        if os.path.lexists(part):
            os.unlink(part)  # of a start that was cut off
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(handle, os.urandom(_SIZE).hex().encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        os.rename(part, file)
        directory = os.open(os.path.dirname(file), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be made: {os.strerror(problem.errno or 0)}") from None


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(_SIZE * 2 + 2)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be read: {os.strerror(problem.errno or 0)}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise FileProblem(file=file, problem="may be read or written by others; 'chmod 600' mends that")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != _SIZE:
        raise FileProblem(file=file, problem=f"holds no key: {_SIZE * 2} hexadecimal digits were expected")
    return key
