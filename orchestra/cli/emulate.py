"""``orchestra emulate``: many players in one process, to try a conductor with; they answer all and run nothing."""

import gc
import json
import resource
import sys
import time
import uuid
from functools import partial
from random import Random, SystemRandom
from typing import Any, Final

import click
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import FileLogObserver, ILogObserver, LogEvent, LogLevel, globalLogBeginner
from zope.interface import provider

from orchestra import logs, settings
from orchestra.bench import fleet
from orchestra.bench.understudy import Understudy, catalogue
from orchestra.cli.session import SETTINGS
from orchestra.errors import UsageError
from orchestra.hangup import Hangup
from orchestra.model import DEFAULT_PORT
from orchestra.player.line import Connector, over_tls
from orchestra.security import authority
from orchestra.security.contexts import ClientCredentials
from orchestra.settings import ConductorAddress

MOST_WARNINGS: Final = 20
SPARE_FILES: Final = 100  # descriptors that are not players'


@click.command("emulate", context_settings=SETTINGS)
@click.option("--players", "many", type=click.IntRange(1), required=True, metavar="N", help="How many players.")
@click.option(
    "--conductor",
    metavar="NAME[@ADDRESS][:PORT]",
    help=f"The conductor: its certificate's name, and where to dial if not there.  [port: {DEFAULT_PORT}]",
)
@click.option("--authority", "ca", metavar="DIR", help="The authority ('orchestra ca init') that certifies them.")
@click.option("--domain", default="emulated.test", show_default=True, help="The domain of their names.")
@click.option("--prefix", default="e", show_default=True, help="What their names begin with.")
@click.option("--score", "scores", multiple=True, default=("noop",), show_default=True, help="A score they have.")
@click.option("--slots", type=click.IntRange(1, 1024), default=64, show_default=True, help="The slots of each.")
@click.option("--seconds", type=click.FloatRange(0), default=0.0, help="How long a run lasts.  [0: ends at once]")
@click.option("--failing", multiple=True, metavar="HOST", help="One of them on which every run fails; may be repeated.")
@click.option("--rate", type=click.FloatRange(1), default=1000.0, show_default=True, help="Most that dial a second.")
@click.option("--beat", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds between beats.")
@click.option("--list", "listing", is_flag=True, help="Print their names, for the conductor's players file, and end.")
@click.option("--json", "as_json", is_flag=True, help="Say it in JSON.")
def emulate(listing: bool, as_json: bool, many: int, domain: str, prefix: str, **rest: Any) -> None:
    """Be many players, to try a conductor with: they answer everything and run nothing.

    Prints a line when all are connected, and again whenever all are back; on SIGHUP a line that counts what they have
    performed. Ends with SIGTERM or Ctrl-C. Their journals are memory: what was open when they end, is lost.
    """
    players = fleet.names(prefix, many, domain)
    if listing:
        print("\n".join(players))
        return
    _enough_files(many)
    _run(players, _Voice(many, as_json), **rest)


class _Voice:
    """What the command says on stdout."""

    def __init__(self, many: int, as_json: bool) -> None:
        self._many = many
        self._json = as_json

    def complete(self, seconds: float) -> None:
        """All are there."""
        gc.freeze()
        self._say(
            f"{self._many} players are connected, after {seconds:.1f} s",
            {"event": "connected", "players": self._many, "seconds": seconds},
        )

    def count(self, counts: fleet.Counts) -> None:
        """What they have done so far."""
        told = f"{counts.connected} of {counts.players} connected, {counts.performed} runs, {counts.losses} lines lost"
        self._say(told, {"event": "count", **counts._asdict()})

    def _say(self, sentence: str, fields: dict[str, Any]) -> None:
        print(json.dumps(fields) if self._json else sentence, flush=True)


def _run(
    players: list[str],
    voice: _Voice,
    *,
    conductor: str | None,
    ca: str | None,
    scores: tuple[str, ...],
    slots: int,
    seconds: float,
    failing: tuple[str, ...],
    rate: float,
    beat: float,
) -> None:
    if not conductor or not ca:
        raise UsageError(problem="--conductor says where to connect, --authority who certifies the players")
    if strangers := set(failing).difference(players):
        raise UsageError(problem=f"--failing: none of them is called {min(strangers)[:80]}; --list lists them")
    from twisted.internet import reactor as chosen

    reactor: Any = chosen
    reactor.seconds = time.monotonic
    gc.set_threshold(100_000, 50, 1000)
    _begin_logging()
    crowd = fleet.Fleet(reactor, rate, voice.complete)
    addresses = _addresses(conductor)
    repertoire = catalogue(scores, slots)
    random = SystemRandom()
    for name, costume in zip(players, fleet.costumes(authority.load(ca), players), strict=True):
        fails = name in failing
        player = Understudy(reactor, uuid.uuid4().hex, repertoire, slots, seconds, crowd, _now, fails)
        chance = Random(random.random())
        crowd.add(
            player, Connector(reactor, addresses, costume, player, beat, chance, partial(_dialled, crowd, player))
        )
    reactor.callWhenRunning(crowd.start)
    reactor.addSystemEventTrigger("before", "shutdown", crowd.stop)

    async def count() -> None:
        voice.count(crowd.counts)

    Hangup(reactor, count)
    gc.freeze()
    reactor.run()


def _dialled(
    crowd: fleet.Fleet, player: Understudy, reactor: Any, address: ConductorAddress, tls: ClientCredentials
) -> IStreamClientEndpoint:
    return fleet.InTurn(crowd.gate, player, over_tls(reactor, address, tls))


def _addresses(text: str) -> tuple[ConductorAddress, ...]:
    try:
        return settings.conductor_addresses(text)
    except ValueError as problem:
        raise UsageError(problem=f"--conductor: {problem}") from None


def _enough_files(players: int) -> None:
    """Let this process have a descriptor for each, or say that it cannot."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and players + SPARE_FILES > most:
        problem = f"a process may have {most} open files here: at most {most - SPARE_FILES} players (ulimit -n)"
        raise UsageError(problem=problem)


def _begin_logging() -> None:
    """Warnings go to stderr, the first few of them: ten thousand players would all say the same."""
    write = FileLogObserver(sys.stderr, logs.text_line)
    said = 0

    @provider(ILogObserver)
    def some(event: LogEvent) -> None:
        nonlocal said
        if event["log_level"] >= LogLevel.warn and said < MOST_WARNINGS:
            said += 1
            write(event)

    globalLogBeginner.beginLoggingTo([some], redirectStandardIO=False, discardBuffer=True)


def _now() -> int:
    return time.time_ns() // 1_000_000
