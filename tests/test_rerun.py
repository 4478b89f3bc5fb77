"""A job once more: where it ended in a certain way, as it was, and linked both ways."""

from typing import Any

import pytest
from conftest import Command
from msgspec.structs import replace
from outside import OutsideOrchestra
from storehouse import Storehouse, report

from orchestra.audience.client import Ask, Rerun, Scope
from orchestra.conductor.managing import once_more
from orchestra.errors import BadRequest, NothingToRerun, RequestKeyConflict, SecretsNotKept, SecretsWanted
from orchestra.model import Course, JobView, Rolling, State, Told, Waves
from orchestra.store import statements

NEVER = (State.CANCELLED, State.EXPIRED, State.REFUSED)
VIEW = JobView(
    job=5, score="deploy", params={"version": "7"}, scope="all", owner="anne", uid=1, login_uid=None,
    request_key="first", created_at=1_000, expires_at=61_000, ended_at=9_000, priority=3, counts={"failed": 2},
    verdict="failed", last_event=9,
)  # fmt: skip
ROLLED = replace(VIEW, course=Course(waves=Waves(tasks=20, batch=4, canary=1, max_failures=2), wave=3, opened=9))
SECRET = replace(VIEW, secrets=("token",))


# ---- the request


def test_a_rerun_asks_for_what_the_job_was() -> None:
    """But for the request key, which is of one request, and the time to begin."""
    assert once_more(VIEW, ("web1", "web2"), Rerun(job=5, only=(State.FAILED,))) == Ask(
        score="deploy", targets=("web1", "web2"), scope=Scope.ALL, params={"version": "7"}, expire=60, priority=3,
        rerun_of=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("view", "wanted", "became"),
    [
        (replace(VIEW, expires_at=None), {}, {"expire": 0}),
        (replace(VIEW, not_before=31_000), {}, {"expire": 30}),
        (VIEW, {"expire": 5.0, "priority": 0, "request_key": "again"}, {"expire": 5, "priority": 0}),
        (VIEW, {"not_before": 99.0}, {"not_before": 99}),
        (VIEW, {"rolling": Rolling(batch="2")}, {"rolling": Rolling(batch="2")}),
        (ROLLED, {}, {"rolling": Rolling(batch="4", canary=1, max_failures="2")}),
        (ROLLED, {"rolling": Rolling(batch="2")}, {"rolling": Rolling(batch="2")}),
        (replace(VIEW, course=Course(waves=Waves(tasks=9, batch=9), wave=1, opened=9)), {}, {"rolling": None}),
        (SECRET, {"secrets": {"token": "x"}}, {"params": {"version": "7"}, "private": {"token": "x"}}),
        (replace(VIEW, dry_run=True), {}, {"dry_run": True}),
    ],
)
def test_what_is_said_anew_is_otherwise(view: JobView, wanted: dict[str, Any], became: dict[str, Any]) -> None:
    """Everything else is as it was."""
    ask = once_more(view, ("web1",), Rerun(job=5, only=(State.FAILED,), **wanted))
    assert {name: getattr(ask, name) for name in became} == became


def test_a_rerun_changes_no_parameter_that_is_kept() -> None:
    """Then it would be another request."""
    with pytest.raises(BadRequest, match="'version' is no secret of job 5, and a rerun changes nothing else"):
        once_more(VIEW, ("web1",), Rerun(job=5, only=(State.FAILED,), secrets={"version": "8"}))
    with pytest.raises(BadRequest, match="'speed' is no secret of job 5"):
        once_more(SECRET, ("web1",), Rerun(job=5, only=(State.FAILED,), secrets={"token": "x", "speed": "8"}))


def test_all_the_secrets_of_a_job_are_wanted_anew() -> None:
    """Those that the score could do without, too: the job had them."""
    with pytest.raises(SecretsNotKept, match="'token' of job 5 is secret, and its value was not kept") as caught:
        once_more(SECRET, ("web1",), Rerun(job=5, only=(State.FAILED,)))
    assert isinstance(caught.value, SecretsWanted)  # for which the commands ask


# ---- who it is of


@pytest.fixture
def store() -> Storehouse:
    return Storehouse(4)


def test_it_is_of_the_hosts_that_ended_so(store: Storehouse) -> None:
    """By the order of the first job's tasks."""
    job = store.submit([1, 2, 3, 4])
    for player, told in ((1, Told.OK), (2, Told.FAILED), (3, Told.LOST)):
        [run] = store.claim(player)
        store.settle(player, report(run, told))
    assert statements.again(store.cur, job, (State.FAILED, State.LOST)).names == ("web-2", "web-3")
    assert statements.again(store.cur, job, NEVER).names == ()
    statements.cancel(store.cur, job, None, "anne", 0)
    assert statements.again(store.cur, job, NEVER).names == ("web-4",)


def test_a_one_of_job_has_the_candidates_it_had(store: Storehouse) -> None:
    """Those that refused it too; not those on which it was cancelled."""
    job = store.submit([1, 2, 3, 4], Scope.ONE)
    [run] = store.claim(3)
    store.settle(3, report(run, Told.REFUSED))
    statements.cancel(store.cur, job, [4], "anne", 0)
    [run] = store.claim(1)
    store.settle(1, report(run, Told.FAILED))
    assert statements.again(store.cur, job, (State.FAILED,)).names == ("web-1", "web-2", "web-3")
    assert statements.again(store.cur, job, (State.LOST,)).names == ()


def test_both_jobs_know_of_each_other(store: Storehouse) -> None:
    """The first of all that it was run again as."""
    first = store.submit([1, 2])
    again = [store.submit([1], rerun_of=first), store.submit([2], rerun_of=first)]
    assert statements.job_view(store.cur, first).reruns == tuple(again)
    assert [statements.job_view(store.cur, job).rerun_of for job in (first, *again)] == [None, first, first]
    assert statements.job_views(store.cur, None, 10, False, None)[2].reruns == tuple(again)


# ---- real daemons


def test_what_failed_is_run_again_on_those_hosts_alone(orchestra: OutsideOrchestra, command: Command) -> None:
    """The same key gives the same job; what matches nothing is an error, never everything."""
    ask = Ask(score="fail", targets=("a", "b", "c"), scope=Scope.ALL, params={"status": "3"}, priority=2, expire=3600)
    first = orchestra.submit(ask).job
    orchestra.cancel(first, ["c"])
    assert orchestra.wait(first, timeout=60).counts == {"failed": 2, "cancelled": 1}
    said = command("orchestra", "rerun", first, "--only", "failed", "--request-key", "again", "--wait")
    assert (said.returncode, said.stderr.splitlines()[-1].partition(": ")[2]) == (10, "failed (2 failed)")
    once_more = command("orchestra", "rerun", first, "--only", "failed", "--request-key", "again")
    second = int(once_more.stdout)
    assert "was made by this request key before" in once_more.stderr
    view = orchestra.job(second)
    assert (view.score, view.params, view.priority, view.rerun_of) == ("fail", {"status": "3"}, 2, first)
    assert abs(view.expires_at - view.created_at - 3_600_000) < 1_000
    assert [task.player for task in orchestra.tasks(second)] == ["a.demo.test", "b.demo.test"]
    assert orchestra.job(first).reruns == (second,)
    assert f"run again as job {second}" in command("getstatus", first).stdout
    assert f"a rerun of job {first}" in command("getstatus", second).stdout
    nothing = command("orchestra", "rerun", first, "--only", "lost")
    assert (nothing.returncode, nothing.stdout) == (64, "")
    assert f"Nothing of job {first} has ended as lost: it has 2 failed, 1 cancelled." in nothing.stderr
    with pytest.raises(RequestKeyConflict):
        orchestra.rerun(Rerun(job=first, only=NEVER, request_key="again"))
    with pytest.raises(NothingToRerun):
        orchestra.rerun(Rerun(job=first, only=(State.OK,)))
    with pytest.raises(BadRequest, match="say which outcomes"):
        orchestra.rerun(Rerun(job=first, only=(State.PENDING,)))
