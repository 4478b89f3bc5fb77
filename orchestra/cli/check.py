"""``orchestra check conductor|player``: everything a daemon would stumble over, said without starting one.

``ok`` and ``WRONG`` lines, one for each thing looked at; ``note`` where it works but should be known. Nothing is
changed on disk, no daemon that runs is disturbed. For a player each conductor is tried as the player would: name,
TCP, TLS, both certificates, the list; only that no Hello is said.
"""

import errno
import grp
import os
import pwd
import socket
import stat
import time
from collections.abc import Collection, Iterable
from typing import Final

import click

from orchestra import settings
from orchestra.cli.dial import Finding, Findings, dial, note, ok, wrong
from orchestra.cli.session import CONFIG_DIR, SETTINGS
from orchestra.core import groups
from orchestra.errors import EX_CONFIG, OrchestraError, ScoreUserMissing
from orchestra.player import facts
from orchestra.player.launch import is_user
from orchestra.player.repertoire import Repertoire
from orchestra.security import credentials
from orchestra.security.credentials import Credentials, Role
from orchestra.settings import ConductorSettings, Listen, PlayerSettings

MOST_STRANGERS: Final = 5  # hosts in one sentence
_LISTENS: Final = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


# ---- the commands

_config = click.option(
    "--config",
    "config_dir",
    envvar="ORCHESTRA_CONFIG",
    metavar="DIR",
    default=CONFIG_DIR,
    show_default=True,
    help="The configuration directory.",
)


@click.group(context_settings=SETTINGS)
def check() -> None:
    """Say everything that is wrong with a daemon's configuration, without starting it.

    Run it as the user the daemon runs as. Exit status: 0, or 78 if something is WRONG.
    """


@check.command("conductor", context_settings=SETTINGS)
@_config
def check_conductor(config_dir: str) -> None:
    """Settings, players and groups files, certificates, directories, sockets, addresses."""
    _tell(conductor_findings(config_dir))


@check.command("player", context_settings=SETTINGS)
@_config
def check_player(config_dir: str) -> None:
    """Settings, certificates, directories, sockets, scores, facts; then every conductor, step by step."""
    _tell(player_findings(config_dir))


def _tell(findings: Iterable[Finding]) -> None:
    bad = 0
    for finding in findings:
        click.echo(finding.line)
        bad += finding.label == "WRONG"
    click.get_current_context().exit(EX_CONFIG if bad else 0)


# ---- what is looked at


def conductor_findings(config_dir: str) -> Findings:
    """Everything about a conductor, in the order in which it would stumble."""
    problems = settings.problems(config_dir, "conductor.conf", settings.CONDUCTOR)
    if problems:
        yield from (wrong(problem.sentence) for problem in problems)
        return
    chosen = settings.conductor(config_dir)
    yield ok(f"{chosen.config}/conductor.conf is understood")
    yield from _players_and_groups(chosen)
    ours = _credentials(chosen, "conductor")
    yield from _about(ours)
    yield from _directory(chosen.state, "state")
    yield from _socket(chosen.audience, "audience")
    yield from _audience_group(chosen.audience_group)
    yield from map(_listen, chosen.listen)


def player_findings(config_dir: str) -> Findings:
    """Everything about a player, and then every conductor as it looks from here."""
    problems = settings.problems(config_dir, "player.conf", settings.PLAYER)
    if problems:
        yield from (wrong(problem.sentence) for problem in problems)
        return
    chosen = settings.player(config_dir)
    yield ok(f"{chosen.config}/player.conf is understood")
    ours = _credentials(chosen, "player")
    yield from _about(ours)
    yield from _directory(chosen.state, "state")
    yield from _socket(chosen.seat, "seat")
    yield from _stage(chosen)
    yield from _score_user(chosen)
    yield from _scores(chosen.scores)
    yield from _facts(chosen.facts)
    for address in chosen.conductors:
        yield from dial(address, ours if isinstance(ours, Credentials) else None)


def _players_and_groups(chosen: ConductorSettings) -> Findings:
    try:
        names = settings.players_file(chosen.players, chosen.default_domain)
    except OrchestraError as problem:
        yield wrong(problem.sentence)
        names = None
    if names:
        yield ok(f"{chosen.players} lists {_many(len(names), 'player')}")
    elif names is not None:
        yield note(f"{chosen.players} lists nobody: every player will be turned away")
    yield from _groups_file(chosen, names)


def _groups_file(chosen: ConductorSettings, players: Collection[str] | None) -> Findings:
    try:
        found = groups.parse(settings.groups_text(chosen.groups), chosen.groups, chosen.default_domain)
    except OrchestraError as problem:
        yield wrong(problem.sentence)
        return
    if found:
        yield ok(f"{chosen.groups} names {_many(len(found), 'group')}")
    strangers = {
        name: found.members(name, players or ()).difference(players or ()) for name in found if players is not None
    }
    for name, hosts in strangers.items():
        if hosts:
            some = ", ".join(sorted(hosts)[:MOST_STRANGERS]) + (" …" if len(hosts) > MOST_STRANGERS else "")
            yield note(f"@{name} has hosts that are no players, so that it cannot be asked for: {some}")


def _credentials(chosen: ConductorSettings | PlayerSettings, role: Role) -> Credentials | OrchestraError:
    try:
        return credentials.load(chosen.certificate, chosen.key, chosen.ca, chosen.crl or None, role)
    except OrchestraError as problem:
        return problem


def _about(ours: Credentials | OrchestraError) -> Findings:
    if isinstance(ours, OrchestraError):
        yield wrong(ours.sentence)
        return
    until = credentials.day(ours.certificate.not_valid_after_utc)
    yield ok(
        f"certificate and key are those of {', '.join(ours.names)}, issued by '{ours.issuer}', valid until {until}"
    )
    yield from map(note, ours.warnings(int(time.time() * 1000)))
    if ours.crls is None:
        yield note("crl is not set: revoked certificates are accepted")


def _directory(directory: str, key: str) -> Findings:
    place = _nearest(directory)
    if not os.path.isdir(place):
        yield wrong(f"{key}: {place} is not a directory")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield wrong(f"{key}: {_me()} may not write in {place}; {directory} must belong to the daemon's user")
    elif place == directory:
        yield ok(f"{key}: {directory} can be written")
    else:
        yield ok(f"{key}: {directory} will be made")
    owner = os.stat(place).st_uid
    if os.geteuid() == 0 and owner != 0:
        user = _user_name(owner)
        yield note(
            f"{place} belongs to {user}, and root may do anything: check again as 'sudo -u {user} orchestra check'"
        )


def _nearest(directory: str) -> str:
    """``directory``, or what exists of the way to it."""
    while not os.path.lexists(directory) and directory != "/":
        directory = os.path.dirname(directory)
    return directory


def _socket(path: str, key: str) -> Findings:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        yield wrong(
            f"{key}: there is no directory {directory} for the socket; make it, and give it to the daemon's user"
        )
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield wrong(f"{key}: {_me()} may not make a socket in {directory}; it must belong to the daemon's user")
    elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        yield wrong(f"{key}: {path} is there and is not a socket; remove it, or name another path")
    elif listening(path):
        yield note(f"{key}: somebody listens at {path}: it runs already")
    else:
        yield ok(f"{key}: the socket {path} can be made")


def listening(path: str) -> bool:
    """Whether a process listens at this unix socket. The kernel is asked, because connecting would disturb: a stage
    leaves its player for whoever comes next."""
    with open("/proc/net/unix") as table:
        rows = [line.rstrip("\n").split(maxsplit=7) for line in table][1:]
    return any(row[7:] == [path] and int(row[3], 16) & _LISTENS for row in rows)


def _audience_group(group: str) -> Findings:
    if not group:
        return
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        yield wrong(f"audience_group: this machine has no group '{group}'; 'groupadd --system {group}' makes one")
        return
    if os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups()):
        yield ok(f"audience_group: the socket can be given to {group}")
    else:
        yield wrong(
            f"audience_group: {_me()} is not in the group {group} and cannot give the socket to it; "
            f"SupplementaryGroups={group} in the systemd unit, or 'usermod -a -G', mends that"
        )


def _listen(listen: Listen) -> Finding:
    where = f"[{listen.host}]:{listen.port}" if ":" in listen.host else f"{listen.host}:{listen.port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((listen.host, listen.port))
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            return note(f"listen: {where} is in use: is the conductor running already?")
        return wrong(f"listen: {where} cannot be used: {os.strerror(problem.errno or 0)}")
    return ok(f"listen: {where} can be used")


def _stage(chosen: PlayerSettings) -> Findings:
    if chosen.stage_start:
        yield from _socket(chosen.stage, "stage")
        yield from _directory(chosen.stage_dir, "stage_dir")
    elif listening(chosen.stage):
        yield ok(f"stage: it listens at {chosen.stage}")
    else:
        yield wrong(f"stage: nobody listens at {chosen.stage}; 'systemctl start orchestra-stage' starts it")


def _score_user(chosen: PlayerSettings) -> Findings:
    if not chosen.score_user:
        if os.geteuid() == 0 and chosen.stage_start:
            yield wrong(ScoreUserMissing().sentence)
        return
    if is_user(chosen.score_user):
        yield ok(f"score_user: scores run as {chosen.score_user}, unless theirs names another user")
    else:
        yield wrong(f"score_user: this machine has no user '{chosen.score_user}'")


def _scores(directory: str) -> Findings:
    repertoire = Repertoire(directory, {0, os.geteuid()})
    repertoire.reload()
    catalogue = repertoire.catalogue
    yield from (wrong(refused.reason) for refused in catalogue.refused)
    if catalogue.scores:
        yield ok(f"scores: {_many(len(catalogue.scores), 'score')} in {directory} may be asked for")
    elif not catalogue.refused:
        yield note(f"scores: {directory} has none, so nothing can be asked for")


def _facts(directory: str) -> Findings:
    found = facts.read(directory, {0, os.geteuid()})
    yield from map(wrong, found.problems)
    yield ok(f"facts: {_many(len(found.facts), 'fact')} of this machine, {directory} adds to them")


# ---- words


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _me() -> str:
    return _user_name(os.geteuid())


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
