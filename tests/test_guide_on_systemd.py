"""The guide of the README, every line of it, on a machine with systemd: both hosts are one, and it is thrown away."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from machine import CHECKOUT, Machine, NoMachine
from stagehand import python_for_all

from orchestra.cli.theatre import wait_until
from orchestra.errors import EX_CONFIG

ROOT: Final = Path(__file__).parents[1]
BLOCK: Final = re.compile(r"\.\. code-block:: sh\n   :class: \w+\n\n((?:   .*\n|\n)+)")
OPERATOR: Final = "daemon"  # a user that every Debian has


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine; skips the test where none can be made."""
    with tempfile.TemporaryDirectory(prefix="orchestra-machine-", dir="/tmp") as base:
        place = Path(base) / "disk"
        place.mkdir()
        try:
            made = Machine(place, ROOT)
        except NoMachine as why:
            pytest.skip(str(why))
        try:
            yield made
        finally:
            made.close()


def blocks() -> list[str]:
    """The shell blocks of the README in their order."""
    found = BLOCK.findall((ROOT / "README.rst").read_text())
    return [re.sub(r"^   ", "", text, flags=re.M).strip().replace("YOU", OPERATOR) for text in found]


def python_like_ours() -> str:
    """A Python that every user may run and that can load the packages of these tests; skips the test without one."""
    python = python_for_all()
    its = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    if its.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"{python} is another version than ours")
    return os.path.realpath(python)


def active(machine: Machine, unit: str) -> bool:
    return machine.shell(f"systemctl is-active {unit}", check=False).strip() == "active"


def test_the_guide_is_right_from_its_first_line_to_its_last(machine: Machine) -> None:
    """Installed, asked by somebody who is not root, reloaded, restarted in mid-run, killed, and gone without a trace.
    Only apt and pip are left out: they would need the network."""
    install, authority, conductor_tls, player_tls, conductor, check, player, stage, score, ask, reload, remove = (
        blocks()
    )
    before, after = install.split(
        "apt install python3-venv\npython3 -m venv /opt/orchestra\n/opt/orchestra/bin/pip install .\n"
    )
    assert before == ""
    machine.shell(f"{python_like_ours()} -m venv --without-pip /opt/orchestra")
    machine.install("/opt/orchestra")
    machine.shell(f"cd {CHECKOUT}\n{after}")
    for step in (authority, conductor_tls, f"cd /etc/orchestra/issued\n{player_tls}", conductor):
        machine.shell(step)
    assert "WRONG" not in machine.shell(check)
    machine.shell(player)
    assert "WRONG" not in machine.shell(stage)
    machine.shell(score)
    machine.shell("orchestra reload player")
    assert "asked = why" in machine.shell(ask, user=OPERATOR)
    assert "may not use this conductor" in machine.shell("orchestra jobs", user="nobody", check=False)
    machine.shell(reload)

    _outlives_its_daemons(machine)
    _comes_back_unless_its_configuration_is_wrong(machine)

    machine.shell(remove)
    places = ["/etc/orchestra", "/opt/orchestra", "/var/lib/orchestra", "/run/orchestra", "/usr/local/bin/orchestra"]
    assert machine.shell(f"ls -d {' '.join(places)}", check=False).count("No such file") == len(places)
    assert "orchestra" not in machine.shell("systemctl list-unit-files 'orch*'; getent passwd orchestra", check=False)


def _outlives_its_daemons(machine: Machine) -> None:
    machine.shell(
        f"cp {CHECKOUT}/scores/sleep* /usr/lib/orchestra/scores/ && chmod 755 /usr/lib/orchestra/scores/sleep"
    )
    job = machine.shell("orchestra reload player >/dev/null; submitjob sleep web1.example.com seconds=6").strip()
    machine.shell("systemctl restart orchestra-player orchestra-conductor; systemctl reload orchestra-stage")
    assert f"job {job}: ok" in machine.shell(f"orchestra wait {job}")


def _comes_back_unless_its_configuration_is_wrong(machine: Machine) -> None:
    log = Path()
    for unit in ("orchestra-player", "orchestra-stage"):
        machine.shell(f"systemctl kill --signal=KILL {unit}")
        wait_until(lambda unit=unit: active(machine, unit), f"the return of {unit}", log)
    machine.shell("echo 'beat = soon' >> /etc/orchestra/conductor.conf")
    assert "failed" in machine.shell("systemctl restart orchestra-conductor", check=False)
    how = machine.shell("systemctl show orchestra-conductor --property=ExecMainStatus,NRestarts,ActiveState")
    assert set(how.split()) == {f"ExecMainStatus={EX_CONFIG}", "NRestarts=0", "ActiveState=failed"}
    assert "line 3: beat: expected a duration" in machine.shell("journalctl --unit=orchestra-conductor --no-pager")
