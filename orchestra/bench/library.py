"""The catalogue of a large fleet whose disks drift: what is asked of it from a shell, in the time of whole commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestra.bench import commands, figures, floors
from orchestra.bench.figures import Row
from orchestra.bench.sizes import Setting, Sizes
from orchestra.model import Catalogue, RefusedScore, ScoreEntry
from orchestra.store import sqlite, statements

ASKED: Final = (("scores",), ("scores", "--drift"), ("score", "score-000"), ("explain", "1"))
OTHERS: Final = 10  # one in so many players has another disk than most
CHANGED: Final = 5  # scores of such a disk that are other ones


def scores(setting: Setting) -> Iterator[Row]:
    """Wall time of the commands that look at the catalogue, and of explain on a job for all of the fleet."""
    sizes = setting.sizes
    with setting.hall(absent=sizes.library_players) as hall:
        stock(hall.house.home / "conductor" / "state", hall.absent, sizes)
        hall.start()
        targets = ("--targets-from", str(hall.house.home / "players"))
        commands.ran("scores", hall, ("submitjob", "score-000", "--all", *targets))
        floor = floors.imports(sizes.commands)
        for words in ASKED:
            line = ("orchestra", *words)
            commands.ran("scores", hall, line)
            meter = hall.meter()
            rounds = [[commands.ran("scores", hall, line) for _ in range(sizes.commands)] for _ in range(sizes.repeats)]
            cpu = meter.per(sizes.commands * sizes.repeats)
            what = f"{' '.join(line)}, {sizes.library_players} players, {sizes.library_scores} scores"
            yield figures.times(
                "scores", what, rounds, cpu=cpu, floor=floor, floor_is="python that imports reactor and pb"
            )


def stock(directory: Path, names: list[str], sizes: Sizes) -> None:
    """Have a store in which these players have told what is on their disks."""
    directory.mkdir(mode=0o700, parents=True)
    store = sqlite.Store(str(directory))
    store.open()
    connection = store.connect()
    cur = connection.cursor()
    cur.execute("BEGIN IMMEDIATE")
    ids = statements.sync_players(cur, names, 0).ids
    disks = [disk(number, sizes.library_scores) for number in range(sizes.library_disks)]
    for turn, player in enumerate(sorted(ids.values())):
        other = disks[turn // OTHERS % len(disks)]
        statements.announce(cur, player, other if turn % OTHERS == 0 else disks[0], 0)
    cur.execute("COMMIT")
    connection.close()
    store.close()


def disk(number: int, scores: int) -> Catalogue:
    """What most players have is number 0; others have some scores that are different, lack one, and refuse one."""
    changed = {(number * CHANGED + n) % scores for n in range(CHANGED)} if number else set()
    entries = [_entry(n, number if n in changed else 0) for n in range(scores)]
    if not number:
        return Catalogue.of(tuple(entries), ())
    lacking = entries.pop(number % scores)
    return Catalogue.of(tuple(entries), (RefusedScore(f"{lacking.name}-new", "writable by group or others"),))


def _entry(number: int, form: int) -> ScoreEntry:
    digest = f"{form:08x}{number:056x}"
    return ScoreEntry(f"score-{number:03d}", digest, f"Does thing {number}", "env", 3_600_000, 10_000, 1, False, 3)
