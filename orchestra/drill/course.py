"""The course of a drill: work and faults, then healing, waiting, the last looks, and what is left of it all.

It runs in a thread of its own beside the reactor's, where the askers and the proxy live.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from orchestra.audience.client import Orchestra, blocking
from orchestra.audience.desk import About
from orchestra.drill import ledger
from orchestra.drill.evidence import Evidence, Remains, Seen, Vitals
from orchestra.drill.ledger import DrillScore
from orchestra.drill.nemesis import House, Nemesis
from orchestra.drill.plan import CONDUCTOR, Fault
from orchestra.drill.vitals import live_runs, named, temporary_files, uptime, vitals
from orchestra.drill.workload import Workload, look
from orchestra.errors import NoConductor, OrchestraError

STEP: Final = 0.05  # seconds between two turns of the nemesis
PATIENCE: Final = 180.0  # seconds after the healing for everything to end
TIDY_WITHIN: Final = 15.0  # seconds for the last traces to go
ONLINE_WITHIN: Final = 30.0


class Place(House, Protocol):
    """Where the daemons are, and how to reach and to end them all."""

    @property
    def socket(self) -> Path: ...
    def close(self) -> None: ...
    def left_behind(self) -> list[int]: ...


class Course:
    """One drill, from the first request to the evidence."""

    def __init__(
        self,
        reactor: Any,
        place: Place,
        players: Sequence[str],
        nemesis: Nemesis,
        workload: Workload,
        scores: dict[str, DrillScore],
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` is given a line on how far it has come, again and again."""
        self._reactor = reactor
        self._place = place
        self._players = players
        self._nemesis = nemesis
        self._workload = workload
        self._scores = scores
        self._tell = tell
        self._ledger = place.home / "ledger" / "drill"
        self._third: dict[str, Vitals] = {}
        self._client = Orchestra(reactor, str(place.socket))

    def run(self, faults: Sequence[Fault], seconds: float) -> Evidence:
        """All of it. What it returns has everything but what is left once the daemons have been stopped."""
        self._ledger.touch()
        booted_at = round((time.time() - uptime()) * 1000)
        self._start()
        before = tuple(self._vitals().values())
        self._perform(faults, seconds)
        self._recover()
        runs, files = self._tidied(self._live_runs), self._tidied(self._files)
        end = tuple(self._vitals().values())
        looks = self._last_looks()
        remains = Remains(
            runs=tuple(runs),
            files=tuple(files),
            own_ends=tuple(self._nemesis.own_ends),
            before=before,
            third=tuple(self._third.values()),
            end=end,
        )
        return self._evidence(looks, booted_at, remains, any(fault.part.endswith("disk") for fault in faults))

    def _evidence(self, looks: tuple[dict[int, Seen], ...], booted_at: int, remains: Remains, disks: bool) -> Evidence:
        return Evidence(
            scores=self._scores,
            requests=tuple(self._workload.log.requests),
            ledger=ledger.read(self._ledger),
            glances=tuple(self._workload.log.glances),
            looks=looks,
            stage_kills=tuple(self._nemesis.stage_kills),
            complaints=tuple(self._workload.log.complaints),
            booted_at=booted_at,
            troubled_disks=disks,
            remains=remains,
        )

    # ---- its parts, in order

    def _start(self) -> None:
        self._tell("starting a conductor and its players")
        self._place.start_conductor()
        for player in self._players:
            self._place.start_player(player)
        if not self._wait(self._all_online, ONLINE_WITHIN, "waiting for the players"):
            raise NoConductor(socket=self._place.socket, problem="not all players came online")

    def _perform(self, faults: Sequence[Fault], seconds: float) -> None:
        begin = time.monotonic()
        self._nemesis.expect(faults, begin)
        self._reactor.callFromThread(self._workload.start)
        sample_at = begin
        while (now := time.monotonic()) < begin + seconds:
            self._nemesis.turn()
            if now >= sample_at:
                sample_at = now + 1
                self._tell(self._progress(f"{now - begin:.0f} of {seconds:g} s"))
                if now <= max(begin + seconds / 3, begin + 2):
                    self._third |= self._vitals()
            time.sleep(STEP)

    def _recover(self) -> None:
        self._nemesis.heal()
        stopped = threading.Event()
        self._reactor.callFromThread(self._stop_asking, stopped)
        self._wait(lambda: stopped.is_set() and self._nemesis.quiet, PATIENCE)
        self._wait(self._all_ended, PATIENCE)
        self._wait(self._all_online, ONLINE_WITHIN)

    def _stop_asking(self, stopped: threading.Event) -> None:
        Deferred.fromCoroutine(self._workload.stop()).addBoth(lambda _: stopped.set())

    def _last_looks(self) -> tuple[dict[int, Seen], ...]:
        """Everything, and everything again from a conductor that has read it from its disk."""
        self._tell("looking at every job")
        first = blocking(self._reactor, look(self._client))
        self._place.stop(CONDUCTOR)
        self._place.start_conductor()
        second = blocking(self._reactor, look(self._client))
        self._reactor.callFromThread(self._client.close)
        return first, second

    def ended(self, evidence: Evidence) -> Evidence:
        """The evidence, completed by what is left when the daemons have been stopped."""
        self._tell("stopping everything")
        self._nemesis.rest()
        self._place.close()
        processes = self._tidied(lambda: named(self._place.left_behind()))
        left = (*processes, *self._live_runs())
        return replace(evidence, remains=replace(evidence.remains, processes=left))

    # ---- waiting

    def _wait(self, condition: Callable[[], bool], patience: float, words: str = "healed, waiting") -> bool:
        """Whether it came true in time; meanwhile what is down is started again."""
        give_up = time.monotonic() + patience
        while not condition():
            if time.monotonic() > give_up:
                return False
            self._nemesis.turn()
            self._tell(self._progress(words))
            time.sleep(STEP * 4)
        return True

    def _tidied(self, left: Callable[[], list[str]]) -> list[str]:
        """What is left when it has had its time to go."""
        self._wait(lambda: not left(), TIDY_WITHIN)
        return left()

    def _all_online(self) -> bool:
        about = self._about()
        return about is not None and about.online == len(self._players)

    def _all_ended(self) -> bool:
        about = self._about()
        return about is not None and about.pending + about.dispatched + about.held == 0

    def _about(self) -> About | None:
        try:
            return blocking(self._reactor, self._client.about())
        except OrchestraError:
            return None

    # ---- what is seen on the way

    def _vitals(self) -> dict[str, Vitals]:
        """The daemons and stages that are up, by role."""
        roles = {CONDUCTOR: self._pids(CONDUCTOR)}
        for player in self._players:
            roles[f"player {player}"] = self._pids(player)
            roles[f"stage {player}"] = self._place.stages_of(player)[:1]
        found = {role: vitals(role, pid) for role, one in roles.items() for pid in one}
        return {role: one for role, one in found.items() if one is not None}

    def _pids(self, daemon: str) -> list[int]:
        return [self._place.pid(daemon)] if self._place.is_up(daemon) else []

    def _live_runs(self) -> list[str]:
        return named(live_runs(ledger.marks(self._ledger)))

    def _files(self) -> list[str]:
        places = [self._place.home / "tmp", *(self._place.home / p / "state" / "stage" / "runs" for p in self._players)]
        return list(temporary_files(places))

    def _progress(self, where: str) -> str:
        log = self._workload.log
        answered = sum(1 for request in log.requests if request.answers)
        return f"{where}: {sum(self._nemesis.injected.values())} faults, {answered} jobs accepted"
