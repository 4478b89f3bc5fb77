"""``orchestra drill``: the delivery contract, tried on this machine with real daemons and real faults; a certificate.

Everything happens in a temporary directory and on the loopback, as whoever starts it. What cannot be tried here (a full
disk needs the right to mount one) is left out, and the certificate says so.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from twisted.internet.threads import blockingCallFromThread

from orchestra import __version__
from orchestra.audience.client import running_reactor
from orchestra.cli.printing import say
from orchestra.cli.session import SETTINGS
from orchestra.cli.theatre import DOMAIN, PATIENCE, STEP, Theatre
from orchestra.drill import plan, slowness
from orchestra.drill.certificate import Certificate, certify, text
from orchestra.drill.checker import check
from orchestra.drill.course import Course
from orchestra.drill.disk import MemoryDisk
from orchestra.drill.evidence import Evidence
from orchestra.drill.ledger import SCORES, install, marks
from orchestra.drill.nemesis import Nemesis
from orchestra.drill.plan import CONDUCTOR, DISKS, KINDS, SLOW_DISKS
from orchestra.drill.proxy import Gate
from orchestra.drill.requests import wishes
from orchestra.drill.vitals import live_runs
from orchestra.drill.workload import Workload
from orchestra.errors import FileProblem, OrchestraError, UsageError

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
BEAT: Final = "1s"
PLAYER_DISK: Final = 64  # MB
CONDUCTOR_DISK: Final = 96
RESERVE: Final = "16M"  # of those
MOST_SEED: Final = 999_999


@click.command("drill", context_settings=SETTINGS)
@click.option(
    "--seconds", type=click.FloatRange(1, 86_400), default=60.0, show_default=True, help="How long faults go on."
)
@click.option("--seed", type=int, help="Decides on faults and work; the same seed tries the same. [default: random]")
@click.option("--players", type=click.IntRange(1, len(LETTERS)), default=3, show_default=True, help="How many players.")
@click.option(
    "--only", "only", multiple=True, metavar="FAULT", help=f"Only this fault; may be repeated: {', '.join(KINDS)}."
)
@click.option(
    "--json", "json_file", metavar="FILE", help="Write the certificate as JSON too; - is stdout, instead of the text."
)
@click.option(
    "--keep", is_flag=True, help="Leave the directory with its logs and stores; it is also left on a violation."
)
def drill(
    seconds: float, seed: int | None, players: int, only: tuple[str, ...], json_file: str | None, keep: bool
) -> int:
    """Try on this machine that nothing is lost and nothing is done twice, whatever fails.

    Starts a conductor and players in a temporary directory, gives them work, and kills, stops and cuts them off while
    they do it. Then it holds what the conductor says against what the scores have written down. Exit status 0: no
    promise was broken; 1: one was.
    """
    for kind in only:
        if kind not in KINDS:
            raise UsageError(problem=f"there is no fault '{kind}'; there are: {', '.join(KINDS)}")
    json_to = None if json_file in (None, "-") else _writable(str(json_file))
    chosen = random.randint(1, MOST_SEED) if seed is None else seed
    tell = _teller()
    try:
        certificate = rehearse(chosen, seconds, players, only or tuple(KINDS), keep, tell)
    finally:
        tell("")
    if json_file == "-":
        say(msgspec.json.encode(certificate).decode())
    else:
        say(text(certificate))
    if json_to is not None:
        json_to.write_bytes(msgspec.json.format(msgspec.json.encode(certificate)))
    return 1 if certificate.violations else 0


def _writable(name: str) -> Path:
    """A file that can be written, which is better known before the drill than after it."""
    path = Path(name)
    try:
        path.touch()
    except OSError as problem:
        raise FileProblem(file=name, problem=os.strerror(problem.errno or 0)) from None
    return path


def rehearse(
    seed: int, seconds: float, players: int, kinds: Sequence[str], keep: bool, tell: Callable[[str], None]
) -> Certificate:
    """One drill, from an empty directory to its certificate; the directory stays only if there is something to see."""
    begun = time.monotonic()
    tell(f"drill with seed {seed}")
    with _terminated_like_interrupted(), Home(keep) as home:
        setting = Setting(home, LETTERS[:players], kinds)
        evidence = setting.perform(seed, seconds, tell)
        certificate = certify(
            evidence,
            check(evidence),
            version=__version__,
            seed=seed,
            seconds=seconds,
            players=players,
            took=time.monotonic() - begun,
            faults=dict(setting.nemesis.injected),
            left_out=tuple(setting.left_out),
        )
        home.keep |= bool(certificate.violations)
    return certificate


class Home:
    """The drill's directory. It is removed in the end, unless it is to be kept or something unexpected has happened."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.path = Path(tempfile.mkdtemp(prefix="orchestra-drill-"))
        self._stack = ExitStack()

    def at_the_end(self, work: Callable[..., object], *arguments: object) -> None:
        """Do this before the directory is removed; what comes last is done first."""
        self._stack.callback(work, *arguments)

    def __enter__(self) -> "Home":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.keep |= kind is not None and kind is not KeyboardInterrupt
        with _undisturbed():
            self._stack.close()
        if self.keep:
            print(f"The logs and stores are in {self.path}.", file=sys.stderr)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


class Setting:
    """A theatre whose players reach their conductor through the proxy, and whose disks can be filled where possible."""

    def __init__(self, home: Home, players: Sequence[str], kinds: Sequence[str]) -> None:
        self.left_out: list[str] = []
        self._home = home
        self._players = tuple(players)
        self._reactor = running_reactor()
        self._theatre = Theatre(home.path, self._players)
        self._disks = self._mounted() if DISKS.intersection(kinds) else {}
        self._kinds = tuple(kind for kind in self._slow(kinds) if kind not in DISKS or self._disks)
        self._build()
        self._gates = self._opened()
        self.nemesis = Nemesis(self._theatre, self._gates, self._disks, self._in_reactor, DOMAIN)
        home.at_the_end(self._end_everything)

    def perform(self, seed: int, seconds: float, tell: Callable[[str], None]) -> Evidence:
        """The drill itself."""
        asked = wishes(seed, self._players)
        chance = random.Random(f"askers of {seed}")
        workload = Workload(self._reactor, str(self._theatre.socket), asked, len(self._players), chance)
        course = Course(self._reactor, self._theatre, self._players, self.nemesis, workload, SCORES, tell)
        evidence = course.run(plan.plan(seed, seconds, self._players, self._kinds), seconds)
        return course.ended(evidence)

    def _build(self) -> None:
        theatre = self._theatre
        (theatre.home / "tmp").mkdir()
        theatre.environment["TMPDIR"] = str(theatre.home / "tmp")
        theatre.build(None)
        theatre.write_conductor(beat=BEAT, reserve=RESERVE)
        for player in self._players:
            bare = len(self._players) > 1 and player == self._players[-1]
            here = [score for score in SCORES.values() if not (score.somewhere and bare)]
            install(theatre.home / player / "scores", theatre.home / "ledger" / "drill", here)

    def _opened(self) -> dict[str, Gate]:
        """A gate for every player, and the player's configuration that leads through it."""
        gates = {player: Gate(self._reactor, self._theatre.port) for player in self._players}
        for player, name in zip(self._players, self._theatre.names, strict=True):
            port = blockingCallFromThread(self._reactor, gates[player].open)
            self._home.at_the_end(blockingCallFromThread, self._reactor, gates[player].close)
            to = f"{self._theatre.conductor_name}@127.0.0.1:{port}"
            scores = self._theatre.home / player / "scores"
            more = {"conductors": to, "scores": scores, "beat": BEAT, "reserve": RESERVE}
            self._theatre.write_player(name, self._theatre.home / "tls", **more)
        return gates

    def _slow(self, kinds: Sequence[str]) -> Sequence[str]:
        """These kinds without slow disks, where nobody may make those."""
        if not SLOW_DISKS.intersection(kinds):
            return kinds
        try:
            slowness.permitted()
        except FileProblem as problem:
            self.left_out.append(f"slow disks: this user may not hold a thread here ({problem.fields['problem']})")
            return [kind for kind in kinds if kind not in SLOW_DISKS]
        return kinds

    def _mounted(self) -> dict[str, MemoryDisk]:
        sizes = {CONDUCTOR: CONDUCTOR_DISK, **dict.fromkeys(self._players, PLAYER_DISK)}
        disks = {}
        try:
            for name, megabytes in sizes.items():
                disks[name] = MemoryDisk(self._theatre.home / name / "state", megabytes)
                disks[name].mount()
                self._home.at_the_end(self._unmount, disks[name])
        except FileProblem as problem:
            self.left_out.append(f"full disks: this user may not mount a disk here ({problem.fields['problem']})")
            return {}
        return disks

    def _unmount(self, disk: MemoryDisk) -> None:
        with suppress(FileProblem):
            disk.unmount(keep=self._home.keep)

    def _in_reactor(self, work: Callable[..., Any], *arguments: object) -> None:
        blockingCallFromThread(self._reactor, work, *arguments)

    def _end_everything(self) -> None:
        """Whatever state we leave in: nothing stays stopped, nothing stays running."""
        self.nemesis.heal()
        with suppress(OrchestraError):
            self._theatre.close()
        give_up = time.monotonic() + PATIENCE
        while (left := self._left()) and time.monotonic() < give_up:  # one that is just being started may appear late
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(STEP)

    def _left(self) -> list[int]:
        return [*self._theatre.left_behind(), *live_runs(marks(self._theatre.home / "ledger" / "drill"))]


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a drill as Ctrl-C does: tidily."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half of it behind."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _teller() -> Callable[[str], None]:
    """Shows how far it has come, on one line of a terminal; elsewhere nobody is told."""
    if not sys.stderr.isatty():
        return lambda line: None

    def tell(line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    return tell
