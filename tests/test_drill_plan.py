"""What a drill's seed decides: faults and requests, the same for the same seed."""

from collections import defaultdict
from itertools import islice, pairwise

import pytest

from orchestra.drill.ledger import SCORES
from orchestra.drill.plan import CONDUCTOR, KINDS, Fault, plan, witness
from orchestra.drill.requests import SHARES, Wish, wishes
from orchestra.model import Scope

SEEDS = range(30)
PLAYERS = "abc"


def faults(seed: int, seconds: float = 60.0) -> tuple[Fault, ...]:
    return plan(seed, seconds, PLAYERS)


def asked(seed: int, many: int = 400) -> list[Wish]:
    return list(islice(wishes(seed, PLAYERS), many))


def test_the_same_seed_is_the_same_drill() -> None:
    """A seed that found something finds it again, as far as the machine allows."""
    assert faults(7) == faults(7)
    assert asked(7) == asked(7)
    assert faults(7) != faults(8)
    assert asked(7) != asked(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_are_dense_and_every_kind_comes(seed: int) -> None:
    """One every two seconds or so, in a minute each kind at least once."""
    found = faults(seed)
    assert len(found) >= 30
    assert {fault.kind for fault in found} == set(KINDS)
    assert all(later.at - earlier.at < 4 for earlier, later in pairwise(found))
    assert all(0 <= fault.at < 60 and fault.at + fault.lasts <= 60.2 for fault in found)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_victim_has_one_fault_at_a_time(seed: int) -> None:
    """What is killed is not paused as well; other parts of the same player may suffer meanwhile."""
    by_victim: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults(seed):
        by_victim[fault.part, fault.victim].append(fault)
    for found in by_victim.values():
        assert all(earlier.at + earlier.lasts < later.at for earlier, later in pairwise(found))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_witness_lives_through_it_all(seed: int) -> None:
    """One player's processes are never ended, so that it can be seen whether they grow; it has the other faults."""
    ended = {fault.victim for fault in faults(seed, 300) if KINDS[fault.kind].ends_it}
    assert ended == {CONDUCTOR, "a", "b"}
    assert "c" in {fault.victim for fault in faults(seed, 300)}


def test_where_players_are_few_there_is_no_witness() -> None:
    """Two players: both may be killed."""
    assert witness("ab") is None
    assert {fault.victim for fault in plan(1, 300, "ab", ["kill player"])} == {"a", "b"}


def test_only_the_chosen_kinds_come() -> None:
    """And none at all, if none can."""
    assert {fault.kind for fault in plan(1, 60, PLAYERS, ["cut line", "kill stage"])} == {"cut line", "kill stage"}
    assert plan(1, 60, PLAYERS, []) == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_work_is_of_every_sort(seed: int) -> None:
    """All of and one of, long and short, failing, talkative, cancelled, expiring, with and without a key."""
    found = asked(seed)
    asks = [wish.ask for wish in found]
    assert {ask.score for ask in asks} == set(SCORES) == set(SHARES)
    assert all(bool(ask.private) == (ask.score == "sworn") for ask in asks)
    assert {ask.scope for ask in asks} == set(Scope)
    assert {bool(ask.expire) for ask in asks} == {bool(ask.request_key) for ask in asks} == {True, False}
    for key in ("seconds", "status"):
        assert {key in ask.params for ask in asks} == {True, False}
    assert any(int(ask.params.get("bytes", "0")) > 8192 for ask in asks)
    for trait in ("hasty", "repeat", "conflict", "cancel_after", "cancel_on"):
        assert {bool(getattr(wish, trait)) for wish in found} == {True, False}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_is_one_that_can_be_accepted(seed: int) -> None:
    """Keys and words are unique; nobody asks for a score that no target has, or repeats what has no key."""
    found = asked(seed)
    words = [wish.ask.params["word"] for wish in found]
    assert len(set(words)) == len(words)
    for wish in found:
        assert set(wish.ask.targets) <= set(PLAYERS)
        assert wish.ask.targets != ("c",) or wish.ask.score != "somewhere"
        assert wish.ask.request_key is not None or not (wish.repeat or wish.conflict)
