"""``orchestra demo``: a conductor and three players on this machine, and what they do when things go wrong.

Everything is real: daemons under twistd, verified TLS, scores on disk, SIGKILL. Only the hosts are one machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from orchestra.audience.client import Ask, BlockingOrchestra, Scope
from orchestra.cli.session import SETTINGS
from orchestra.cli.theatre import DOMAIN, Theatre, scores_directory, wait_until
from orchestra.errors import UsageError
from orchestra.security import authority

PLAYERS: Final = ("alpha", "beta", "gamma")
INTRUDER: Final = "intruder"
JOBS: Final = 20
MARK: Final = "orchestra-demo"

REHEARSE: Final = """\
#!/bin/sh
# Writes down that it starts, works for a moment, and writes down that it has finished.
echo "start $ORCHESTRA_JOB $ORCHESTRA_PLAYER" >> {ledger}
sleep 0.5
echo "finish $ORCHESTRA_JOB $ORCHESTRA_PLAYER" >> {ledger}
echo "part=$ORC_part"
"""
REHEARSE_CONF: Final = """\
description = Plays a part and answers which (parameter: part)
interface = pipe
timeout = 30s
concurrency = 4
"""


@click.command("demo", context_settings=SETTINGS)
@click.option("--keep", is_flag=True, help="Leave it running, and print the commands to try and to stop it.")
@click.option("--stop", "home", metavar="DIR", help="Stop a demo that was left running in DIR, and remove it.")
def demo(keep: bool, home: str | None) -> int:
    """See a conductor and three players at work on this machine, in a temporary directory."""
    if home is not None:
        return _stop(Path(home))
    place = Path(tempfile.mkdtemp(prefix=f"{MARK}-"))
    (place / MARK).touch()
    theatre = Theatre(place, PLAYERS)
    done = False
    try:
        story = Story(theatre)
        story.tell()
        done = True
    finally:
        if not (keep and done):
            theatre.close()
            left = theatre.left_behind()
            if done:
                shutil.rmtree(place, ignore_errors=True)
            else:
                print(f"The logs are in {place}/log.", file=sys.stderr)
    if keep:
        _say_how_to_go_on(theatre)
    elif left:
        raise UsageError(problem=f"these processes were left behind: {left}")
    else:
        print("\nEverything is stopped and removed. No process is left behind.")
    print(story.sum_up())
    return 0 if story.all_is_well else 1


def _stop(home: Path) -> int:
    if not (home / MARK).is_file():
        raise UsageError(problem=f"{home} is not the directory of a demo")
    names = (home / "players").read_text().split()
    Theatre(home, [name.split(".")[0] for name in names]).close()
    shutil.rmtree(home)
    print(f"stopped, and {home} removed")
    return 0


def _say_how_to_go_on(theatre: Theatre) -> None:
    commands = Path(sys.executable).parent
    print(f"\nIt goes on, in {theatre.home}. Try:\n")
    print(f"  export ORCHESTRA_SOCKET={theatre.socket} PATH={commands}:$PATH")
    for line in ("orchestra players", "submitjob uptime alpha beta --all --wait", "getstatus"):
        print(f"  {line}")
    print(f"\nTo stop it and remove every trace:\n\n  {commands}/orchestra demo --stop {theatre.home}\n")


class Story:
    """The scenes, in order."""

    def __init__(self, theatre: Theatre) -> None:
        self._theatre = theatre
        self._ledger = theatre.home / "ledger" / "rehearse"
        self.outcomes: Counter[str] = Counter()

    @property
    def all_is_well(self) -> bool:
        return set(self.outcomes) == {"ok"}

    def tell(self) -> None:
        """All of it."""
        self._set_the_stage()
        self._a_score()
        self._answers()
        self._refusals()
        self._somebody_is_away()
        self._crashes()
        self._a_stranger()
        self._count()

    def sum_up(self) -> str:
        """The last line."""
        many = sum(self.outcomes.values())
        ok, lost = self.outcomes["ok"], self.outcomes["lost"]
        return f"{many} tasks: {ok} ok, {many - ok - lost} failed, {lost} lost"

    # ---- scenes

    def _set_the_stage(self) -> None:
        scene("A certificate authority, a conductor and three players")
        theatre = self._theatre
        theatre.build(scores_directory())
        theatre.add_score("rehearse", REHEARSE.format(ledger=self._ledger), REHEARSE_CONF)
        self._ledger.touch()
        theatre.start_conductor()
        for player in PLAYERS:
            theatre.start_player(player)
        self._until_online(len(PLAYERS))
        self._show("orchestra", "players")
        say("They are real twistd daemons with pidfiles and verified TLS; only the hosts are one machine.")

    def _a_score(self) -> None:
        scene("A score: an executable on the players' disks, and four lines about it")
        for name in ("rehearse", "rehearse.conf"):
            self._show("cat", str(self._theatre.scores / name))

    def _answers(self) -> None:
        scene("All of some hosts, and one of some hosts")
        self._show("submitjob", "rehearse", *PLAYERS, "part=Hamlet", "--all", "--wait")
        self._show("submitjob", "disk-free", *PLAYERS, "--one", "--wait")

    def _refusals(self) -> None:
        scene("Only scores are run: nothing else has a name here")
        self._show("submitjob", "rm", "alpha", "path=/", expect=64)
        self._show("submitjob", "uptime", "alhpa", expect=64)

    def _somebody_is_away(self) -> None:
        scene("A host that is down: the job waits, and says so")
        say("gamma is stopped.")
        self._theatre.stop("gamma")
        self._until_online(len(PLAYERS) - 1)
        job = self._show("submitjob", "uptime", "gamma", "--expire", "1h").split()[0]
        self._show("getstatus", job)
        say("gamma is started again, and its work is waiting for it:")
        self._theatre.start_player("gamma")
        self._show("orchestra", "wait", job)

    def _crashes(self) -> None:
        scene(f"{JOBS} jobs for three players; the conductor and a player are killed in the middle (SIGKILL)")
        with BlockingOrchestra(str(self._theatre.socket)) as orchestra:
            asks = [
                Ask(score="rehearse", targets=PLAYERS, scope=Scope.ALL, params={"part": str(n)}) for n in range(JOBS)
            ]
            jobs = [orchestra.submit(ask).job for ask in asks]
            before = self._lines("finish")
            self._until(lambda: self._lines("finish") >= before + JOBS, "the first runs")
            so_far = f"{self._lines('start')} runs have started, {self._lines('finish')} have finished"
            say(f"{so_far}. kill -9 conductor, alpha.")
            self._theatre.kill("conductor")
            self._theatre.kill("alpha")
            say("What alpha was running goes on upon its stage. Both daemons are started again.")
            self._theatre.start_conductor()
            self._theatre.start_player("alpha")
            verdicts = Counter(orchestra.wait(job).verdict for job in jobs)
        say(f"{JOBS} jobs have ended: {verdicts['ok']} ok.")
        started = Counter(line for line in self._ledger.read_text().splitlines() if line.startswith("start"))
        twice = sum(many > 1 for many in started.values())
        say("The score's own ledger, written by the runs themselves, those of the first job included:")
        print(f"    started {sum(started.values())}, finished {self._lines('finish')}, ran twice {twice}")
        if twice or self._lines("finish") != len(PLAYERS) * (JOBS + 1):
            raise UsageError(problem="the ledger does not say what it should")

    def _a_stranger(self) -> None:
        scene("Somebody with a certificate of another authority")
        theatre = self._theatre
        rogue = authority.init(theatre.home / "rogue-ca", "Somebody else")
        name = f"{INTRUDER}.{DOMAIN}"
        rogue.issue("player", [name], out=theatre.home / "rogue")
        both = theatre.home / "rogue" / "both.crt"
        both.write_bytes(b"".join((theatre.home / tls / "ca.crt").read_bytes() for tls in ("rogue", "tls")))
        theatre.write_player(name, theatre.home / "rogue", ca=both)
        theatre.start_player(INTRUDER)
        log = theatre.home / "log" / f"{INTRUDER}.log"
        try:
            wait_until(lambda: "not connected to" in _text(log), "the intruder's sentence", log)
        finally:
            theatre.stop(INTRUDER)
        print(_indented(next(line for line in _text(log).splitlines() if "not connected to" in line)))

    def _count(self) -> None:
        with BlockingOrchestra(str(self._theatre.socket)) as orchestra:
            for job in orchestra.jobs():
                self.outcomes.update(job.counts)

    # ---- how they are played

    def _show(self, *command: str, expect: int = 0) -> str:
        """Run a command as a user would, and show every line when it comes; returns them."""
        print(f"  $ {' '.join(command)}", flush=True)
        ours = Path(sys.executable).with_name(command[0])
        environment = {**os.environ, "ORCHESTRA_SOCKET": str(self._theatre.socket)}
        said = ""
        with subprocess.Popen(
            [str(ours) if ours.exists() else command[0], *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as running:
            for line in running.stdout or ():
                print(_indented(line), flush=True)
                said += line
        if running.returncode != expect:
            raise UsageError(problem=f"'{' '.join(command)}' ended with {running.returncode}, not {expect}")
        return said

    def _lines(self, word: str) -> int:
        return sum(line.startswith(word) for line in _text(self._ledger).splitlines())

    def _until_online(self, many: int) -> None:
        with BlockingOrchestra(str(self._theatre.socket)) as orchestra:
            self._until(lambda: orchestra.about().online == many, "the players")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, self._theatre.home / "log" / "conductor.log")


def scene(title: str) -> None:
    """A heading."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def say(sentence: str) -> None:
    """A line of the story."""
    print(f"  {sentence}", flush=True)


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.rstrip().splitlines()).rstrip("\n")


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
