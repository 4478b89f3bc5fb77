"""``orchestra demo`` tells its whole story, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_ends_with_every_task_ok_and_no_process_left(tmp_path: Path) -> None:
    """What a stranger types first works, and its last line counts every task as ok."""
    command = [str(Path(sys.executable).with_name("orchestra")), "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    many = re.fullmatch(r"(\d+) tasks: (\d+) ok, 0 failed, 0 lost", last)
    assert many, last
    assert many[1] == many[2]
    assert done.stdout.count(" online ") == 3
    conf = re.search(r"\$ cat \S+/rehearse\.conf\n((?: {4}\w+ = .*\n)+)", done.stdout)
    assert conf is not None
    assert conf[1].count("\n") == 4
    assert "ran twice 0" in done.stdout
    assert "does not trust our certificate authority" in done.stdout
    assert re.search(r"gamma.demo.test waits: offline since \S+ \S+ UTC, expires \S+ \S+ UTC", done.stdout)
    assert "No process is left behind." in done.stdout
    assert list(tmp_path.iterdir()) == []
