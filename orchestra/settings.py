"""What the two daemons can be told: every key of ``conductor.conf`` and ``player.conf``, declared once.

From a declaration come the value, the command line option, and the line in the sample file under ``conf/``.
The syntax is :mod:`orchestra.config`'s; what a certificate file must look like is said by the security room.
Durations are integer milliseconds, sizes are bytes.
"""

import ipaddress
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any, Final, NamedTuple, TypeVar

from orchestra.config import (
    Entry,
    Key,
    Parsed,
    choice,
    duration,
    duration_or_never,
    host_name,
    integer,
    parse,
    read_text,
    sections,
    size,
    text,
    words,
    yes_no,
)
from orchestra.errors import ConfigError, LineProblem, OrchestraError
from orchestra.model import DEFAULT_PORT, MAX_SOCKET_PATH

CONFIG_DIR: Final = "/etc/orchestra"
MAX_GROUPS_FILE: Final = 4 << 20
MAX_PLAYERS_FILE: Final = 16 << 20
MAX_PROBLEMS: Final = 100  # more than a reader mends at once


class Listen(NamedTuple):
    """An address to listen on; port 0 lets the kernel choose."""

    host: str
    port: int


class ConductorAddress(NamedTuple):
    """``name`` is what the conductor's certificate must say, ``address`` and ``port`` where to dial."""

    name: str
    address: str
    port: int


class Share(NamedTuple):
    """So many, or so many of a hundred, but at least one."""

    number: int
    percent: bool

    def of(self, whole: int) -> int:
        """How many of ``whole`` that are."""
        return max(1, whole * self.number // 100) if self.percent else self.number


# ---- what these values look like


def path(value: str) -> str:
    """A path; :func:`_read` puts a relative one under the configuration directory."""
    if not value or "\0" in value:
        raise ValueError("expected a path")
    return value


def path_or_none(value: str) -> str:
    """A path, or nothing."""
    return path(value) if value else ""


def socket_path(value: str) -> str:
    """The path of a unix socket, whose length the kernel limits."""
    return path(value)


_PATHS: Final = (path, path_or_none, socket_path)


def some_time(value: str) -> int:
    """A duration longer than nothing."""
    if not (milliseconds := duration(value)):
        raise ValueError("expected a duration longer than 0")
    return milliseconds


def some_time_or_never(value: str) -> int | None:
    """A duration longer than nothing, or None for ``never``."""
    return None if duration_or_never(value) is None else some_time(value)


def some_time_or_forever(value: str) -> int | None:
    """A duration longer than nothing, or None for ``forever``."""
    return None if value == "forever" else some_time(value)


def size_of_at_least(least: int) -> Callable[[str], int]:
    """A size of ``least`` bytes or more."""

    def bounded(value: str) -> int:
        if (many := size(value)) < least:
            raise ValueError(f"expected a size of at least {least >> 10}k")
        return many

    return bounded


def share(value: str) -> Share:
    """``5`` or ``10%``."""
    number, percent, rest = value.partition("%")
    try:
        if rest or value != value.strip():
            raise ValueError
        return Share(integer(1, 100 if percent else 1_000_000)(number.rstrip()), bool(percent))
    except ValueError:
        raise ValueError("expected a number such as 5, or a part such as 10%") from None


def domain(value: str) -> str:
    """A domain name, or nothing."""
    return host_name(value) if value else ""


def listens(value: str) -> tuple[Listen, ...]:
    """``HOST:PORT`` items; HOST is an address of this machine, an IPv6 one in brackets."""
    found = tuple(dict.fromkeys(_listen(item) for item in words(value)))
    if not found:
        raise ValueError("expected at least one HOST:PORT such as 0.0.0.0:2258 or [::]:2258")
    return found


def _listen(item: str) -> Listen:
    host, port = _split_port(item)
    try:
        return Listen(str(ipaddress.ip_address(host)), DEFAULT_PORT if port is None else port)
    except ValueError:
        raise ValueError(f"expected HOST:PORT with an address of this machine, and '{item}' is none") from None


def conductor_addresses(value: str) -> tuple[ConductorAddress, ...]:
    """``NAME[:PORT]`` or ``NAME@ADDRESS[:PORT]`` items; names become lower case."""
    found = tuple(dict.fromkeys(_conductor_address(item) for item in words(value)))
    if not found:
        raise ValueError("expected at least one conductor such as conductor.example.org")
    return found


def _conductor_address(item: str) -> ConductorAddress:
    name, at, rest = item.partition("@")
    address, port = _split_port(rest if at else item)
    if port == 0:
        raise ValueError(f"expected a port from 1 to 65535 in '{item}'")
    name = host_name(name if at else address)
    return ConductorAddress(name, _dialled(address) if at else name, port or DEFAULT_PORT)


def _dialled(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return host_name(address)


def _split_port(item: str) -> tuple[str, int | None]:
    if item.startswith("["):
        host, bracket, rest = item[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"expected [ADDRESS]:PORT, and '{item}' is not that")
        return host, _port(rest[1:], item) if rest else None
    if item.count(":") > 1:
        raise ValueError(f"expected an IPv6 address in brackets, [{item}]")
    host, colon, port = item.partition(":")
    return host, _port(port, item) if colon else None


def _port(digits: str, item: str) -> int:
    try:
        return integer(0, 65535)(digits)
    except ValueError:
        raise ValueError(f"expected a port from 0 to 65535 at the end of '{item}'") from None


# ---- the keys

_LOG: Final = (
    Key("log_format", choice("text", "json"), "text", "One line per event: text for people, or json for programs."),
    Key(
        "log_size",
        size_of_at_least(64 << 10),
        "10M",
        "With twistd's --logfile=FILE: a log file that reaches this size is put aside and a new one begun.",
    ),
    Key("log_files", integer(1, 1000), "10", "How many log files that were put aside are kept."),
)
_BEAT: Final = Key(
    "beat", some_time, "30s", "How often each side shows that it lives; a peer that misses three is left."
)


def _tls(who: str) -> tuple[Key, ...]:
    return (
        Key("certificate", path, f"tls/{who}.crt", f"The {who}'s certificate, PEM, with intermediate ones after it."),
        Key("key", path, f"tls/{who}.key", "Its private key, PEM; only the daemon's user may read it."),
        Key("ca", path, "tls/ca.crt", "The authorities whose certificates are trusted, PEM, one or several."),
        Key(
            "crl", path_or_none, "", "Their revocation lists, PEM, one for each authority; nothing: none is looked at."
        ),
        Key(
            "key_exchange",
            choice("classical", "hybrid"),
            "classical",
            "How TLS agrees on keys: classical, or hybrid (with ML-KEM too, if both ends say so), against those who "
            "record today what a quantum computer may decrypt some day.",
        ),
    )


CONDUCTOR: Final = (
    Key("listen", listens, f"0.0.0.0:{DEFAULT_PORT}", "Where players connect to: HOST:PORT, several allowed."),
    Key("state", path, "/var/lib/orchestra/conductor", "The directory of the store; on a disk that keeps its fsyncs."),
    Key("players", path, "players", "The file that lists the players, one host name per line."),
    Key("groups", path, "groups", "The file that names groups of players, one per line; it need not be there."),
    Key("default_domain", domain, "", "Completes names without a dot, in the players file and in requests."),
    *_tls("conductor"),
    Key(
        "secret_key",
        path_or_none,
        "",
        "The key that seals secret parameters in the store, made at the first start: keep it apart from backups of the "
        "store; nothing: 'secret.key' in the state directory.",
    ),
    Key("audience", socket_path, "/run/orchestra/audience.pb", "The socket that submitjob and getstatus talk to."),
    Key(
        "audience_group",
        text,
        "",
        "Members of this group may submit and read; nothing: only root and the conductor's user.",
    ),
    Key(
        "default_expire",
        some_time_or_never,
        "24h",
        "What has not started by then never will, unless the request says otherwise; 'never' must be written.",
    ),
    Key(
        "removal_limit",
        share,
        "10%",
        "How many players, or which part of them (one is always allowed), a new players file may remove at once.",
    ),
    Key(
        "removal_grace",
        duration,
        "15m",
        "How long after its removal from the players file a player's work is given up.",
    ),
    Key(
        "reserve",
        size,
        "256M",
        "Below so much free disk where the store is, nothing new is accepted and nothing handed out.",
    ),
    Key("keep", some_time_or_forever, "30d", "How long a job is kept after its end; or forever."),
    Key(
        "keep_size",
        size_of_at_least(1 << 20),
        "10G",
        "A larger store loses the output of ended jobs, then the jobs themselves, the oldest first.",
    ),
    _BEAT,
    Key("handshake_timeout", some_time, "10s", "A connection whose TLS handshake takes longer is cut off."),
    Key("hello_timeout", some_time, "30s", "A connection that has not said who it is by then is cut off."),
    Key(
        "max_handshakes",
        integer(1, 1_000_000),
        "2000",
        "How many connections may be in their handshake at once; further ones are closed, and players try again.",
    ),
    # A quarter of max_handshakes: four addresses must join to keep others out. Yet a fleet of 10,000 behind one NAT
    # that comes back after a restart (within 17 s, so 600/s) has 180 in their handshake at 0.3 s each.
    Key(
        "max_handshakes_per_address",
        integer(1, 1_000_000),
        "500",
        "The same for one address, so that one machine cannot keep the others out; a fleet behind NAT is one address.",
    ),
    Key(
        "send_queue",
        size_of_at_least(64 << 10),
        "8M",
        "How much may wait to be sent to one player; past it the player is cut off, and is told again when it is back.",
    ),
    *_LOG,
)

PLAYER: Final = (
    Key(
        "conductors",
        conductor_addresses,
        None,
        "The conductors, as their certificates name them: NAME[:PORT], or NAME@ADDRESS[:PORT] to dial ADDRESS.",
    ),
    Key("state", path, "/var/lib/orchestra/player", "The directory of the journal; on a disk that keeps its fsyncs."),
    Key("scores", path, "/usr/lib/orchestra/scores", "The directory of the scores: what is in it may be asked for."),
    Key("facts", path, "facts.d", "The directory of facts about this machine, NAME.conf each; it need not be there."),
    *_tls("player"),
    Key("slots", integer(1, 1024), "8", "How many runs go on at once."),
    Key("stage", socket_path, "/run/orchestra/stage", "The socket of the stage, the helper that runs the scores."),
    Key("stage_start", yes_no, "yes", "Whether the player starts the stage; no: it has a unit of its own."),
    Key(
        "stage_dir",
        path_or_none,
        "",
        "The directory in which the stage keeps outcomes; nothing: 'stage' in the state directory.",
    ),
    Key(
        "score_user",
        text,
        "",
        "The user that scores run as, if theirs names none; a stage that runs as root insists on it, be it root.",
    ),
    Key(
        "seat",
        socket_path,
        "/run/orchestra/player.pb",
        "The socket that 'orchestra player' and 'orchestra reload player' talk to.",
    ),
    Key("reserve", size, "32M", "Below so much free disk where the journal is, the player takes no new work."),
    _BEAT,
    *_LOG,
)


# ---- the values


class ConductorSettings(NamedTuple):
    """conductor.conf and the command line, understood. ``config`` is the configuration directory."""

    config: str
    listen: tuple[Listen, ...]
    state: str
    players: str
    groups: str
    default_domain: str
    certificate: str
    key: str
    ca: str
    crl: str
    key_exchange: str
    secret_key: str
    audience: str
    audience_group: str
    default_expire: int | None
    removal_limit: Share
    removal_grace: int
    reserve: int
    keep: int | None
    keep_size: int
    beat: int
    handshake_timeout: int
    hello_timeout: int
    max_handshakes: int
    max_handshakes_per_address: int
    send_queue: int
    log_format: str
    log_size: int
    log_files: int


class PlayerSettings(NamedTuple):
    """player.conf and the command line, understood. ``config`` is the configuration directory."""

    config: str
    conductors: tuple[ConductorAddress, ...]
    state: str
    scores: str
    facts: str
    certificate: str
    key: str
    ca: str
    crl: str
    key_exchange: str
    slots: int
    stage: str
    stage_start: bool
    stage_dir: str
    score_user: str
    seat: str
    reserve: int
    beat: int
    log_format: str
    log_size: int
    log_files: int


Settings = TypeVar("Settings", ConductorSettings, PlayerSettings)


def conductor(config_dir: str = CONFIG_DIR, overrides: Mapping[str, str] | None = None) -> ConductorSettings:
    """The conductor's settings from ``config_dir/conductor.conf``; ``overrides`` win."""
    values = _read(config_dir, "conductor.conf", CONDUCTOR, overrides)
    secret_key = values["secret_key"] or os.path.join(values["state"], "secret.key")
    return ConductorSettings(**{**values, "secret_key": secret_key})


def player(config_dir: str = CONFIG_DIR, overrides: Mapping[str, str] | None = None) -> PlayerSettings:
    """The player's settings from ``config_dir/player.conf``; ``overrides`` win."""
    values = _read(config_dir, "player.conf", PLAYER, overrides)
    return PlayerSettings(**{**values, "stage_dir": values["stage_dir"] or os.path.join(values["state"], "stage")})


def _read(config_dir: str, name: str, keys: Sequence[Key], overrides: Mapping[str, str] | None) -> dict[str, Any]:
    config = os.path.abspath(config_dir)
    file = os.path.join(config, name)
    untitled, *titled = sections(file, read_text(file))
    if titled:
        raise LineProblem(file=file, line=titled[0].line, problem="this file has no [sections]")
    parsed = parse(file, untitled.entries, keys, overrides)
    located = {key.name: _located(parsed, key, config) for key in keys if key.parse in _PATHS}
    return {"config": config, **parsed.values, **located}


def differing(old: Settings, new: Settings, live: Collection[str]) -> list[str]:
    """The keys that have another value now, without those that are ``live``: a daemon takes these over."""
    return [key for key in new._fields if key not in live and getattr(old, key) != getattr(new, key)]


def needs_restart(keys: Sequence[str], daemon: str) -> str:
    """What is said of keys that were changed under a daemon."""
    return f"read at start only: {', '.join(keys)}; restart the {daemon} for that"


def problems(config_dir: str, name: str, keys: Sequence[Key]) -> tuple[OrchestraError, ...]:
    """Everything that is wrong with the keys in ``config_dir/name``, not only the first thing."""
    file = os.path.join(os.path.abspath(config_dir), name)
    try:
        wrong = tuple(_problems(file, sections(file, read_text(file))[0].entries, keys))
        if not wrong:
            _read(config_dir, name, keys, None)
        return wrong
    except OrchestraError as problem:
        return (problem,)


def misfit(config_dir: str, name: str, key: str, problem: str) -> ConfigError:
    """What only this machine can judge (it has no such group, say), with the line that it is written on."""
    file = os.path.join(os.path.abspath(config_dir), name)
    try:
        written = [entry.line for entry in sections(file, read_text(file))[0].entries if entry.key == key]
    except OrchestraError:
        written = []
    return ConfigError(file=file, line=written[0] if written else 0, key=key, problem=problem)


def _problems(file: str, entries: Sequence[Entry], keys: Sequence[Key]) -> Iterator[ConfigError]:
    """Each problem that the parser finds when the keys it complained of before are left out."""
    for _ in range(MAX_PROBLEMS):
        try:
            parse(file, entries, keys)
            return
        except ConfigError as problem:
            yield problem
            bad = problem.fields["key"]
        entries = [entry for entry in entries if entry.key != bad]
        keys = [key for key in keys if key.name != bad]


def _located(parsed: Parsed, key: Key, config: str) -> str:
    value: str = parsed.values[key.name]
    place = os.path.normpath(os.path.join(config, value)) if value else ""
    if key.parse is socket_path and len(os.fsencode(place)) > MAX_SOCKET_PATH:
        raise parsed.error(key.name, f"the kernel allows a socket path of {MAX_SOCKET_PATH} bytes, and this is {place}")
    return place


# ---- the players file


def players_file(file: str, default_domain: str = "") -> tuple[str, ...]:
    """The host names in ``file``, lower case, in order, each once; ``default_domain`` completes those without a dot."""
    names: dict[str, None] = {}
    for number, raw in enumerate(read_text(file, MAX_PLAYERS_FILE).split("\n"), 1):
        if not (name := raw.partition("#")[0].strip()):
            continue
        try:
            names[full_name(name, default_domain)] = None
        except ValueError as problem:
            raise LineProblem(file=file, line=number, problem=f"{problem}, not '{name[:80]}'") from None
    return tuple(names)


def groups_text(file: str) -> str:
    """What is in the groups file, or nothing if there is none."""
    return read_text(file, MAX_GROUPS_FILE) if os.path.lexists(file) else ""


def full_name(name: str, default_domain: str) -> str:
    """``name`` as a host name, completed by ``default_domain`` if it has no dot; ValueError if it is none."""
    return host_name(f"{name}.{default_domain}" if default_domain and "." not in name else name)


# ---- the command line


def usage_options(keys: Sequence[Key]) -> list[list[str | None]]:
    """The ``optParameters`` of twisted.python.usage for ``keys``; ``default_expire`` is ``--default-expire``."""
    return [[option_name(key), None, None, f"{key.meaning}{_default_note(key)}"] for key in keys]


def option_name(key: Key) -> str:
    """The long option of a key, without its dashes."""
    return key.name.replace("_", "-")


def _default_note(key: Key) -> str:
    return f" [{key.default}]" if key.default else ""


def overrides(options: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, str]:
    """Those of ``keys`` that were given on the command line, as :func:`conductor` and :func:`player` take them."""
    given = {key.name: options.get(option_name(key)) for key in keys}
    return {name: value for name, value in given.items() if value is not None}


def arguments(argv: Sequence[str], keys: Sequence[Key]) -> list[str]:
    """``argv`` with ``-help`` as ``--help``, and with keys as the file spells them (``--log_size``) as options."""
    known = {f"--{key.name}": f"--{option_name(key)}" for key in keys}
    return [_argument(word, known) for word in argv]


def _argument(word: str, known: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return "--help" if word == "-help" else known.get(option, option) + equals + value


# ---- the samples


def sample(keys: Sequence[Key], title: str) -> str:
    """A sample file: every key with its sentence and its default, commented out; what must be written is left open."""
    head = [f"# {title}", "#", "# Every key is also an option of the daemon's command line: log_size is --log-size."]
    head += ["# Relative paths start at the directory of this file. Comments stand on lines of their own."]
    return "\n".join([*head, *(line for key in keys for line in _sample_of(key))]) + "\n"


def _sample_of(key: Key) -> list[str]:
    line = f"#{key.name} = {key.default}" if key.default is not None else f"{key.name} ="
    return ["", *(f"# {part}" for part in wrap(key.meaning, 100)), line.rstrip()]


SAMPLE_TITLES: Final = {
    "conductor.conf": "The conductor's settings. What is commented out is the default.",
    "player.conf": "A player's settings. What is commented out is the default.",
}
