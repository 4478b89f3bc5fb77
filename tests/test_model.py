"""Where a task goes when its run ends: every case, against the promises."""

import itertools

import pytest

from orchestra.model import MOVES, Scope, Standing, State, Told, after_run, verdict

STANDINGS = [
    Standing(
        scope=scope,
        idempotent=idempotent,
        max_attempts=2,
        losses=losses,
        maybe_ran=maybe_ran,
        cancel=cancel,
        expired=expired,
        candidates_left=left,
    )
    for scope, idempotent, losses, maybe_ran, cancel, expired, left in itertools.product(
        Scope, (True, False), (0, 1), (True, False), (True, False), (True, False), (0, 1)
    )
]
NEVER_STARTED = (State.CANCELLED, State.EXPIRED, State.REFUSED)


@pytest.mark.parametrize("told", list(Told))
def test_every_move_is_legal_and_keeps_what_may_have_run(told: Told) -> None:
    """'Never started' is said only when no attempt may have run, and that memory is never lost."""
    for task in STANDINGS:
        move = after_run(told, task)
        assert move.state in MOVES[State.DISPATCHED]
        assert move.maybe_ran >= task.maybe_ran
        assert not (move.state in NEVER_STARTED and move.maybe_ran)


def test_only_never_and_an_idempotent_loss_return_a_task() -> None:
    """Nothing else is tried again; a refusal only moves a one-of to its next candidate."""
    for task, told in itertools.product(STANDINGS, Told):
        if after_run(told, task).state is State.PENDING:
            assert not task.cancel
            assert not task.expired
            assert told is not Told.LOST or (task.idempotent and task.losses + 1 < task.max_attempts)
            assert told is not Told.REFUSED or (task.scope is Scope.ONE and task.candidates_left)
            assert told in (Told.NEVER, Told.LOST, Told.REFUSED)


def test_a_loss_counts_and_marks() -> None:
    """Only losses count against the attempts."""
    for task, told in itertools.product(STANDINGS, Told):
        move = after_run(told, task)
        assert move.losses == task.losses + (told is Told.LOST)
        assert told is not Told.LOST or move.maybe_ran


def test_an_outcome_never_changes() -> None:
    """Terminal states have no move."""
    assert not any(state.terminal for state in MOVES)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({State.OK: 2}, "ok"),
        ({State.OK: 1, State.FAILED: 1}, "partial"),
        ({State.LOST: 2}, "failed"),
        ({State.OK: 1, State.PENDING: 1}, ""),
        ({State.OK: 1, State.DISPATCHED: 1}, ""),
    ],
)
def test_the_verdict_waits_for_every_task(counts: dict[State, int], expected: str) -> None:
    """It is given when all have their outcome."""
    assert verdict(Scope.ALL, counts) == expected
