"""``orchestra bench``: measure this machine, each figure beside its floor in the same run."""

import resource
import tempfile
from pathlib import Path

import click
import msgspec

from orchestra.bench import cases, picture, table
from orchestra.bench.figures import Report, Row
from orchestra.bench.hall import House
from orchestra.bench.sizes import QUICK, Setting, Sizes
from orchestra.cli.session import SETTINGS
from orchestra.cli.theatre import Theatre
from orchestra.errors import FileProblem

MARK = "ob-"  # short: the path of a socket has 107 bytes at most


@click.command("bench", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice(list(cases.CASES)), help="A case to run; may be repeated.")
@click.option("--quick", is_flag=True, help="Small sizes, under a minute: that it works, not how fast it is.")
@click.option("--dir", "place", metavar="DIR", help="Where to put the stores and journals: the disk that is measured.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(), help="Write all figures, as JSON.")
@click.option("--picture", "picture_file", metavar="FILE", type=click.Path(), help="Draw fan-out and latency, as SVG.")
@click.option(
    "--table", "told", metavar="FILE", type=click.Path(), help="Measure nothing; show what --json wrote, in rst."
)
def bench(
    only: tuple[str, ...],
    quick: bool,
    place: str | None,
    json_file: str | None,
    picture_file: str | None,
    told: str | None,
) -> None:
    """Measure latency, rates and memory on this machine, each beside its floor.

    Starts real daemons with TLS and stores on disk, and emulated players. Every result is checked too: one that is
    missing or wrong ends it with an error. CPU each is what an operation costs each process, in milliseconds.
    """
    if told:
        print(table.rst(_read(told)), end="")
        return
    _enough_files()
    print(table.HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix=MARK, dir=place) as home:
        setting = Setting(QUICK if quick else Sizes(), Path(home), _theatre)
        report = cases.run(setting, only or list(cases.CASES), _tell)
    print(f"\n{table.conditions(report)}")
    if json_file:
        _write(json_file, msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    if picture_file:
        _write(picture_file, picture.svg(report.rows))


def _theatre(home: Path, players: object) -> House:
    assert isinstance(players, list | tuple)
    return Theatre(home, players)


def _tell(row: Row) -> None:
    print("\n".join(table.lines(row)), flush=True)


def _enough_files() -> None:
    """The daemons inherit it: a conductor has a descriptor for each player."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _read(file: str) -> Report:
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=Report)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be read: {problem.strerror}") from None
    except msgspec.DecodeError as problem:
        raise FileProblem(file=file, problem=f"is not what 'orchestra bench --json' writes: {problem}") from None


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be written: {problem.strerror}") from None
