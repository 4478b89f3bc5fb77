"""What keeps a task though its player could have it: pauses, times to begin, waves, and a job that has stopped."""

from typing import Any

import pytest

from orchestra.core.blockers import Facts, of_pending
from orchestra.core.gating import of_task
from orchestra.model import Course, JobView, Paused, Waves

AT = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
NOON = "2023-11-14 22:13:20 UTC"
WAVES = Waves(tasks=9, batch=3, canary=1)  # 0 | 1 2 3 | 4 5 6 | 7 8
PAUSED = Paused(at=AT, owner="anne", uid=1)


def job(**more: Any) -> JobView:
    plain = {"params": {}, "scope": "all", "owner": "anne", "uid": 1, "login_uid": None, "request_key": None}
    times = {"created_at": AT - 7, "expires_at": None, "ended_at": None}
    return JobView(
        **{"job": 7, "score": "deploy", "priority": 0, "counts": {}, "verdict": "", "last_event": 1}
        | plain
        | times
        | more
    )


def course(**more: Any) -> Course:
    return Course(**{"waves": WAVES, "wave": 1, "opened": 1} | more)


def said(view: JobView, task: int) -> list[tuple[str, str, str, int | None]]:
    return [(one.kind, one.what, one.until, one.since) for one in of_task(view, task)]


def test_a_plain_job_is_kept_by_nothing_of_its_own() -> None:
    assert said(job(), 0) == []


def test_a_pause_says_by_whom_and_how_it_ends() -> None:
    """Whatever else keeps the task."""
    pause = ("paused", "the job is paused by anne", "'orchestra resume 7'", AT)
    assert said(job(paused=PAUSED), 0) == [pause]
    assert said(job(paused=PAUSED, course=course()), 4) == [pause, *said(job(course=course()), 4)]


@pytest.mark.parametrize(
    ("where", "task", "says"),
    [
        (course(), 0, None),
        (course(), 1, ("its wave, 2 of 4, has not begun", "wave 1 has ended, with few enough failures")),
        (course(), 8, ("its wave, 4 of 4, has not begun", "wave 3 has ended, with few enough failures")),
        (course(wave=2, opened=4), 3, None),
        (course(next_at=AT), 1, ("its wave, 2 of 4, has not begun", NOON)),
        (course(next_at=AT), 4, ("its wave, 3 of 4, has not begun", "wave 2 has ended, with few enough failures")),
    ],
)
def test_a_task_waits_for_its_wave(where: Course, task: int, says: tuple[str, str] | None) -> None:
    """For the time at which that begins, or for the end of the one before."""
    assert said(job(course=where), task) == ([("wave", *says, None)] if says else [])


def test_a_job_that_begins_later_says_when() -> None:
    """And what it waits for then."""
    later = course(wave=0, opened=0, next_at=AT)
    begins = ("not before", "the job begins later", NOON, AT - 7)
    assert said(job(course=later), 0) == [begins]
    assert [kind for kind, *_ in said(job(course=later), 4)] == ["not before", "wave"]


def test_a_job_that_stopped_goes_no_further() -> None:
    assert said(job(course=course(stopped="2 failed")), 4) == [
        ("stopped", "about to be cancelled: 2 failed", "that is done", None)
    ]


def test_what_keeps_the_job_is_told_before_what_keeps_the_host() -> None:
    away = Facts(online=False, since=AT)
    kinds = [one.kind for one in of_pending("deploy", "", (), away, of_task(job(paused=PAUSED), 0))]
    assert kinds[0] == "paused"
    assert "offline" in kinds
