"""Why a task has not started, or not ended: the one line that a person reads."""

from typing import Any

import pytest

from orchestra.core.explain import (
    Presence,
    held,
    moment,
    until,
    why_not_let_go,
    why_unfinished,
    why_waiting,
    why_waiting_for_one,
)
from orchestra.model import Course, Held, Hold, JobView, Paused, TaskView, Waves

AT = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
LATER = AT + 3_600_000


def there(**more: Any) -> Presence:
    """A player that is online and has room."""
    return Presence(**{"name": "web01", "online": True, "since": AT, "room": 3} | more)


@pytest.mark.parametrize(
    ("player", "blocker"),
    [
        (there(), "about to be handed over"),
        (there(online=False), "offline since 2023-11-14 22:13:20 UTC"),
        (there(online=False, since=None), "never seen yet"),
        (there(removed=True), "web01 was removed from the players file"),
        (there(removed=True, online=False), "web01 was removed from the players file"),
        (there(held="web01 is held", note="full", room=0), "web01 is held"),
        (there(held="web01 is held", online=False), "web01 is held; offline since 2023-11-14 22:13:20 UTC"),
        (there(held="web01 is held", removed=True), "web01 was removed from the players file"),
        (there(note="its disk is full"), "web01 takes no work: its disk is full"),
        (there(note="its disk is full", room=0), "web01 takes no work: its disk is full"),
        (there(room=0), "web01 has as many runs as it takes"),
        (there(room=-1), "web01 has as many runs as it takes"),
        (there(open_of_score=2, limit_of_score=2), "2 runs of uptime are ahead of it on web01"),
        (there(open_of_score=1, limit_of_score=2), "about to be handed over"),
        (there(open_of_score=5, limit_of_score=0), "about to be handed over"),
    ],
)
def test_the_first_reason_that_holds_is_said(player: Presence, blocker: str) -> None:
    """What has to change first comes first, and until when it may."""
    assert why_waiting(player, "uptime", None) == f"waits: {blocker}, never expires"


def test_a_wait_says_when_it_ends_by_itself() -> None:
    """In the words that the promise of ``submitjob`` uses."""
    assert until(LATER) == "expires 2023-11-14 23:13:20 UTC"
    assert why_waiting(there(online=False), "uptime", LATER) == (
        "waits: offline since 2023-11-14 22:13:20 UTC, expires 2023-11-14 23:13:20 UTC"
    )


def test_a_moment_is_in_utc_and_without_fractions() -> None:
    assert moment(AT + 999) == "2023-11-14 22:13:20 UTC"
    assert moment(0) == "1970-01-01 00:00:00 UTC"


@pytest.mark.parametrize(
    ("online", "blocker"),
    [(0, "no player is online"), (2, "until one of its candidates is online and has a free slot")],
)
def test_one_of_work_waits_for_anybody(online: int, blocker: str) -> None:
    assert why_waiting_for_one(online, None) == f"waits: {blocker}, never expires"


def test_one_of_work_says_that_it_is_held() -> None:
    """All of it, or that some of its candidates may be."""
    assert why_waiting_for_one(2, None, "everything is held") == "waits: everything is held, never expires"
    assert why_waiting_for_one(0, None, "", True) == "waits: no player is online, never expires"
    assert "is online, not held, and has" in why_waiting_for_one(1, None, "", True)


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [(Held.EVERYTHING, "", "everything"), (Held.HOST, "web01", "web01"), (Held.SCORE, "uptime", "the score uptime")],
)
def test_a_hold_is_told_in_one_line(kind: Held, name: str, what: str) -> None:
    hold = Hold(kind=kind, name=name, reason="disk swap", at=AT, owner="anne", uid=1000)
    assert held(hold) == f"{what} is held since 2023-11-14 22:13:20 UTC by anne: disk swap"


def task(**more: Any) -> TaskView:
    return TaskView(**{"task": 1, "player": "web01", "state": "dispatched", "attempt": 1} | more)


@pytest.mark.parametrize(
    ("view", "player", "started_at", "says"),
    [
        (task(), there(), AT, "running since 2023-11-14 22:13:20 UTC"),
        (task(), there(), None, "handed over, not known to have ended"),
        (
            task(cancelling=True, reason="still alive"),
            there(),
            AT,
            "running since 2023-11-14 22:13:20 UTC, being cancelled; still alive",
        ),
        (task(), None, AT, "handed over"),
        (task(player=None), there(), AT, "handed over"),
        (task(cancelling=True), there(), AT, "running since 2023-11-14 22:13:20 UTC, being cancelled"),
        (
            task(cancelling=True),
            there(online=False),
            None,
            (
                "handed over, not known to have ended, being cancelled; "
                "web01 is offline since 2023-11-14 22:13:20 UTC: its outcome is told when it is back"
            ),
        ),
        (
            task(),
            there(online=False, since=None),
            None,
            "handed over, not known to have ended; web01 is offline: its outcome is told when it is back",
        ),
    ],
)
def test_what_was_handed_over_says_what_is_known(
    view: TaskView, player: Presence | None, started_at: int | None, says: str
) -> None:
    """No more than that: who is away may have ended it long ago."""
    assert why_unfinished(view, player, started_at) == says


WAVES = Waves(tasks=10, batch=3, canary=2, max_failures=1)
ALL = Waves(tasks=10, batch=10)
PAUSED = Paused(at=AT, owner="anne", uid=1000)


def rolling(course: Course | None = None, by: Paused | None = None) -> JobView:
    known: dict[str, Any] = {"params": {}, "login_uid": None, "request_key": None, "counts": {}, "verdict": ""}
    known |= {"expires_at": None, "ended_at": None, "priority": 0, "last_event": 1, "created_at": AT, "uid": 1}
    return JobView(job=1, score="uptime", scope="all", owner="anne", course=course, paused=by, **known)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (rolling(), ""),
        (rolling(Course(waves=WAVES, wave=4, opened=10)), ""),
        (rolling(Course(waves=WAVES, wave=2, opened=5)), "its wave, 3 of 4, has not begun"),
        (rolling(Course(waves=WAVES, wave=2, opened=5, next_at=AT)), "its wave, 3 of 4, begins 2023-11-14 22:13:20 UTC"),
        (rolling(Course(waves=WAVES, wave=1, opened=2, next_at=AT)), "its wave, 3 of 4, has not begun"),
        (rolling(Course(waves=ALL, wave=0, opened=0, next_at=AT)), "the job begins 2023-11-14 22:13:20 UTC"),
        (rolling(Course(waves=WAVES, wave=2, opened=5, stopped="stopped: 2 failed")), "about to be cancelled, stopped: 2 failed"),
        (rolling(Course(waves=WAVES, wave=2, opened=5), PAUSED), "the job is paused since 2023-11-14 22:13:20 UTC by anne"),
        (rolling(Course(waves=ALL, wave=1, opened=10), PAUSED), "the job is paused since 2023-11-14 22:13:20 UTC by anne"),
    ],
)  # fmt: skip
def test_what_a_task_waits_for_that_nobody_may_be_given_yet(job: JobView, says: str) -> None:
    """A pause comes first; then the wave."""
    said = why_not_let_go(job, TaskView(task=7, player="web08", state="held", attempt=0))
    assert said == (f"waits: {says}, never expires" if says else "")
