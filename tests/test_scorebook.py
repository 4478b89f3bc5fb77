"""What a fleet can play, by score: forms, refusals, lacks, counted per catalogue."""

from typing import Any

import pytest

from orchestra.cli.score import example, help_lines, span
from orchestra.cli.scores import MANY, Hosts, drift_lines, score_rows
from orchestra.core.scorebook import Form, ScoreView, Unfit, bind
from orchestra.model import Catalogue, ParamEntry, RefusedScore, ScoreEntry


def entry(name: str, digest: str = "d1", **more: Any) -> ScoreEntry:
    given = {"description": f"does {name}", "interface": "env", "timeout": 3_600_000, "kill_grace": 10_000}
    return ScoreEntry(
        **{"name": name, "digest": digest, "concurrency": 1, "idempotent": False, "max_attempts": 3} | given | more
    )


def catalogue(digest: str, *scores: ScoreEntry, refused: tuple[RefusedScore, ...] = ()) -> Catalogue:
    return Catalogue(digest, scores, refused)


OLD, NEW = entry("deploy", "old"), entry("deploy", "new")
UPTIME = entry("uptime")


def test_a_score_that_all_have_does_not_drift() -> None:
    book = bind([catalogue("A", UPTIME), catalogue("B", UPTIME, OLD)], {"A": 3, "B": 2})
    assert book == [
        ScoreView("deploy", (Form(OLD, ("B",), 2),), (), ("A",), 3),
        ScoreView("uptime", (Form(UPTIME, ("A", "B"), 5),)),
    ]
    assert [score.drifts for score in book] == [True, False]


def test_forms_refusals_and_lacks_are_told_apart() -> None:
    """The commonest form first; who refuses it does not lack it."""
    unfit = RefusedScore("deploy", "writable by group")
    found = [catalogue("A", OLD), catalogue("B", NEW), catalogue("C", refused=(unfit,)), catalogue("D")]
    [score] = bind(found, {"A": 1, "B": 7, "C": 2, "D": 4})
    assert score == ScoreView(
        "deploy", (Form(NEW, ("B",), 7), Form(OLD, ("A",), 1)), (Unfit("writable by group", ("C",), 2),), ("D",), 4
    )


def test_a_catalogue_that_nobody_has_says_nothing() -> None:
    assert bind([catalogue("A", UPTIME), catalogue("B", OLD)], {"A": 1}) == [
        ScoreView("uptime", (Form(UPTIME, ("A",), 1),))
    ]


def test_one_score_can_be_asked_for() -> None:
    assert [score.name for score in bind([catalogue("A", UPTIME, OLD)], {"A": 1}, "deploy")] == ["deploy"]
    assert bind([catalogue("A", UPTIME)], {"A": 1}, "upt") == []


def test_releases_that_describe_one_digest_differently_are_one_form() -> None:
    """An older player knows fewer keys; the files are the same."""
    found = [catalogue("A", UPTIME), catalogue("B", entry("uptime", description=""))]
    assert bind(found, {"A": 1, "B": 1})[0].forms == (Form(UPTIME, ("A", "B"), 2),)


# ---- as people see it


def test_the_list_has_a_line_for_each_form() -> None:
    [score] = bind([catalogue("A", OLD), catalogue("B", NEW)], {"A": 1, "B": 2})
    assert list(score_rows([score])) == [
        ("deploy", "2", "env", "no", "new", "does deploy"),
        ("deploy", "1", "env", "no", "old", "does deploy"),
    ]


def test_drift_names_the_hosts() -> None:
    unfit = RefusedScore("deploy", "not executable")
    [score] = bind(
        [catalogue("A", OLD), catalogue("B", NEW), catalogue("C", refused=(unfit,)), catalogue("D")],
        {"A": 2, "B": 1, "C": 1, "D": 1},
    )
    disks = {"A": ("web1", "web2"), "B": ("web3",), "C": ("db1",), "D": ("mail",)}
    assert drift_lines(score, Hosts(disks)) == [
        "old on web[1-2] (2 players)",
        "new on web3 (1 player)",
        "refused by db1 (1 player): not executable",
        "lacking on mail (1 player)",
    ]


def test_the_largest_part_of_a_large_fleet_is_all_others() -> None:
    """Its names would hide the ones that differ; everybody else is named."""
    [score] = bind([catalogue("A", OLD), catalogue("B", NEW)], {"A": MANY + 1, "B": 1})
    disks = {"A": tuple(f"web{n}" for n in range(MANY + 1)), "B": ("db1",)}
    assert drift_lines(score, Hosts(disks)) == ["old on 101 players, all others", "new on db1 (1 player)"]


def test_help_says_all_that_is_needed() -> None:
    [score] = bind([catalogue("A", entry("kernel", interface="pipe", idempotent=True, timeout=90_000))], {"A": 2})
    assert list(help_lines(score, {"A": ("web1", "web2")})) == [
        "kernel: does kernel",
        "",
        "  interface    pipe: parameters are environment variables ORC_KEY; lines key=value of its output are the answer",
        "  timeout      90s; what ignores SIGTERM is killed 10s later",
        "  concurrency  1 at once on one player",
        "  idempotent   yes: started again after it was lost, at most 3 times in all",
        "  parameters   none declared: any KEY=VALUE is passed on",
        "",
        "  d1 on web[1-2] (2 players), the same everywhere",
        "",
        "  submitjob kernel web1 --wait",
    ]


def test_help_on_a_score_that_drifts_says_which_form_it_is_of() -> None:
    [score] = bind([catalogue("A", OLD), catalogue("B", NEW)], {"A": 2, "B": 1})
    lines = list(help_lines(score, {"A": ("web1", "web2"), "B": ("db1",)}))
    assert "  not the same everywhere: the above is of old" in lines
    assert "    new on db1 (1 player)" in lines
    assert example(score.forms[0], {}) == "submitjob deploy HOST --wait"


def test_help_on_a_score_that_nobody_would_run_says_why() -> None:
    [score] = bind([catalogue("A", refused=(RefusedScore("deploy", "not executable"),))], {"A": 1})
    assert list(help_lines(score, {"A": ("web1",)})) == [
        "deploy: no player would run it",
        "",
        "  not the same everywhere:",
        "    refused by web1 (1 player): not executable",
    ]


PARAMS = (
    ParamEntry("host", required=True, pattern="[a-z]+", max=63, description="which host"),
    ParamEntry("level", "enum", default="low", values=("low", "high")),
    ParamEntry("count", "int", required=True, min=1, max=9),
    ParamEntry("share", "float", min=0.5),
    ParamEntry("force", "bool"),
    ParamEntry("password", required=True, secret=True),
)


def test_help_names_every_parameter_with_its_rules() -> None:
    """And an example gives what must be given; what is secret is not for the command line."""
    declared = entry("deploy", lock="db", dry_run=True, params=PARAMS)
    [score] = bind([catalogue("A", declared)], {"A": 1})
    lines = list(help_lines(score, {"A": ("web1",)}))
    assert lines[6:15] == [
        "  lock         db: not at once with others of that lock on one player",
        "  dry run      yes: --dry-run has it say what it would do",
        "  parameters",
        "               host: string, required; length at most 63; matches [a-z]+; which host",
        "               level: enum (low, high), default low",
        "               count: int, required; from 1 to 9",
        "               share: float; at least 0.5",
        "               force: bool",
        "               password: string, required, secret",
    ]
    assert lines[-1] == "  submitjob deploy web1 host=STRING count=1 --params FILE --wait"


def test_a_score_is_hidden_if_whoever_has_it_says_so() -> None:
    hidden = entry("deploy", "other", hidden=True)
    [score] = bind([catalogue("A", hidden), catalogue("B")], {"A": 1, "B": 1})
    assert score.hidden
    [score] = bind([catalogue("A", hidden), catalogue("B", OLD)], {"A": 1, "B": 1})
    assert not score.hidden
    assert not ScoreView("unfit").hidden


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (1500, "1500ms"),
        (10_000, "10s"),
        (5_400_000, "90m"),
        (7_200_000, "2h"),
        (86_400_000, "1d"),
    ],
)
def test_a_duration_is_said_as_it_is_written(milliseconds: int, words: str) -> None:
    assert span(milliseconds) == words
