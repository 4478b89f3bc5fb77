"""Where a task goes when its run ends: every case, against the promises."""

import itertools

import pytest
from msgspec.structs import replace

from orchestra.model import MOVES, Move, Scope, Standing, State, Told, after_run, unstarted, verdict

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
            assert told is not Told.REFUSED or (task.scope is not Scope.ALL and task.candidates_left)
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


def test_what_ran_is_what_the_player_said() -> None:
    """ok, failed and killed are outcomes whatever else waits for the task: a cancel that came too late, say."""
    for task, told in itertools.product(STANDINGS, (Told.OK, Told.FAILED, Told.KILLED)):
        assert after_run(told, task) == Move(State[told.name], task.maybe_ran, task.losses)


def test_a_never_goes_back_or_ends_as_what_waits_for_it() -> None:
    """A cancel comes before an expiry; either says 'lost' if an earlier attempt may have run."""
    for task in STANDINGS:
        waits = State.CANCELLED if task.cancel else State.EXPIRED if task.expired else State.PENDING
        state = State.LOST if task.maybe_ran and waits is not State.PENDING else waits
        stays = state is State.PENDING and task.maybe_ran and nobody_else(task)
        assert after_run(Told.NEVER, task) == Move(state, task.maybe_ran, task.losses, stays=stays)


def test_a_refusal_strikes_a_candidate_and_ends_when_none_is_left() -> None:
    """An all-of task has no other player; 'refused' too is said only if no attempt may have run."""
    for task in STANDINGS:
        move = after_run(Told.REFUSED, task)
        assert move.strike is (task.scope is not Scope.ALL)
        if task.scope is Scope.ALL or task.candidates_left == 0:
            assert move.state is (State.LOST if task.maybe_ran else State.REFUSED)
        else:
            assert move.state is after_run(Told.NEVER, task).state


def test_a_loss_is_lost_unless_the_score_is_idempotent_and_may_try_again() -> None:
    """Promise 4: the player has said it, attempts are left, and nobody has called it off."""
    for task in STANDINGS:
        again = task.idempotent and task.losses + 1 < task.max_attempts and not (task.cancel or task.expired)
        some = again and task.scope is Scope.SOME
        expected = Move(State.PENDING if again else State.LOST, True, task.losses + 1, some, some and nobody_else(task))
        assert after_run(Told.LOST, task) == expected


def nobody_else(task: Standing) -> bool:
    """Whether only the player that had it may have it again: others are there for what else waits."""
    return task.scope is Scope.SOME and task.candidates_left == 0


@pytest.mark.parametrize("words", list(itertools.product(Told, repeat=3)))
def test_no_chain_of_attempts_ends_as_never_started_after_one_may_have_run(words: tuple[Told, ...]) -> None:
    """The memory survives every return to pending, whatever the player says next."""
    for task in STANDINGS:
        may_have_run = task.maybe_ran
        for told in words:
            move = after_run(told, task)
            may_have_run = may_have_run or told is Told.LOST
            assert not (may_have_run and move.state in NEVER_STARTED)
            if move.state.terminal:
                break
            task = replace(task, maybe_ran=move.maybe_ran, losses=move.losses)
        assert task.losses <= task.max_attempts


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
def test_a_pending_task_that_may_have_run_is_lost(state: State) -> None:
    """It is called off, but nobody can say that it never started."""
    assert (unstarted(state, False), unstarted(state, True)) == (state, State.LOST)


def test_every_state_can_be_left_or_is_an_outcome() -> None:
    """No task hangs: each one moves, and its moves lead to an outcome."""
    assert {state for state in State if not state.terminal} == set(MOVES)
    for moves in MOVES.values():
        assert any(state.terminal for state in moves)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({State.OK: 2}, "ok"),
        ({State.OK: 1, State.FAILED: 1}, "partial"),
        ({State.LOST: 2}, "failed"),
        ({State.OK: 1, State.PENDING: 1}, ""),
        ({State.OK: 1, State.DISPATCHED: 1}, ""),
        ({State.OK: 5, State.HELD: 1}, ""),
        ({State.PENDING: 1}, ""),
        ({State.REFUSED: 1, State.CANCELLED: 1, State.EXPIRED: 1}, "failed"),
        ({State.KILLED: 1, State.OK: 1}, "partial"),
        ({State.OK: 0, State.LOST: 1}, "failed"),
        ({State.OK: 1, State.LOST: 0}, "ok"),
    ],
)
def test_the_verdict_waits_for_every_task(counts: dict[State, int], expected: str) -> None:
    """It is given when all have their outcome."""
    assert verdict(Scope.ALL, counts) == expected
