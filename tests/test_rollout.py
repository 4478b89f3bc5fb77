"""Rolling out: the words that ask for it, and real daemons that do it, killed in the middle."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.bench import fleet
from orchestra.bench.company import Company
from orchestra.cli.rollout import moment_of, rolling_of
from orchestra.cli.submit import submit
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import BadRequest, UsageError
from orchestra.model import Event, JobView, Rolling, State

NOON = datetime(2026, 11, 25, 12)
UTC_NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


# ---- the words


@pytest.mark.parametrize(
    ("words", "rolling"),
    [
        ("", None),
        ("--batch 10", Rolling(batch="10")),
        (
            "--batch 10% --canary 2 --max-failures 3 --pause 1m",
            Rolling(batch="10%", canary=2, max_failures="3", pause=60),
        ),
        ("--canary 1", Rolling(canary=1)),
        ("--max-failures 5%", Rolling(max_failures="5%")),
        ("--pause 30s", None),
    ],
)
def test_waves_in_words(words: str, rolling: Rolling | None) -> None:
    """All of them are options of ``submitjob``; a pause needs something to be between."""
    options: dict[str, Any] = submit.make_context("submitjob", [*words.split(), "uptime", "web1"]).params
    if words.startswith("--pause"):
        with pytest.raises(UsageError, match="--pause is one between waves"):
            rolling_of(options)
    else:
        assert rolling_of(options) == rolling


@pytest.mark.parametrize(
    ("text", "after_noon"),
    [
        ("13:00", HOUR),
        ("13:00:30", HOUR + 30),
        ("12:00", 24 * HOUR),
        ("11:00", 23 * HOUR),
        ("2026-11-26", 12 * HOUR),
        ("2026-11-25T14:00", 2 * HOUR),
        ("2026-11-24T12:00", -24 * HOUR),
        ("90m", 1.5 * HOUR),
        ("2d", 48 * HOUR),
        ("30", 30),
    ],
)
def test_a_moment_is_the_next_of_its_name(text: str, after_noon: float) -> None:
    """A time of day, a date, or so long from now."""
    assert moment_of(text, NOON) - NOON.timestamp() == after_noon


def test_a_moment_may_say_where() -> None:
    """Then this machine's clock says nothing."""
    assert moment_of("2026-11-25T13:00+01:00", NOON) == UTC_NOON
    assert moment_of("2026-11-25T12:00Z", NOON) == UTC_NOON


@pytest.mark.parametrize("text", ["", "noon", "25:00", "2026-13-01", "-1h", "1e9d", ":", "9999999999d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    """With a word on what would be one."""
    with pytest.raises(ValueError, match="expected a time such as 22:00"):
        moment_of(text, NOON)
    with pytest.raises(click.BadParameter, match="expected a time such as"):
        submit.make_context("submitjob", [f"--not-before={text}", "uptime", "web1"])


# ---- two hundred players

MANY = 200
NAMES = fleet.names("e", MANY, "emulated.test")
FAILING = (NAMES[41], NAMES[87], NAMES[150])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A conductor and two hundred emulated players, three of which fail at everything."""
    built = Theatre(tmp_path_factory.mktemp("h"), [])
    built.build(None)
    (built.home / "players").write_text("".join(f"{name}\n" for name in NAMES))
    built.start_conductor()
    company = Company(
        [
            f"--conductor={built.conductor_name}@127.0.0.1:{built.port}",
            f"--authority={built.home / 'ca'}",
            "--seconds=0.02",
            *(f"--failing={name}" for name in FAILING),
        ],
        MANY,
        built.home / "log" / "emulate.log",
    )
    try:
        company.connected()
        yield built
    finally:
        company.stop()
        built.close()


@pytest.fixture(scope="module")
def asker(house: Theatre) -> Iterator[OutsideOrchestra]:
    with OutsideOrchestra(str(house.socket)) as client:
        yield client


def roll(asker: OutsideOrchestra, **how: Any) -> int:
    ask = Ask(score="noop", targets=tuple(reversed(NAMES)), scope=Scope.ALL, rolling=Rolling(**how))
    return int(asker.submit(ask).job)


def until_ended(asker: OutsideOrchestra, job: int, many: int, house: Theatre) -> None:
    """Until so many of its tasks have an outcome."""
    log = house.home / "log" / "conductor.log"
    wait_until(lambda: ended(asker.job(job)) >= many, f"{many} outcomes", log)


def ended(job: JobView) -> int:
    return sum(many for state, many in job.counts.items() if State[state.upper()].terminal)


class Wave:
    """What the events of a job say of one wave."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.dispatched: list[int] = []
        self.ended: Counter[str] = Counter()
        self.open = 0
        self.most = 0

    def take(self, event: Event) -> None:
        assert event.task is not None
        if event.kind == "dispatched":
            self.dispatched.append(event.task)
            self.open += 1
            self.most = max(self.most, self.open)
        elif event.kind in ("ok", "failed"):
            self.ended[event.kind] += 1
            self.open -= 1
        else:  # it was on its way when the conductor died, never started, and is handed out again
            assert event.kind == "pending"
            self.dispatched.remove(event.task)
            self.open -= 1


def waves_in(events: Sequence[Event]) -> list[Wave]:
    """The waves as they went; nothing of one begins before the one before it is over."""
    found: list[Wave] = []
    for event in events:
        if event.kind == "wave":
            assert not found or (found[-1].open, sorted(found[-1].dispatched)) == (0, tasks_of(len(found)))
            found.append(Wave(event.detail))
        elif event.task is not None and event.kind != "cancelled":
            found[-1].take(event)
    return found


def tasks_of(wave: int) -> list[int]:
    return list(range(10 * (wave - 1), 10 * wave))


def test_a_roll_out_over_two_hundred_hosts_outlives_two_deaths_of_the_conductor(
    house: Theatre, asker: OutsideOrchestra
) -> None:
    """Every wave exactly once, ten at a time, each after the one before; three may fail, and three do."""
    job = roll(asker, batch="5%", max_failures="3")
    for many in (45, 125):
        until_ended(asker, job, many, house)
        house.kill("conductor")
        house.start_conductor()
    view = asker.wait(job, timeout=120)
    assert (view.counts, view.verdict) == ({"ok": 197, "failed": 3}, "partial")
    events = list(asker.events(job))
    assert [event.n for event in events] == list(range(1, view.last_event + 1))
    waves = waves_in(events)
    assert [wave.title for wave in waves] == [f"wave {n} of 20: 10 tasks" for n in range(1, 21)]
    assert [sorted(wave.dispatched) for wave in waves] == [tasks_of(n) for n in range(1, 21)]
    assert {wave.most for wave in waves} <= set(range(1, 11))
    assert sum((wave.ended for wave in waves), Counter()) == {"ok": 197, "failed": 3}
    tasks = list(asker.tasks(job))
    assert [task.player for task in tasks] == NAMES
    assert [task.player for task in tasks if task.state == "failed"] == list(FAILING)


def test_a_roll_out_with_more_failures_than_allowed_stops_there(house: Theatre, asker: OutsideOrchestra) -> None:
    """Though the conductor was killed on the way; what has not begun never does, and says why."""
    job = roll(asker, batch="10", max_failures="1")
    until_ended(asker, job, 45, house)
    house.kill("conductor")
    house.start_conductor()
    view = asker.wait(job, timeout=120)
    waves = waves_in(asker.events(job))
    assert (len(waves), waves[8].ended["failed"]) == (9, 1)
    assert view.counts["failed"] == 2
    assert view.counts["ok"] + view.counts["cancelled"] == 198
    assert 88 <= view.counts["ok"] + 2 <= 90
    assert view.course is not None
    assert view.course.stopped == "stopped: 2 failed: that is more than max_failures, 1"
    never = [task for task in asker.tasks(job) if task.state == "cancelled"]
    assert {task.reason for task in never} == {view.course.stopped}
    assert {task.attempt for task in never if task.task >= 90} == {0}


def test_a_canary_that_fails_is_the_last(asker: OutsideOrchestra) -> None:
    """However many might fail later."""
    ask = Ask(
        score="noop",
        targets=(FAILING[0], *NAMES[50:60]),
        scope=Scope.ALL,
        rolling=Rolling(canary=1, batch="50%", max_failures="100%"),
    )
    view = asker.wait(asker.submit(ask).job, timeout=60)
    assert view.counts == {"failed": 1, "cancelled": 10}
    assert view.course.stopped == "stopped: every canary must be ok: 1 failed"


def test_a_paused_job_waits_for_its_resume_whoever_dies(house: Theatre, asker: OutsideOrchestra) -> None:
    """Between two waves, and over a restart; every status says so."""
    ask = Ask(score="noop", targets=tuple(NAMES[:4]), scope=Scope.ALL, rolling=Rolling(batch="2", pause=0.5))
    job = asker.submit(ask).job
    done = asker.pause(job)
    until_ended(asker, job, 2, house)
    house.kill("conductor")
    house.start_conductor()
    assert not asker.pause(job).new
    view = asker.job(job)
    assert (view.paused, view.counts) == (done.paused, {"ok": 2, "held": 2})
    assert {task.why.split(",")[0] for task in asker.tasks(job) if task.state == "held"} == {
        f"waits: the job is paused since {when(done.paused.at)} by {done.paused.owner}"
    }
    assert asker.resume(job).was == done.paused
    assert asker.wait(job, timeout=60).verdict == "ok"


def when(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def test_a_job_begins_when_it_was_to_begin(asker: OutsideOrchestra) -> None:
    """By the conductor's clock, and expires so long after that."""
    moment = datetime.now(UTC).timestamp() + 2
    job = asker.submit(Ask(score="noop", targets=(NAMES[0],), scope=Scope.ALL, not_before=moment, expire=60)).job
    view = asker.job(job)
    assert (view.counts, view.not_before, view.expires_at) == (
        {"held": 1},
        int(moment * 1000),
        int(moment * 1000) + 60_000,
    )
    assert asker.wait(job, timeout=60).verdict == "ok"
    [task] = asker.tasks(job)
    assert task.dispatched_at >= moment * 1000


def test_only_all_of_jobs_roll(asker: OutsideOrchestra) -> None:
    """One of some hosts is not to be done in waves."""
    ask = Ask(score="noop", targets=tuple(NAMES[:4]), scope=Scope.ONE, rolling=Rolling(batch="2"))
    with pytest.raises(BadRequest, match="only a job for all of its targets rolls"):
        asker.submit(ask)
    with pytest.raises(BadRequest, match="'batch' is a whole number"):
        asker.submit(Ask(score="noop", targets=("e00001.emulated.test",), scope=Scope.ALL, rolling=Rolling(batch="x")))
