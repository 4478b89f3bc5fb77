"""``orchestra ca``: the commands of our own certificate authority."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from orchestra.security import authority
from orchestra.security.authority import Authority, Entry, Issued, Kind, Overview

DIRECTORY = "/etc/orchestra/ca"
_SOON = timedelta(days=30)


_directory = click.option(
    "--dir", "directory", default=DIRECTORY, show_default=True, metavar="DIR", help="Where the authority lives."
)
_out = click.option("--out", metavar="DIR", help="Where the new files go.  [default: 'issued' in --dir]")
_days = click.option("--days", type=int, default=authority.DAYS, show_default=True, help="How long it is valid.")


@click.group()
def ca() -> None:
    """Our own certificate authority, for fleets that have none.

    Keep its directory on a machine that few people reach, and back it up: whoever has ca.key can be anybody.
    """


@ca.command("init")
@_directory
@click.option("--name", default="", metavar="NAME", help="Its name, shown in messages.  [default: a random one]")
@click.option("--days", type=int, default=authority.CA_DAYS, show_default=True, help="How long it is valid.")
def init_command(directory: str, name: str, days: int) -> None:
    """Make a certificate authority."""
    made = authority.init(directory, name, days)
    click.echo(
        f"Made the certificate authority '{made.name}', valid until {_day(made.certificate.not_valid_after_utc)}:"
    )
    for file in ("ca.crt", "ca.key", "crl.pem", "ledger"):
        click.echo(f"  {made.directory / file}")
    click.echo("Keep ca.key secret, and the directory in your backup.")
    click.echo(f"Next: orchestra ca issue conductor HOST.NAME{_dir_option(directory)}")


@ca.group("issue")
def issue() -> None:
    """Issue a certificate; again for the same name is a renewal."""


@issue.command("conductor")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_directory
@_out
@_days
def issue_conductor(names: tuple[str, ...], directory: str, out: str | None, days: int) -> None:
    """A conductor's certificate, for all the NAMEs by which players know it."""
    made = _issue("conductor", names, directory, out, days)
    _say_where(made, "conductor", directory)
    click.echo("  and put into conductor.conf: crl = tls/crl.pem")
    click.echo(f"Next: orchestra ca issue player HOST.NAME{_dir_option(directory)}")


@issue.command("player")
@click.argument("name")
@_directory
@_out
@_days
def issue_player(name: str, directory: str, out: str | None, days: int) -> None:
    """A player's certificate; NAME is the host name it has in the players file."""
    made = _issue("player", (name,), directory, out, days)
    _say_where(made, "player", directory)
    player = made.entry.names[0]
    click.echo(f"Next: write {player} into the conductor's players file, and run 'orchestra reload' there.")


@issue.command("audience")
@click.argument("name")
@_directory
@_out
@_days
def issue_audience(name: str, directory: str, out: str | None, days: int) -> None:
    """A certificate for a remote audience; NAME is the name that the policy knows it by."""
    made = _issue("audience", (name,), directory, out, days)
    _say_files(made)
    click.echo("Next: copy the three files to whoever asks for work from afar, the .key so that only they can read it.")


@ca.command("revoke")
@click.argument("name")
@_directory
def revoke_command(name: str, directory: str) -> None:
    """Revoke the valid certificates of NAME, or the one with that serial number."""
    opened = authority.load(directory)
    revoked = opened.revoke(name)
    for entry in revoked:
        click.echo(f"Revoked {entry.kind} {', '.join(entry.names)} (serial {entry.serial:x}).")
    _say_crl(opened.directory / "crl.pem")
    if any(entry.kind == "conductor" for entry in revoked):
        click.echo("Copy it to every player's too, where player.conf has crl = tls/crl.pem: they turn that one away.")


@ca.command("crl")
@_directory
def crl_command(directory: str) -> None:
    """Write the revocation list again, from the ledger."""
    _say_crl(authority.load(directory).crl())


@ca.command("show")
@_directory
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show_command(directory: str, as_json: bool) -> None:
    """The authority, and every certificate that it issued."""
    overview = authority.load(directory).show()
    now = datetime.now(UTC)
    click.echo(msgspec.json.encode(_plain(overview, now)).decode() if as_json else _table(overview, now))


def _issue(kind: Kind, names: tuple[str, ...], directory: str, out: str | None, days: int) -> Issued:
    opened: Authority = authority.load(directory)
    return opened.issue(kind, names, days, Path(out) if out else opened.directory / "issued")


def _say_files(made: Issued) -> None:
    entry = made.entry
    click.echo(f"Issued for the {entry.kind} {', '.join(entry.names)}, valid until {_day(entry.not_after)}:")
    for file in (made.certificate, made.key, made.ca):
        click.echo(f"  {file}")


def _say_where(made: Issued, who: str, directory: str) -> None:
    _say_files(made)
    click.echo(f"Copy to the {who}'s host:")
    click.echo(f"  {made.certificate.name} as /etc/orchestra/tls/{who}.crt")
    click.echo(f"  {made.key.name} as /etc/orchestra/tls/{who}.key (mode 0600, owned by the {who}'s user)")
    click.echo("  ca.crt as /etc/orchestra/tls/ca.crt")
    if who == "conductor":
        click.echo(f"  {Path(directory) / 'crl.pem'} as /etc/orchestra/tls/crl.pem")


def _say_crl(file: Path) -> None:
    click.echo(f"Wrote {file}")
    click.echo("Next: copy it to the conductor's /etc/orchestra/tls/crl.pem, and run 'orchestra reload' there.")


def _dir_option(directory: str) -> str:
    return "" if directory == DIRECTORY else f" --dir {directory}"


def _state(entry: Entry, now: datetime) -> str:
    if entry.revoked_at is not None:
        return "revoked"
    if entry.not_after <= now:
        return "expired"
    return "expires soon" if entry.not_after - now < _SOON else "valid"


def _plain(overview: Overview, now: datetime) -> dict[str, object]:
    plain: dict[str, Any] = msgspec.to_builtins(overview)
    for shown, entry in zip(plain["issued"], overview.issued, strict=True):
        shown.update(serial=f"{entry.serial:x}", state=_state(entry, now))
    return plain


def _table(overview: Overview, now: datetime) -> str:
    rows = [("KIND", "NAMES", "UNTIL", "STATE", "SERIAL")]
    for entry in overview.issued:
        names, until = ",".join(entry.names), _day(entry.not_after)
        rows.append((entry.kind, names, until, _state(entry, now), f"{entry.serial:x}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = f"'{overview.name}' in {overview.directory}, valid until {_day(overview.not_after)}"
    return "\n".join((head, *lines)) if overview.issued else f"{head}; it has issued nothing yet."


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
