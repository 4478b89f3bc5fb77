"""The catalogue of a large fleet whose disks drift, its groups and its facts: what is asked of it from a shell, in the
time of whole commands."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestra.bench import commands, figures, floors
from orchestra.bench.figures import Row
from orchestra.bench.sizes import Setting, Sizes
from orchestra.model import Catalogue, Facts, RefusedScore, ScoreEntry
from orchestra.store import sqlite, statements

WHERE: Final = ("--where", "os=debian and not role in (db, mail) or memory >= 65536")
ASKED: Final = (
    ("scores",),
    ("scores", "--drift"),
    ("score", "score-000"),
    ("explain", "1"),
    ("targets", "@all!@most-0", *WHERE),
    ("submit", "score-000", "@all", "--all", "--plan"),
    ("submit", "score-000", "@all", *WHERE, "--some", "100", "--plan"),
)
IN_A_GROUP: Final = 5  # groups in a group of groups
OTHERS: Final = 10  # one in so many players has another disk than most
CHANGED: Final = 5  # scores of such a disk that are other ones


def scores(setting: Setting) -> Iterator[Row]:
    """Wall time of the commands that look at the catalogue, and of explain on a job for all of the fleet."""
    sizes = setting.sizes
    with setting.hall(absent=sizes.library_players) as hall:
        stock(hall.house.home / "conductor" / "state", hall.absent, sizes)
        (hall.house.home / "groups").write_text(groups(hall.absent, sizes.library_groups))
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
            what = f"{' '.join(line)}, {sizes.library_players} players, {sizes.library_scores} scores, "
            what += f"{sizes.library_groups} groups"
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
        statements.announce_facts(cur, player, machine(turn))
    cur.execute("COMMIT")
    connection.close()
    store.close()


def groups(names: Sequence[str], many: int) -> str:
    """A groups file: four in five groups have hosts, the others groups, and ``most-0`` half of all that."""
    leaves = max(many * (IN_A_GROUP - 1) // IN_A_GROUP, 1)
    lines = [f"rack-{n}: {' '.join(names[n::leaves])}" for n in range(leaves)]
    nested = many - leaves - 1
    lines += [f"row-{n}: {' '.join(f'@rack-{m}' for m in range(n, leaves, max(nested, 1)))}" for n in range(nested)]
    return "\n".join([*lines, "most-0: " + " ".join(f"@row-{n}" for n in range(0, nested, 2)), ""])


def machine(number: int) -> Facts:
    """What is known of a player's machine; about every tenth knows what another one does."""
    role = ("web", "web", "db", "mail", "cache")[number % 5]
    memory = str(15_900 + number * 7 % 997)
    return Facts.of({"os": "debian", "release": "12", "cores": "8", "memory": memory, "role": role, "virtual": "kvm"})


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
