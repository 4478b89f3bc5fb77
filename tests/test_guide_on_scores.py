"""The guide's chapters on scores and on waiting are true: what they show is run, with real daemons."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until_logged

from orchestra.cli.theatre import Theatre, scores_directory, wait_until

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.rst").read_text()
BLOCK = re.compile(r"\.\. code-block:: sh\n   :class: (\w+)\n\n((?:   .*\n|\n)+)")


def blocks(kind: str) -> list[str]:
    """The shell blocks of a class, their indentation removed."""
    return [re.sub(r"^   ", "", text, flags=re.M).strip() for name, text in BLOCK.findall(GUIDE) if name == kind]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A conductor, two players, and one that is never seen."""
    built = Theatre(tmp_path_factory.mktemp("g"), ["web1", "web2", "db1"])
    built.build(scores_directory())
    try:
        built.start_conductor()
        for player in ("web1", "web2"):
            built.start_player(player)
        until_logged(built, "conductor", "web1.demo.test is online", "web2.demo.test is online")
        yield built
    finally:
        built.close()
        wait_until(lambda: not built.left_behind(), "the end of every process", Path())


def shell(text: str, where: Path, **more: str) -> str:
    """Run it as a user does; what it says."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}
    done = subprocess.run(
        ["sh", "-ec", text], capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=where
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_what_authors_are_told_can_be_done(tmp_path: Path) -> None:
    """In a checkout, without a daemon."""
    scores = tmp_path / "scores"
    shutil.copytree(scores_directory(), scores)
    for file in scores.iterdir():
        file.chmod(0o644 if file.suffix == ".conf" else 0o755)
    scores.chmod(0o755)
    [text] = blocks("authors")
    said = shell(text, tmp_path)
    assert "ok      checksum: pipe, digest " in said
    assert "    sha256 = " in said


def test_what_is_said_of_versions_can_be_seen(fleet: Theatre) -> None:
    looking, pinning = blocks("versions")
    said = shell(looking, fleet.home, ORCHESTRA_SOCKET=str(fleet.socket))
    assert "every score is the same everywhere" in said
    assert "of 1 player nothing is known yet: db1.demo.test" in said
    assert "on web[1-2].demo.test (2 players), the same everywhere" in said
    assert "(2 ok)" in shell(pinning, fleet.home, ORCHESTRA_SOCKET=str(fleet.socket))


def test_what_is_said_of_waiting_can_be_seen(fleet: Theatre) -> None:
    [text] = blocks("why")
    said = shell(text, fleet.home, ORCHESTRA_SOCKET=str(fleet.socket))
    assert "the score is held by " in said
    assert "until 'orchestra release --score uptime'" in said
    assert "never seen yet\n        until it connects" in said
