"""The cases by name, and the whole run of them."""

import os
import platform
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestra import __version__
from orchestra.bench import commands, crowding, library, performing, warehouse
from orchestra.bench.figures import Report, Row
from orchestra.bench.sizes import Setting

Case = Callable[[Setting], Iterator[Row]]

CASES: Final[dict[str, Case]] = {
    "latency": performing.latency,
    "runs": performing.runs,
    "dispatch": crowding.dispatch,
    "fanout": crowding.fanout,
    "fleet": crowding.fleet,
    "depth": crowding.depth,
    "output": performing.output,
    "cli": commands.cli,
    "scores": library.scores,
    "store": warehouse.store,
}


def run(setting: Setting, names: Sequence[str], tell: Callable[[Row], None]) -> Report:
    """Run the cases called ``names``; each row is told as soon as it is there."""
    rows: list[Row] = []
    machine = _machine()
    for name in names:
        for row in CASES[name](setting):
            rows.append(row)
            tell(row)
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Report(version=__version__, commit=_commit(), at=at, machine=machine, rows=tuple(rows))


def _machine() -> dict[str, str]:
    """The conditions: what runs here, and how busy it was before."""
    return {
        "processors": f"{os.cpu_count()} ({_processor()})",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _commit() -> str:
    """The commit of the checkout that this is run from, or nothing."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
