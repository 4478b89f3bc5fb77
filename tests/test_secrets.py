"""Secret parameters in the store: sealed while they are needed, gone when the job has ended, never told to anybody."""

from collections.abc import Callable
from typing import Any

import pytest
from storehouse import Storehouse, report

from orchestra.errors import RequestKeyConflict
from orchestra.model import Scope, Secrets, Told
from orchestra.store import statements

SEALED = Secrets(("password",), b"sealed", b"likeness")


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def kept(store: Storehouse, job: int) -> Any:
    return store.cur.execute("SELECT sealed FROM job_params WHERE job_id = ?", (job,)).fetchone()[0]


def test_a_claim_hands_out_what_is_sealed_and_a_view_only_the_names(store: Storehouse) -> None:
    job = store.submit([1, 2], secrets=SEALED)
    other = store.submit([1])
    claimed = store.claimed(1)
    assert claimed.sealed == {job: b"sealed"}
    assert [(run.job, run.secrets) for run in claimed.runs] == [(job, {}), (other, {})]
    view = statements.job_view(store.cur, job)
    assert (view.secrets, view.params) == (("password",), {"path": "/"})
    assert statements.job_view(store.cur, other).secrets == ()


Ending = Callable[[Storehouse, int], object]


@pytest.mark.parametrize(
    "end",
    [
        lambda store, job: store.settle(1, report(store.claim(1)[0], Told.OK)),
        lambda store, job: store.settle(1, report(store.claim(1)[0], Told.LOST)),
        lambda store, job: store.settle(1, report(store.claim(1)[0], Told.REFUSED)),
        lambda store, job: statements.cancel(store.cur, job, None, "anne", 5),
        lambda store, job: store.claim(1, now=1_000),
        lambda store, job: statements.expire(store.cur, 1_000),
    ],
)
@pytest.mark.parametrize("scope", list(Scope))
def test_what_is_sealed_goes_when_the_job_ends(store: Storehouse, end: Ending, scope: Scope) -> None:
    """However it ends; the names stay."""
    job = store.submit([1], scope, secrets=SEALED, expires_at=1_000)
    assert kept(store, job) == b"sealed"
    end(store, job)
    assert statements.job_view(store.cur, job).verdict
    assert kept(store, job) is None
    assert statements.job_view(store.cur, job).secrets == ("password",)


def test_what_is_sealed_stays_while_a_task_needs_it(store: Storehouse) -> None:
    """Another host, or another attempt."""
    job = store.submit([1, 2], secrets=SEALED, idempotent=True)
    store.settle(1, report(store.claim(1)[0], Told.OK))
    store.settle(2, report(store.claim(2)[0], Told.NEVER))
    store.settle(2, report(store.claim(2)[0], Told.LOST))
    assert kept(store, job) == b"sealed"
    store.settle(2, report(store.claim(2)[0], Told.OK))
    assert kept(store, job) is None


def test_a_request_key_tells_other_secrets_from_the_same(store: Storehouse) -> None:
    """Sealed twice they look different; what is alike is told by what is keyed."""
    job = store.submit([1], request_key="k", secrets=SEALED)
    again = store.submitted([1], request_key="k", secrets=Secrets(("password",), b"sealed anew", b"likeness"))
    assert (again.job, again.created) == (job, False)
    for other in (None, Secrets(("password",), b"sealed", b"unlike")):
        with pytest.raises(RequestKeyConflict):
            store.submit([1], request_key="k", secrets=other)


def test_a_rehearsal_is_told_everywhere(store: Storehouse) -> None:
    """To the player, to whoever looks, and in the history; with its key it is another request than the real thing."""
    job = store.submit([1], dry_run=True, request_key="k")
    assert store.claim(1)[0].dry_run
    assert statements.job_view(store.cur, job).dry_run
    assert statements.events(store.cur, job, 0, 1)[0].detail == "1 tasks, a dry run"
    with pytest.raises(RequestKeyConflict):
        store.submit([1], request_key="k")
