"""The guide's chapter on parameters: its score is installed, its commands are run, and its refusals are what is said."""

import re
from pathlib import Path

from conftest import Command

from orchestra.cli.theatre import Theatre

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.rst").read_text()


def block(kind: str) -> str:
    """The one block of a class, its indentation removed."""
    [text] = re.findall(rf"   :class: {kind}\n\n((?:   .*\n|\n)+)", GUIDE)
    return re.sub(r"^   ", "", text, flags=re.M).strip()


def prepare(theatre: Theatre) -> None:
    theatre.add_score("set-password", block("score") + "\n", block("conf") + "\n")
    (theatre.home / "secret.json").write_text('{"password": "correct horse battery"}')


def words(line: str) -> list[str]:
    """The words of a command line of the guide, for the theatre's host."""
    assert line.startswith("submitjob set-password web1 ")
    return line.replace("web1", "a").split()


def test_the_commands_of_the_guide_do_what_it_says(command: Command) -> None:
    real, rehearsal = (command(*words(line)) for line in block("ask").splitlines())
    assert real.returncode == rehearsal.returncode == 0, real.stderr + rehearsal.stderr
    assert 'roles = ["read","write"]' in real.stdout and "changed = true" in real.stdout
    assert 'roles = ["read"]' in rehearsal.stdout and "changed = false" in rehearsal.stdout
    listed = command("orchestra", "jobs").stdout.splitlines()[1:]
    assert ["(dry run)" in line for line in listed] == [True, False]


def test_what_the_guide_says_is_refused_is(command: Command) -> None:
    """In these words."""
    for example in block("refused").split("\n\n"):
        line, sentence = example.splitlines()
        said = command(*words(line))
        assert said.returncode == 64
        assert sentence in said.stderr
