"""The tour can be taken, and its committed transcript has the same shape."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[str]:
    return re.findall(r"^    \$ (.*)$", text, flags=re.M)


def shape(text: str) -> list[str]:
    """The lines in no order, as answers have none; without the filesystems of this machine and the width of columns."""
    return sorted(re.sub(" +", " ", line) for line in text.splitlines() if "% used" not in line)


def test_the_tour_goes_as_the_transcript_says(tmp_path: Path) -> None:
    """Same commands, same answers: a transcript that is older than the commands is found here."""
    made = tmp_path / "tour.rst"
    subprocess.run([sys.executable, str(ROOT / "tests" / "tour.py"), str(made)], check=True, timeout=100)
    fresh, kept = made.read_text(), (ROOT / "docs" / "tour.rst").read_text()
    assert commands(fresh) == commands(kept)
    assert shape(fresh) == shape(kept)
    for sign in (
        "up 3 days",
        "42% used",
        "never seen yet",
        "(sha256)",
        "cancelled",
        "None of the targets has a score",
        "did you mean web1",
    ):
        assert (sign in fresh) == (sign in kept), sign
    assert str(tmp_path.parent) not in kept
