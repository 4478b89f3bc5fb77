"""The conductor's mind: who is there, how much room each has, and who may be given work now.

Pure. It knows nothing of which tasks are pending; that is the store's. It knows only that there *may* be some
(a session is ``hungry``), asks the store to claim, and learns what was claimed. Memory is per connected player and
per open run, never per pending task.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from typing import Final

from orchestra.model import Run, Scope

UNKNOWN_SCORE: Final = 2  # open runs of a score that is not in the player's catalogue: it will refuse them


class Session:
    """A player that is connected and was welcomed."""

    __slots__ = (
        "catalogue",
        "claiming",
        "epoch",
        "held",
        "hungry",
        "limits",
        "locks",
        "name",
        "note",
        "open",
        "player",
        "ready",
        "settled",
        "slots",
        "started",
        "stirred",
        "version",
    )

    def __init__(self, player: int, name: str, epoch: int, slots: int, open_runs: Mapping[int, str]) -> None:
        self.player = player
        self.name = name
        self.epoch = epoch
        self.slots = slots
        self.open = dict(open_runs)  # seq -> score
        self.note = ""  # why it takes no work
        self.version = ""
        self.catalogue = ""  # digest
        self.limits: Mapping[str, int] = {}  # score -> most open runs; shared by players with one catalogue
        self.locks: Mapping[str, str] = {}  # score -> lock, of those that have one; shared as the limits are
        self.started: dict[int, tuple[int, int, int]] = {}  # seq -> (job, task, started_at), for runs that last
        self.settled = False  # Welcome answered
        self.ready = False  # and the catalogue known
        self.claiming = False
        self.held = False  # an operator has stopped handing out to it
        self.hungry = True  # the store may have work for it
        self.stirred = False  # something changed while a claim was on its way: claim again after it

    @property
    def room(self) -> int:
        return 2 * self.slots - len(self.open)

    def count(self, score: str) -> int:
        """How many runs of ``score`` are open."""
        return sum(one == score for one in self.open.values())

    def fits(self, score: str) -> bool:
        """Whether one more run of ``score`` may be open; "" is any score."""
        if not score:
            return True
        most, lock = self.limits.get(score, UNKNOWN_SCORE), self.locks.get(score)
        return self.count(score) < most and (lock is None or self._count_lock(lock) < most)

    def _count_lock(self, lock: str) -> int:
        return sum(self.locks.get(one) == lock for one in self.open.values())

    def started_at(self, job: int, task: int) -> int | None:
        """Since when a task runs here, if the player has told."""
        return next((at for j, t, at in self.started.values() if (j, t) == (job, task)), None)

    def remaining(self) -> Mapping[str, int]:
        """How many more open runs of each score this player may be given."""
        if not self.open:
            return self.limits
        left = dict(self.limits)
        for score in self.open.values():
            left[score] = left.get(score, UNKNOWN_SCORE) - 1
        return self._with_locks(left) if self.locks else left

    def _with_locks(self, left: dict[str, int]) -> dict[str, int]:
        """Scores with one lock have one limit: else those that wait for it would fill the player's room."""
        taken = Counter(self.locks[score] for score in self.open.values() if score in self.locks)
        return left | {score: self.limits[score] - taken[lock] for score, lock in self.locks.items() if taken[lock]}


class Wish:
    """A claim the store is asked to make for one session."""

    __slots__ = ("epoch", "limits", "locks", "player", "room")

    def __init__(self, session: Session) -> None:
        self.player = session.player
        self.epoch = session.epoch
        self.room = session.room
        self.limits = session.remaining()
        self.locks = session.locks


class Scheduler:
    """All sessions, by player id."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}
        self.paused = False  # nobody is given anything; who becomes hungry meanwhile stays so

    # ---- sessions come and go

    def opened(self, session: Session) -> None:
        """A player was admitted; a session it had before is superseded."""
        self.sessions[session.player] = session

    def welcomed(self, session: Session) -> None:
        """The player has settled its journal and its catalogue is known: it may be given work."""
        session.ready = True

    def closed(self, session: Session) -> None:
        """The connection is gone. Nothing is requeued: the next Welcome settles."""
        if self.sessions.get(session.player) is session:
            del self.sessions[session.player]

    def current(self, session: Session) -> bool:
        return self.sessions.get(session.player) is session

    # ---- who may be given work

    def offer(self, scope: Scope, players: Iterable[int], score: str = "", count: int = 1) -> list[Wish]:
        """There is new work for ``players``: claims to make at once, in ascending order of player.

        Work for one or ``count`` of them goes to the least busy that have room for it, for a run of ``score`` if that
        is said; the others are hungry all the same, and take it with their next claim if those do not.
        """
        there = [session for player in players if (session := self.sessions.get(player)) is not None]
        for session in there:
            session.hungry = True
            session.stirred = session.claiming
        if scope is not Scope.ALL:
            free = (session for session in there if self._may_claim(session) and session.fits(score))
            there = nsmallest(count, free, key=lambda session: (len(session.open), session.player))
        return self.wishes(there)

    def wishes(self, sessions: Iterable[Session]) -> list[Wish]:
        """The claims that may be made now, each session marked as claiming."""
        chosen = sorted((s for s in sessions if self._may_claim(s)), key=lambda s: s.player)
        for session in chosen:
            session.claiming = True
        return [Wish(session) for session in chosen]

    def _may_claim(self, session: Session) -> bool:
        wanted = session.hungry and session.ready and session.room > 0
        return wanted and not (self.paused or session.claiming or session.held)

    def braked(self, holds: Callable[[str], object]) -> None:
        """Operators have held or released players: ``holds`` says of a name whether it is held now."""
        for session in self.sessions.values():
            session.held = bool(holds(session.name))

    # ---- what became of it

    def claimed(self, player: int, epoch: int, runs: Iterable[Run], more: bool) -> Session | None:
        """A claim was committed. The session to tell, or None if it is gone: then the next Welcome settles.

        ``more``: work is left that could not be given now. It is asked for again when a run ends, not at once.
        """
        session = self.sessions.get(player)
        if session is None or session.epoch != epoch:
            return None
        session.claiming = False
        session.hungry = more or session.stirred
        for run in runs:
            session.open[run.seq] = run.score
        return session

    def stirred(self, session: Session) -> list[Wish]:
        """The claim to make after one that something overtook."""
        again, session.stirred = session.stirred, False
        return self.wishes([session]) if again else []

    def not_claimed(self, wishes: Iterable[Wish]) -> list[Session]:
        """The claims could not be made (nothing was saved). The sessions, still hungry, to ask for again later."""
        there = [s for wish in wishes if (s := self.sessions.get(wish.player)) is not None and s.epoch == wish.epoch]
        for session in there:
            session.claiming = session.stirred = False
        return there

    def ended(self, session: Session, seqs: Iterable[int]) -> dict[int, str]:
        """Runs are over. What was open of them, for :meth:`reopened`."""
        gone: dict[int, str] = {}
        for seq in seqs:
            score = session.open.pop(seq, None)
            session.started.pop(seq, None)
            if score is not None:
                gone[seq] = score
        session.stirred = session.stirred or session.claiming
        return gone

    def reopened(self, session: Session, runs: Mapping[int, str]) -> None:
        """The end of these runs could not be saved: they count as open until it is."""
        session.open.update(runs)
