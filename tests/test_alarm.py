"""A process that survives SIGKILL: the stage says so, again to whoever connects anew, and goes on looking."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stagehand import Player, Theatre, end, impatient, public_theatre, python_for_all

NOBODY = 65534
setpriv = shutil.which("setpriv")


@pytest.fixture
def public() -> Iterator[Theatre]:
    """A theatre that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        made = public_theatre(Path(home))
        yield made
        made.close()


@pytest.mark.skipif(os.geteuid() != 0 or setpriv is None, reason="needs root, and setpriv")
def test_a_process_that_cannot_be_killed_is_an_alarm_and_still_runs(public: Theatre) -> None:
    """A score that has become root, under a stage that is not: the kernel lets none of its signals through. When the
    process is gone after all, the run has its outcome."""
    assert setpriv is not None
    become_root = public.scores / ".become-root"
    shutil.copy(setpriv, become_root)
    become_root.chmod(0o4755)
    public.score(
        "immortal", f"exec {become_root} --reuid 0 --clear-groups sleep 600", "timeout = 200ms\nkill_grace = 100ms\n"
    )
    public.state.mkdir()
    os.chown(public.state, NOBODY, NOBODY)
    public.socket = public.state / "socket"
    command = impatient([python_for_all(), *public.command(user=None)[1:]], 0.2)
    public.run(command, user=NOBODY, group=NOBODY, extra_groups=[])
    player = Player(public)
    player.perform(1, "immortal")
    started, _ = player.hear("started")
    try:
        alarm, _ = player.hear("alarm", 1)
        assert "after SIGKILL" in alarm["reason"]
        assert Path(f"/proc/{started['pid']}").exists()
        again = Player(public)
        assert again.standing["runs"]["1"]["alarm"] == alarm["reason"]
    finally:
        end(started["pid"])
    outcome, _ = again.ended(1)
    assert (outcome["told"], outcome["signal"]) == ("killed", signal.SIGKILL)
    assert "timeout" in outcome["reason"]
    player.close()
    again.close()


def test_a_run_that_obeys_raises_no_alarm(tmp_path: Path) -> None:
    """However impatient the stage: SIGTERM was enough."""
    theatre = Theatre(tmp_path)
    try:
        theatre.score("mortal", "exec sleep 600", "timeout = 100ms\nkill_grace = 60s\n")
        theatre.run(impatient([sys.executable, *theatre.command()[1:]], 0.001))
        player = Player(theatre)
        player.perform(1, "mortal")
        heard = [player.hear()[0]["type"] for _ in range(2)]
        assert heard == ["started", "ended"]
        player.close()
    finally:
        theatre.close()
