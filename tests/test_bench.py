"""``orchestra bench`` finds every result, or says that its figures are worth nothing. No time is asserted."""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from msgspec.structs import replace

from orchestra.bench import figures, hall, picture, processes, table
from orchestra.bench.cases import CASES
from orchestra.bench.company import Company
from orchestra.bench.sizes import QUICK, Sizes
from orchestra.errors import BenchFailed
from orchestra.model import JobView

ENDED = JobView(
    job=3,
    score="noop",
    params={},
    scope="all",
    owner="bench",
    uid=0,
    login_uid=None,
    request_key=None,
    created_at=0,
    expires_at=None,
    ended_at=1,
    priority=0,
    counts={"ok": 2},
    verdict="ok",
    last_event=6,
)


def bench(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("orchestra")), "bench", *words]
    environment = {**os.environ, **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)


def test_it_measures_real_and_emulated_players_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Daemons, TLS and stores are real: a row for each figure, a JSON file, a picture, and no file of its own."""
    place = Path(tempfile.mkdtemp())  # a socket's path in tmp_path would be too long
    names = ["latency", "fanout"]
    words = [f"--only={name}" for name in names]
    files = [f"--json={tmp_path / 'figures'}", f"--picture={tmp_path / 'picture'}"]
    done = bench("--quick", f"--dir={place}", *words, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "figures").read_text())["rows"]
    assert {row["case"] for row in rows} == set(names)
    assert [row["size"] for row in rows if row["case"] == "fanout"] == [*QUICK.fans, None]
    assert all(row["what"] in done.stdout for row in rows)
    assert len(rows[0]["samples"]) == QUICK.latency_jobs
    assert rows[0]["floor"] > 0
    assert 10 < rows[1]["median"] < 1000
    assert rows[2]["cpu"].keys() == {"conductor", "emulator", "bench"}
    shown = bench(f"--table={tmp_path / 'figures'}")
    assert shown.returncode == 0, shown.stderr
    assert all(f"``{row['case']}``: {row['what']} " in shown.stdout for row in rows)
    ElementTree.parse(tmp_path / "picture")
    place.rmdir()


def test_a_case_whose_players_are_not_let_in_fails_with_a_sentence(tmp_path: Path) -> None:
    """An emulator that cannot dial is no bench of anything: the figures are not printed."""
    company = Company(["--conductor=nobody", f"--authority={tmp_path / 'none'}"], 2, tmp_path / "log")
    try:
        with pytest.raises(BenchFailed, match=r"the emulated players have ended.*no certificate authority"):
            company.connected()
    finally:
        company.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": {"ok": 1, "lost": 1}, "verdict": "partial"},
        {"counts": {"ok": 3}},
        {"counts": {"ok": 1, "pending": 1}, "verdict": ""},
    ],
)
def test_a_job_that_did_not_end_well_voids_its_case(wrong: dict[str, object]) -> None:
    """Whatever is missing, lost or too many."""
    hall.check("fanout", ENDED, 2)
    with pytest.raises(BenchFailed, match=r"'fanout' has failed.*job 3 should have 2 tasks"):
        hall.check("fanout", replace(ENDED, **wrong), 2)  # type: ignore[arg-type]


def test_every_case_of_the_table_is_there() -> None:
    """The names that --only takes."""
    assert list(CASES) == [
        "latency",
        "runs",
        "dispatch",
        "fanout",
        "fleet",
        "depth",
        "output",
        "cli",
        "scores",
        "store",
    ]


def test_the_quick_sizes_are_smaller() -> None:
    """In every respect."""
    full, quick = Sizes(), QUICK
    for field in full.__struct_fields__:
        large, small = getattr(full, field), getattr(quick, field)
        assert (small < large) if not isinstance(large, tuple) else max(small) < max(large), field


# ---- the figures


def test_median_and_quantile() -> None:
    """Of values in any order."""
    assert figures.median([3, 1, 2]) == 2
    assert figures.median([4, 1, 2, 3]) == 2.5
    assert figures.quantile(list(range(1, 101)), 0.99) == 99
    assert figures.quantile([5], 0.99) == 5


def test_growth_is_the_exponent_between_the_largest_two() -> None:
    """1 is straight, 2 is quadratic."""
    rows = [
        figures.times("fanout", "", [[seconds]], cpu={}, size=size) for size, seconds in ((10, 9), (100, 1), (1000, 10))
    ]
    assert figures.growth(rows) == pytest.approx(1)
    rows[-1] = figures.times("fanout", "", [[100]], cpu={}, size=1000)
    assert figures.growth(rows) == pytest.approx(2)


def test_a_row_of_times_has_the_spread_of_its_rounds() -> None:
    """Median and p99 of all samples, least and most of the rounds' medians, in milliseconds."""
    row = figures.times("latency", "x", [[0.001, 0.002, 0.009], [0.004, 0.005, 0.006]], cpu={}, floor=0.001)
    assert (row.median, row.p99, row.least, row.most, row.floor) == pytest.approx((4.5, 9, 2, 5, 1))


def test_a_row_is_printed_with_its_floor_and_its_cost() -> None:
    """Costs largest first; nothing where there is nothing."""
    row = figures.values("runs", "runs", "/s", [900, 1000, 1200], cpu={"player": 0.25, "stage": 1.5}, floor=1500)
    first, second = table.lines(replace(row, floor_is="spawns"))
    assert first.split() == ["runs", "[/s]", "1,000", "900-1,200", "1,500"]
    assert second.strip() == "floor: spawns; CPU each: stage 1.50 ms, player 0.25 ms"
    assert len(table.lines(figures.values("runs", "runs", "/s", [1]))) == 1


def test_a_report_is_a_table_of_the_docs_that_docutils_understands() -> None:
    """Each row with its cells, empty ones too, and each floor with what it is."""
    rows = (
        replace(figures.values("runs", "runs", "/s", [900, 1000], cpu={"player": 0.25}, floor=1500), floor_is="spawns"),
        figures.values("fleet", "memory", "kB", [54.2]),
    )
    text = table.rst(figures.Report(version="1", commit="abc", at="today", machine={"system": "x"}, rows=rows))
    parsed = publish_doctree(text, settings_overrides={"report_level": 2, "halt_level": 2})
    cells = [entry.astext().strip() for entry in parsed.findall(nodes.entry)]
    assert cells[7:14] == ["runs: runs", "/s", "950", "", "900 - 1,000", "1,500", "player 0.25"]
    assert cells[14:] == ["fleet: memory", "kB", "54.2", "", "", "", ""]
    assert [item.astext() for item in parsed.findall(nodes.list_item)] == ["runs: spawns"]


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    """With a sentence, and nothing is measured."""
    for text, words in (("{}", "is not what 'orchestra bench --json' writes"), (None, "cannot be read")):
        file = tmp_path / "figures"
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        done = bench(f"--table={file}")
        assert done.returncode != 0
        assert words in done.stderr


def test_the_picture_is_sound_whatever_was_measured() -> None:
    """Nothing, one size, equal times: still an SVG."""
    fans = [figures.times("fanout", "<&>", [[0.1 * n]], cpu={}, size=n) for n in (10, 100)]
    late = figures.times("latency", "<&>", [[0.002, 0.002]], cpu={})
    for rows, panels in (([], 0), (fans[:1], 0), ([late], 1), ([*fans, late], 2)):
        root = ElementTree.fromstring(picture.svg(rows))
        assert len(root.findall("{http://www.w3.org/2000/svg}g")) == panels


def test_what_a_process_costs_is_what_the_kernel_says() -> None:
    """CPU counts up with work, memory is there, and names without a process are left out."""
    meter = processes.Meter({"ours": [os.getpid()], "none": []})
    while processes.cpu(os.getpid()) < meter._begin["ours"] + 2 * processes.TICK:
        sum(range(1000))
    assert meter.per(1).keys() == {"ours"}
    assert meter.per(2)["ours"] == pytest.approx(meter.per(1)["ours"] / 2, abs=10)
    assert meter.spent()["ours"] > 1.5 * processes.TICK  # sums of ticks are not exact
    assert 1 << 20 < processes.resident(os.getpid()) <= processes.resident(os.getpid(), peak=True)
