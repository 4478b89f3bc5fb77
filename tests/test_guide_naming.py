"""The guide's chapter on naming hosts is true: what it shows is run, with real daemons."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until_logged
from test_guide import GUIDE, blocks, shell

from orchestra.cli.theatre import Theatre, scores_directory, wait_until
from orchestra.player.facts import BUILT_IN

HOSTS = ("web1", "web2", "web3")
ROLES = {"web1": "app", "web2": "app", "web3": "db"}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A conductor with the groups of the guide, and players with roles."""
    built = Theatre(tmp_path_factory.mktemp("n"), HOSTS)
    built.build(scores_directory())
    (groups,) = blocks("text", "groups")
    (built.home / "groups").write_text(groups + "\n")
    for host, role in ROLES.items():
        facts = built.home / host / "facts.d"
        facts.mkdir(mode=0o755)
        (facts / "role.conf").write_text(f"role = {role}\n")
        (facts / "role.conf").chmod(0o644)
    try:
        built.start_conductor()
        for host in HOSTS:
            built.start_player(host)
        until_logged(built, "conductor", *(f"{host}.demo.test is online" for host in HOSTS))
        yield built
    finally:
        built.close()
        wait_until(lambda: not built.left_behind(), "the end of every process", Path())


def test_what_is_said_of_names_and_facts_can_be_done(named: Theatre) -> None:
    words, some, facts = blocks("sh", "naming")
    lines = shell(named, words).splitlines()
    assert lines[:4] == ["web[1-3].demo.test", "web1.demo.test", "web2.demo.test", "web2.demo.test"]
    assert [line.partition(": ")[0] for line in sorted(lines) if ": ok in " in line] == [
        f"{h}.demo.test" for h in HOSTS
    ]
    assert "ok (2 ok)" in shell(named, some)
    said = shell(named, facts)
    assert re.search(r"^role +app$", said, flags=re.M)
    assert said.count("web[1-2].demo.test\n") == 2


def test_a_plan_is_good_for_what_it_has_shown(named: Theatre) -> None:
    (text,) = blocks("sh", "plan")
    said = shell(named, text)
    assert "3 hosts would run it now\n    web[1-3].demo.test\n" in said
    assert re.fullmatch(r"\d+", said.splitlines()[-1])


def test_the_guide_knows_every_fact_that_is_built_in() -> None:
    table = GUIDE[GUIDE.index("Every player tells a few things") : GUIDE.index("and what stands in ``facts.d")]
    assert set(re.findall(r"^``(\w+)``$", table, flags=re.M)) == set(BUILT_IN)
