"""The README does not lie: its commands exist, those that can be tried here are tried, and every document parses."""

import grp
import os
import re
import subprocess
import sys
from pathlib import Path

import docutils.core  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestra.cli.main import COMMANDS
from orchestra.cli.theatre import Theatre, free_port
from orchestra.player.rules import KEYS

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.rst", "NEWS.rst", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.rst")))]
BLOCK = re.compile(r"\.\. code-block:: sh\n   :class: (\w+)\n\n((?:   .*\n|\n)+)")


def blocks(kind: str) -> list[str]:
    """The shell blocks of a class, their indentation removed."""
    return [
        re.sub(r"^   ", "", text, flags=re.M).strip()
        for name, text in BLOCK.findall((ROOT / "README.rst").read_text())
        if name == kind
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_parses_without_a_warning(name: str) -> None:
    """What people read is sound reStructuredText."""
    source = (ROOT / name).read_text()
    docutils.core.publish_doctree(source, settings_overrides={"halt_level": 2, "report_level": 2})


def test_every_subcommand_that_is_named_exists() -> None:
    """No block speaks of a command that is not there."""
    text = "\n".join(blocks("tried") + blocks("host"))
    named = set(re.findall(r"(?<!-[go] )\borchestra ([a-z]+)\b", text))
    assert named
    assert named - {"orchestra"} <= set(COMMANDS)


@pytest.mark.parametrize("kind", ["tried", "host"])
def test_every_block_is_sound_shell(kind: str) -> None:
    """The blocks that need a machine of their own (users, packages, systemctl) are parsed here, and not run."""
    assert blocks(kind)
    for text in blocks(kind):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_every_unit_that_is_named_exists() -> None:
    """What is enabled, stopped or read by name has a unit in conf/."""
    named = set(re.findall(r"\b(orchestra-(?:conductor|player|stage)\w*)", (ROOT / "README.rst").read_text()))
    assert named == {"orchestra-conductor", "orchestra-player", "orchestra-stage"}
    assert all((ROOT / "conf" / f"{unit}.service").is_file() for unit in named)


def test_the_guide_knows_every_key_of_a_score() -> None:
    """docs/guide.rst has each key of NAME.conf, with its default."""
    rows = re.findall(r"^``(\w+)`` +(?:``(.*?)``)?", (ROOT / "docs" / "guide.rst").read_text(), flags=re.M)
    told = {key: default for key, default in rows if not key.startswith("ORCHESTRA_")}
    assert told == {key.name: key.default for key in KEYS}


def test_the_files_that_are_copied_exist() -> None:
    """What the guide copies from the checkout is in it."""
    for pattern in re.findall(r"cp (conf/\S+)", "\n".join(blocks("host"))):
        assert list(ROOT.glob(pattern)), pattern


def test_the_two_commands_install_and_run_what_they_say() -> None:
    """The first commands name the extra, the program and the test runner that exist."""
    text = (ROOT / "README.rst").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/orchestra demo" in text
    assert "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest" in text


def test_the_guide_leads_to_an_answer(tmp_path: Path) -> None:
    """The blocks that can be tried are run in order, with real daemons, in directories of their own; only paths, names
    of groups and addresses are put in place of the ones in the text."""
    tmp_path.chmod(0o755)
    etc, scores, run = tmp_path / "etc", tmp_path / "scores", tmp_path / "run"
    for directory in (etc / "tls", scores, run, tmp_path / "log"):
        directory.mkdir(parents=True, mode=0o755)
    theatre = Theatre(tmp_path, [])
    port = free_port()
    certificates, conductor, player, score, asking = blocks("tried")

    def shell(text: str) -> str:
        group = grp.getgrgid(os.getegid()).gr_name
        for old, new in (
            ("/etc/orchestra", etc),
            ("/usr/lib/orchestra/scores", scores),
            ("conductors = conductor.example.com", f"conductors = conductor.example.com@127.0.0.1:{port}"),
            ("score_user = root", "score_user = root" if os.geteuid() == 0 else ""),
            ("operators", group),
            ("stage_start = no", "stage_start = yes"),
        ):
            text = text.replace(old, str(new))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "ORCHESTRA_SOCKET": str(run / "audience.pb")}
        done = subprocess.run(
            ["sh", "-ec", text], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    try:
        shell(certificates)
        for name, role in (("conductor.example.com", "conductor"), ("web1.example.com", "player")):
            for ending in ("crt", "key"):
                (etc / "issued" / f"{name}.{ending}").rename(etc / "tls" / f"{role}.{ending}")
        (etc / "issued" / "ca.crt").rename(etc / "tls" / "ca.crt")
        (etc / "ca" / "crl.pem").rename(etc / "tls" / "crl.pem")
        shell(conductor)
        shell(player)
        shell(score)
        for name, lines in (
            (
                "conductor.conf",
                f"listen = 127.0.0.1:{port}\nstate = {tmp_path}/conductor\naudience = {run}/audience.pb\n",
            ),
            (
                "player.conf",
                f"state = {tmp_path}/player\nscores = {scores}\nstage = {run}/stage\nseat = {run}/player.pb\n",
            ),
        ):
            with open(etc / name, "a") as file:
                file.write(lines)
        shell(f"orchestra check conductor --config {etc}")
        theatre._twistd("conductor", etc, run / "conductor.pid")
        assert "WRONG" not in shell(f"orchestra check player --config {etc}")
        theatre._twistd("player", etc, run / "player.pid")
        said = shell(asking)
        assert "asked = why" in said
        assert "web1.example.com" in said
        assert "Tells the kernel" in said
        shell(f"orchestra reload --config {etc}")
        theatre.stop("player")
        theatre.stop("conductor")
    finally:
        theatre.close()
        assert theatre.left_behind() == []
