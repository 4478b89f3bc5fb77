"""Two thousand stories of a house under every fault, none of which may break a promise; and bugs that must be found.

Any other number by hand, from ``tests/``: ``python -m simulation --seed N --seeds M``.
"""

import os
from collections.abc import Iterator

import pytest
from simulation.plants import PLANTS, plant, stale_look
from simulation.run import tell
from simulation.tellers import Tellers, tellers

SEEDS = range(1, int(os.environ.get("ORCHESTRA_SEEDS", "2000")) + 1)
CHUNKS = [SEEDS[first : first + 50] for first in range(0, len(SEEDS), 50)]
SEARCHED = 300  # stories in which a planted bug must show
STEPS = {
    "adoption_by_pid_alone": ("kill_stage_of_a_family",),
    "answer_before_commit": ("kill_conductor_at_save", "submit"),
    "cancelled_after_lost": ("lost_and_cancelled",),
    "directory_after_the_fork": ("kill_stage_at_point", "submit"),
    "forgotten_before_the_fsync": ("kill_player_at_save", "submit"),
    "high_bumped_in_the_loop": ("kill_conductor_at_save", "submit"),
    "no_epoch_check_and_no_seq_fence": ("two_minds",),
    "no_tombstone": ("kill_conductor_at_save", "kill_player_at_save", "submit"),
    "old_stage_requests_not_fenced": ("new_player_while_the_stage_sleeps",),
    "one_of_moved_on_a_time_out": ("kill_player", "submit"),
    "removal_forgets_maybe_ran": ("lost_and_removed",),
    "requeue_on_disconnect": ("cut", "submit"),
    "restore_forgets_maybe_ran": ("restored_in_doubt",),
    "result_matched_without_attempt": ("lost_and_told_twice",),
    "retired_journal_accepted": ("journal_lost", "old_journal"),
    "seq_before_recheck": ("submit",),
    "spawn_before_save": ("kill_player_at_save", "submit"),
    "struck_candidate_not_rechecked": ("cancelled_on_one",),
    "wave_let_go_too_soon": ("submit",),
}
"""What has to happen often for a planted bug to be met soon."""


def first_to_tell(name: str) -> int | None:
    """The first story that a planted bug does not leave in order."""
    with plant(name):
        return next((seed for seed in range(1, SEARCHED) if tell(seed, favour=STEPS[name]).violations), None)


@pytest.fixture(scope="module")
def company() -> Iterator[Tellers]:
    with tellers(CHUNKS) as several:
        yield several


@pytest.mark.parametrize("chunk", CHUNKS, ids=lambda chunk: str(chunk[0]))
def test_no_promise_is_broken(chunk: range, company: Tellers) -> None:
    """Whatever fails when, every promise holds, and everything ends once the faults stop."""
    told = company.told(chunk)
    for story in told:
        assert not story.violations, story.report()
    assert [story.seed for story in told] == list(chunk)


def test_a_seed_is_a_story_that_can_be_told_again(company: Tellers) -> None:
    """The same seed, the same story to the last line; and in another process, which orders its sets otherwise."""
    one, other = tell(11, keep=True), tell(11, keep=True)
    assert one.trace
    assert one.trace == other.trace
    elsewhere = company.told(CHUNKS[0])
    here = [tell(story.seed) for story in elsewhere]
    assert [(story.counts, story.lasted) for story in elsewhere] == [(story.counts, story.lasted) for story in here]


@pytest.mark.parametrize("name", sorted(PLANTS))
def test_a_planted_bug_is_found(name: str) -> None:
    """The checker sees what each of the contract's rules is for, and that it is the planted bug it sees."""
    seed = first_to_tell(name)
    assert seed is not None, f"{SEARCHED} stories do not tell of it"
    story = tell(seed, favour=STEPS[name])
    assert not story.violations, story.report()


def test_a_claim_that_looks_at_old_rows_breaks_nothing() -> None:
    """The recheck makes it harmless: what a planted number before it breaks is the number's fault."""
    with stale_look():
        for seed in range(1, 20):
            story = tell(seed)
            assert not story.violations, story.report()
