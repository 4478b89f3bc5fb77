"""The cases with real players: scores are run, as processes, with everything on disk."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from orchestra.audience.client import Orchestra
from orchestra.bench import figures, floors
from orchestra.bench.figures import Row
from orchestra.bench.hall import MEGABYTE, TIMEOUT, Hall, ask, check
from orchestra.bench.processes import resident
from orchestra.bench.sizes import Setting
from orchestra.errors import BenchFailed
from orchestra.model import JobView, TaskView

AT_ONCE = 25
PLAYER = "alpha"


def latency(setting: Setting) -> Iterator[Row]:
    """Submit to end of a trivial score on one real player, one job after another."""
    sizes = setting.sizes
    each = max(1, sizes.latency_jobs // sizes.repeats)
    with setting.hall([PLAYER]) as hall:
        hall.start()
        hall.do(one_by_one(hall, "latency", "true", PLAYER, 20))
        meter = hall.meter()
        rounds = [hall.do(one_by_one(hall, "latency", "true", PLAYER, each)) for _ in range(sizes.repeats)]
        cpu = meter.per(each * sizes.repeats)
        memory = sum(map(resident, (hall.house.pid(PLAYER), *hall.house.stages()))) / 1e6
        floor = floors.run(hall.house.home, str(hall.house.home / "scores" / "true"), sizes.floor_times)
    yield figures.times(
        "latency",
        "submit to end, trivial score",
        rounds,
        cpu=cpu,
        floor=floor,
        floor_is="4 fsyncs, bare spawn and reap",
    )
    yield figures.values("latency", "memory of the player and its stage, after that", "MB", [memory])


async def one_by_one(hall: Hall, case: str, score: str, player: str, many: int) -> list[float]:
    """The seconds from each submit to its job's end."""
    client = await hall.client()
    took = []
    for _ in range(many):
        begun = time.perf_counter()
        job = await client.perform(ask(score, [player]), timeout=TIMEOUT)
        took.append(time.perf_counter() - begun)
        check(case, job, 1)
    return took


def runs(setting: Setting) -> Iterator[Row]:
    """Trivial scores per second: what waits for one real player and for several, and jobs that come in meanwhile."""
    sizes = setting.sizes
    floor = floors.twisted_spawns(sizes.run_jobs)
    others = floors.xargs_spawns(sizes.run_jobs)
    with setting.hall([f"p{n}" for n in range(1, sizes.run_players + 1)]) as hall:
        hall.start()
        for players in (hall.real[:1], hall.real):
            yield _backlog(hall, setting, players, floor)
        yield _flood(hall, setting)
    if others is not None:
        yield figures.values("runs", f"for comparison: xargs -P{os.cpu_count()} /bin/true", "/s", [others])


def _backlog(hall: Hall, setting: Setting, players: Sequence[str], floor: float) -> Row:
    """Runs per second from the first start to the last commit, of jobs that were waiting."""
    sizes = setting.sizes
    jobs = sizes.run_jobs // len(players)
    found, cpu = [], {}
    for _ in range(sizes.repeats):
        with _paused(hall, players):
            numbers = hall.do(_submit(hall, players, jobs))
            meter = hall.meter()
        ended = hall.do(_all_of(hall, numbers, len(players)))
        cpu = meter.per(jobs * len(players))
        tasks = hall.do(_tasks(hall, numbers))
        first = min(task.started_at or 0 for task in tasks)
        last = max(job.ended_at or 0 for job in ended)
        found.append(1000 * len(tasks) / (last - first))
    what = f"trivial scores on {len(players)} real player{'s' if len(players) > 1 else ''}"
    return figures.values("runs", what, "/s", found, cpu=cpu, floor=floor, floor_is="Twisted's bare spawn and reap")


@contextmanager
def _paused(hall: Hall, players: Sequence[str]) -> Iterator[None]:
    """Players do nothing for a while; what they are sent waits in the line."""
    pids = [hall.house.pid(player) for player in players]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _submit(hall: Hall, players: Sequence[str], jobs: int) -> list[int]:
    client = await hall.client()
    numbers: list[int] = []
    for begin in range(0, jobs, AT_ONCE):
        some = [client.submit(ask("true", players)) for _ in range(min(AT_ONCE, jobs - begin))]
        numbers += [receipt.job for receipt in await hall.at_once(some)]
    return numbers


async def _all_of(hall: Hall, numbers: Sequence[int], tasks: int) -> list[JobView]:
    """The jobs, ended; the last one is awaited first, so that asking costs little meanwhile."""
    client = await hall.client()
    ended = [await client.wait(number, timeout=TIMEOUT) for number in reversed(numbers)]
    for job in ended:
        check("runs", job, tasks)
    return ended


async def _tasks(hall: Hall, numbers: Sequence[int]) -> list[TaskView]:
    client = await hall.client()
    found = [task for number in numbers async for task in client.tasks(number)]
    again = [task for task in found if task.attempt != 1]
    if again:
        raise BenchFailed(case="runs", problem=f"{len(again)} tasks took more than one attempt")
    return found


def _flood(hall: Hall, setting: Setting) -> Row:
    """Jobs per second when each is submitted, run and awaited, so many at once, on one player."""
    sizes = setting.sizes
    found, cpu = [], {}
    for _ in range(sizes.repeats):
        meter = hall.meter()
        begun = time.perf_counter()
        hall.do(_performed(hall, hall.real[:1], sizes.run_jobs))
        found.append(sizes.run_jobs / (time.perf_counter() - begun))
        cpu = meter.per(sizes.run_jobs)
    return figures.values("runs", f"jobs submitted, run and awaited, {AT_ONCE} at once", "/s", found, cpu=cpu)


async def _performed(hall: Hall, players: Sequence[str], jobs: int) -> None:
    client = await hall.client()

    async def hand(many: int) -> None:
        for _ in range(many):
            check("runs", await client.perform(ask("true", players), timeout=TIMEOUT), len(players))

    shares = [jobs // AT_ONCE + (n < jobs % AT_ONCE) for n in range(AT_ONCE)]
    await hall.at_once([hand(share) for share in shares if share])


def output(setting: Setting) -> Iterator[Row]:
    """Runs that each print a megabyte: how fast it is read, and that no memory grows with it."""
    many = setting.sizes.outputs
    with setting.hall([PLAYER]) as hall:
        hall.start()
        hall.do(_print_much(hall, 2))
        meter = hall.meter()
        begun = time.perf_counter()
        hall.do(_print_much(hall, many))
        took = time.perf_counter() - begun
        cpu = meter.per(many)
        daemons = {"conductor": hall.house.pid("conductor"), "player": hall.house.pid(PLAYER)}
        daemons["stage"] = hall.house.stages()[0]
        peaks = {name: resident(pid, peak=True) / 1e6 for name, pid in daemons.items()}
    yield figures.values("output", f"{many} runs that print 1 MB", "MB/s", [many * MEGABYTE / 1e6 / took], cpu=cpu)
    for name, peak in peaks.items():
        yield figures.values("output", f"{name}: most memory meanwhile", "MB", [peak])


async def _print_much(hall: Hall, many: int) -> None:
    client = await hall.client()

    async def hand(jobs: int) -> None:
        for _ in range(jobs):
            await _print_once(client)

    hands = min(4, many)
    await hall.at_once([hand(many // hands + (n < many % hands)) for n in range(hands)])


async def _print_once(client: Orchestra) -> None:
    job = await client.perform(ask("megabyte", [PLAYER]), timeout=TIMEOUT)
    check("output", job, 1)
    [task] = [task async for task in client.tasks(job.job)]
    if task.stdout.total != MEGABYTE:
        raise BenchFailed(case="output", problem=f"{task.stdout.total} bytes of {MEGABYTE} were counted")
