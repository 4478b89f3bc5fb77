"""The cases with emulated players: what the conductor takes, with nothing being run."""

import time
from collections.abc import Iterator, Sequence

from orchestra.bench import figures, processes
from orchestra.bench.figures import Row
from orchestra.bench.hall import EMULATED, TIMEOUT, Hall, ask, check, check_performed
from orchestra.bench.performing import one_by_one
from orchestra.bench.sizes import Setting
from orchestra.bench.warehouse import Warehouse
from orchestra.errors import BenchFailed, OrchestraError

BEAT = 30.0  # seconds between two beats of an emulated player
SUBMIT_EVERY = 0.1
TRY_AGAIN = 0.05


def dispatch(setting: Setting) -> Iterator[Row]:
    """Tasks per second through the conductor and many emulated players: several all-of jobs at once."""
    sizes = setting.sizes
    tasks = sizes.dispatch_players * sizes.dispatch_jobs
    with Warehouse(setting.home / "floor", sizes.dispatch_players) as warehouse:
        floor = warehouse.both(tasks)
    with setting.hall(emulated=sizes.dispatch_players) as hall:
        hall.start()
        hall.fill()
        hall.do(_all_of(hall, "dispatch", hall.emulated, 1))
        found, meter = [], hall.meter()
        for _ in range(sizes.repeats):
            begun = time.perf_counter()
            hall.do(_all_of(hall, "dispatch", hall.emulated, sizes.dispatch_jobs))
            found.append(tasks / (time.perf_counter() - begun))
        cpu = meter.per(tasks * sizes.repeats)
        check_performed("dispatch", hall, tasks * sizes.repeats + sizes.dispatch_players)
    what = f"tasks through {sizes.dispatch_players} emulated players, {sizes.dispatch_jobs} each"
    yield figures.values("dispatch", what, "/s", found, cpu=cpu, floor=floor, floor_is="the store alone")


async def _all_of(hall: Hall, case: str, players: Sequence[str], jobs: int) -> None:
    client = await hall.client()
    works = [client.perform(ask(EMULATED, players), timeout=TIMEOUT) for _ in range(jobs)]
    for job in await hall.at_once(works):
        check(case, job, len(players))


def fanout(setting: Setting) -> Iterator[Row]:
    """One all-of job over ever more emulated players, until every result is committed."""
    sizes = setting.sizes
    rows = []
    with setting.hall(emulated=max(sizes.fans)) as hall:
        hall.start()
        hall.fill()
        hall.do(_all_of(hall, "fanout", hall.emulated, 1))
        for players in sizes.fans:
            rows.append(_fan(hall, players, sizes.repeats))
            yield rows[-1]
        done = len(hall.emulated) + sum(sizes.fans) * sizes.repeats
        check_performed("fanout", hall, done)
    yield figures.values("fanout", "growth exponent (1: straight)", "", [figures.growth(rows)])


def _fan(hall: Hall, players: int, repeats: int) -> Row:
    took, meter = [], hall.meter()
    for _ in range(repeats):
        begun = time.perf_counter()
        hall.do(_all_of(hall, "fanout", hall.emulated[:players], 1))
        took.append([time.perf_counter() - begun])
    cpu = meter.per(players * repeats)
    return figures.times("fanout", f"all of {players} emulated players", took, cpu=cpu, size=players)


def fleet(setting: Setting) -> Iterator[Row]:
    """Many connections: what they take to come, to be there, and to come back after kill -9 of the conductor."""
    sizes = setting.sizes
    with setting.hall(emulated=sizes.fleet) as hall:
        hall.start()
        before = processes.resident(hall.house.pid("conductor"))
        meter = hall.meter()
        took = hall.fill()
        cpu = meter.per(sizes.fleet) | {"emulator": 1000 * processes.cpu(hall.company_pid) / sizes.fleet}
        memory = (processes.resident(hall.house.pid("conductor")) - before) / sizes.fleet / 1000
        yield figures.values("fleet", "players let in", "/s", [sizes.fleet / took], cpu=cpu, size=sizes.fleet)
        yield figures.values("fleet", "conductor's memory per player", "kB", [memory], size=sizes.fleet)
        yield _idle(hall, sizes.idle_seconds)
        yield from _restart(hall)


def _idle(hall: Hall, seconds: float) -> Row:
    """What the conductor spends on players that only beat, from the moment on when all were there."""
    hall.leave()
    meter = hall.meter()
    begun = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - begun
    beats = len(hall.emulated) * took / BEAT
    share = 100 * meter.spent()["conductor"] / took
    what = f"{len(hall.emulated)} idle players, for {seconds:.0f} s; CPU of a beat"
    return figures.values("fleet", what, "% of a core", [share], cpu=meter.per(round(beats)), size=len(hall.emulated))


def _restart(hall: Hall) -> Iterator[Row]:
    """Kill the conductor, start it, and ask for work all the time until everybody is back."""
    assert hall.company is not None
    begun = time.perf_counter()
    hall.house.kill("conductor")
    hall.house.start_conductor()
    started = time.perf_counter() - begun
    submits = hall.do(_submitting(hall))
    back = hall.company.connected()
    what = f"{len(hall.emulated)} players"
    yield figures.values("fleet", "conductor answers again after kill -9", "s", [started])
    yield figures.values("fleet", f"{what} are back after that", "s", [back], size=len(hall.emulated))
    yield figures.times("fleet", f"{len(submits)} submits meanwhile, none refused", [submits], cpu={})


async def _submitting(hall: Hall) -> list[float]:
    """Submit until all players are back. The seconds each took; then all must end well."""
    assert hall.company is not None
    client = await hall.client()
    took: list[float] = []
    jobs: list[int] = []
    end = time.monotonic() + TIMEOUT
    while not hall.company.complete() or not took:
        begun = time.perf_counter()
        player = hall.emulated[len(jobs) % len(hall.emulated)]
        try:
            jobs.append((await client.submit(ask(EMULATED, [player]))).job)
        except OrchestraError as problem:
            raise BenchFailed(case="fleet", problem=f"a submit was refused: {problem.sentence}") from None
        took.append(time.perf_counter() - begun)
        if time.monotonic() > end:
            raise BenchFailed(case="fleet", problem=f"not all players were back after {TIMEOUT:.0f} s")
        await hall.pause(SUBMIT_EVERY)
    for job in jobs:
        check("fleet", await client.wait(job, timeout=TIMEOUT), 1)
    return took


def depth(setting: Setting) -> Iterator[Row]:
    """Ever more tasks that wait for absent players: what another player, the memory and a start notice of it."""
    sizes = setting.sizes
    with setting.hall(emulated=1, absent=sizes.absent) as hall:
        hall.start()
        hall.fill()
        there = 0
        for tasks in sizes.depths:
            if tasks > there:
                yield _pile_up(hall, tasks - there, tasks)
                there = tasks
            yield from _deep(hall, tasks, sizes.depth_jobs, sizes.repeats)


def _pile_up(hall: Hall, more: int, depth: int) -> Row:
    jobs = max(1, more // len(hall.absent))
    meter = hall.meter()
    begun = time.perf_counter()
    hall.do(_submit_absent(hall, jobs))
    took = time.perf_counter() - begun
    tasks = jobs * len(hall.absent)
    what = f"tasks submitted, up to {depth:,} pending"
    return figures.values("depth", what, "/s", [tasks / took], cpu=meter.per(tasks), size=depth)


async def _submit_absent(hall: Hall, jobs: int) -> None:
    client = await hall.client()
    before = (await client.about()).pending
    for _ in range(jobs):
        await client.submit(ask(EMULATED, hall.absent))
    pending = (await client.about()).pending - before
    if pending != jobs * len(hall.absent):
        raise BenchFailed(case="depth", problem=f"{pending} tasks are pending of {jobs * len(hall.absent)} submitted")


def _deep(hall: Hall, depth: int, jobs: int, repeats: int) -> Iterator[Row]:
    assert hall.company is not None
    [player] = hall.emulated
    each = max(1, jobs // repeats)
    hall.do(one_by_one(hall, "depth", EMULATED, player, each))
    meter = hall.meter()
    rounds = [hall.do(one_by_one(hall, "depth", EMULATED, player, each)) for _ in range(repeats)]
    cpu = meter.per(each * repeats)
    yield figures.times("depth", f"another player's latency, {depth:,} pending", rounds, cpu=cpu, size=depth)
    memory = processes.resident(hall.house.pid("conductor")) / 1e6
    yield figures.values("depth", f"conductor's memory, {depth:,} pending", "MB", [memory], size=depth)
    hall.leave()
    hall.house.stop("conductor")
    begun = time.perf_counter()
    hall.house.start_conductor()
    yield figures.values("depth", f"start, {depth:,} pending", "s", [time.perf_counter() - begun], size=depth)
    hall.company.connected()
