"""From a command line to a daemon's socket: where it is, and a reactor that starts fast."""

import contextlib
import errno
import os
import socket as socket_module
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from orchestra import config
from orchestra.errors import Denied, NoConductor, NoPlayer, NoSuchJob, OrchestraError, OwnerOnly, PlayerAway

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

CONFIG_DIR: Final = "/etc/orchestra"
SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["--help", "-help"]}  # -help: as the older guide says

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def reaching(command: F) -> F:
    """The options that say where the conductor is."""
    socket = click.option(
        "--socket", envvar="ORCHESTRA_SOCKET", metavar="PATH", help="The conductor's socket. [env: ORCHESTRA_SOCKET]"
    )
    directory = click.option(
        "--config",
        envvar="ORCHESTRA_CONFIG",
        metavar="DIR",
        default=CONFIG_DIR,
        help=f"Where conductor.conf says which socket it is. [env: ORCHESTRA_CONFIG; {CONFIG_DIR}]",
    )
    return socket(directory(command))


class Whole(click.IntRange):
    """A whole number; click's own calls what is none "not a valid integer range"."""

    name = "number"


class _JobNumber(click.IntRange):
    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not is_number(str(value)):
            self.fail(f"'{str(value)[:80]}' is no number of a job", param, ctx)
        return job_number(str(value))


JOB: Final = _JobNumber()
_MOST_DIGITS: Final = 18  # what the store, and a message to it, can hold


def is_number(word: str) -> bool:
    """Whether a word can only be meant as a number."""
    return word.isascii() and word.isdigit()


def job_number(digits: str) -> int:
    """The number of a job; of one that cannot be there this is said at once."""
    if len(digits) > _MOST_DIGITS or not int(digits):
        raise NoSuchJob(job=digits[:80])
    return int(digits)


as_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def written(directory: str, name: str, key: str, default: str) -> str:
    """The socket that a daemon's configuration names, if we may read that; else where it is by default."""
    file = os.path.join(directory, name)
    try:
        untitled = config.sections(file, config.read_text(file))[0]
    except OrchestraError:
        return default  # the daemon says what is wrong with its file, not we
    found = [entry.value for entry in untitled.entries if entry.key == key and entry.value]
    return os.path.normpath(os.path.join(directory, found[-1])) if found else default


def conductor_socket(socket: str | None, directory: str) -> str:
    """Where the conductor's audience is received."""
    return socket or written(directory, "conductor.conf", "audience", "/run/orchestra/audience.pb")


def player_socket(socket: str | None, directory: str) -> str:
    """Where this machine's player can be talked to."""
    return socket or written(directory, "player.conf", "seat", "/run/orchestra/player.pb")


def talk(path: str, work: "Callable[[Orchestra], Coroutine[Any, Any, T]]") -> T:
    """What ``work`` returns when given a conductor."""
    with _without_tls():
        from orchestra.audience.client import Orchestra, blocking, running_reactor

        reactor = running_reactor()

    async def session() -> T:
        async with await Orchestra.connect(reactor, path) as orchestra:
            return await work(orchestra)

    return blocking(reactor, session())


def talk_to_player(path: str, directory: str, work: "Callable[[Orchestra], Coroutine[Any, Any, T]]") -> T:
    """What ``work`` returns when given the seat of this machine's player."""
    try:
        return talk(path, work)
    except NoConductor as error:
        stage = written(directory, "player.conf", "stage", "/run/orchestra/stage")
        if _answers(stage):
            raise PlayerAway(**error.fields, stage=stage) from None
        raise NoPlayer(**error.fields) from None
    except Denied as error:
        raise OwnerOnly(who=error.fields["who"], daemon="player") from None


def _answers(path: str) -> bool:
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            return probe.connect_ex(path) in (0, errno.EAGAIN)
        except OSError:  # a path too long for a socket
            return False


@contextlib.contextmanager
def _without_tls() -> Iterator[None]:
    """Have Twisted imported without its TLS half: a third of a command's whole time, of no use on a unix socket."""
    if "OpenSSL" in sys.modules or "twisted.internet.reactor" in sys.modules:
        yield
        return
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]  # an import of it fails, and Twisted does without
    try:
        yield
    finally:
        del sys.modules["OpenSSL"]
