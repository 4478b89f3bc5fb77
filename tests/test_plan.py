"""A plan says what would become of a request, and its token that nothing of that has changed."""

import json

import pytest
from conftest import Command
from outside import OutsideOrchestra
from storehouse import job

from orchestra.cli.theatre import Theatre
from orchestra.core.plan import Standing, check, rows, token
from orchestra.errors import BadRequest, PlanChanged
from orchestra.model import NewJob, PlanRow, Scope

NEW = job((1, 2, 3))
DIGESTS: dict[int, str | None] = {1: "a", 2: "a", 3: ""}
TOKEN = token(NEW, (), DIGESTS)


@pytest.mark.parametrize(
    ("new", "private", "digests", "what"),
    [
        (NEW, (), DIGESTS, ""),
        (job((3, 2, 1)), (), DIGESTS, ""),
        (job((1, 2, 3), request_key="k", expires_at=None, priority=5), (), DIGESTS, ""),
        (job((1, 2)), (), DIGESTS, "the targets were 3, and are 2 now"),
        (job((1, 2, 4)), (), DIGESTS, "the targets were 3, and are others now"),
        (NEW, (), {**DIGESTS, 2: "b"}, "the score, or its .conf, is not the same any more"),
        (NEW, (), {1: "a", 2: "a"}, "the score, or its .conf, is not the same any more"),
        (NEW, ("password",), DIGESTS, "what is asked of them is something else"),
        (job((1, 2, 3), params={"path": "/tmp"}), (), DIGESTS, "what is asked of them is something else"),
        (job((1, 2, 3), Scope.SOME, count=2), (), DIGESTS, "what is asked of them is something else"),
        (
            job((1, 2), params={}),
            (),
            DIGESTS,
            "the targets were 3, and are 2 now; what is asked of them is something else",
        ),
    ],
)
def test_a_token_knows_what_has_changed(
    new: NewJob, private: tuple[str, ...], digests: dict[int, str | None], what: str
) -> None:
    """Who the targets are, what they have, and what is asked of them; not when, how urgently or by which key."""
    changed = check(TOKEN, token(new, private, digests))
    assert (changed is None) == (not what)
    if changed is not None:
        assert isinstance(changed, PlanChanged)
        assert what in changed.sentence


@pytest.mark.parametrize("text", ["x", "3", TOKEN + "-", TOKEN.upper() + "!", "0" + TOKEN, "-" * 100_000])
def test_what_is_no_token_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BadRequest, match="is no token of a plan"):
        check(text, TOKEN)


HERE = [
    Standing(1, "a", busy=2),
    Standing(2, "b", wait="b is offline"),
    Standing(3, "c"),
    Standing(4, "d", refusal="it has no score 'x'", wait="d is offline"),
    Standing(5, "e", busy=1),
]
ALL = frozenset({1, 2, 3, 4, 5})


@pytest.mark.parametrize(
    ("scope", "count", "at_once", "would"),
    [
        (Scope.ALL, 1, ALL, ["starts", "waits", "starts", "refuses", "starts"]),
        (Scope.ONE, 1, ALL, ["spare", "waits", "starts", "refuses", "spare"]),
        (Scope.SOME, 2, ALL, ["spare", "waits", "starts", "refuses", "starts"]),
        (Scope.SOME, 4, ALL, ["starts", "waits", "starts", "refuses", "starts"]),
        (Scope.ALL, 1, frozenset({1, 2}), ["starts", "waits", "later", "refuses", "later"]),
        (Scope.ONE, 1, frozenset(), ["later", "waits", "later", "refuses", "later"]),
    ],
)
def test_the_least_busy_that_can_would_start(
    scope: Scope, count: int, at_once: frozenset[int], would: list[str]
) -> None:
    found = rows(HERE, scope, count, at_once, "its wave has not begun")
    assert [row.would for row in found] == would
    assert found[1] == PlanRow("b", "waits", "b is offline")
    assert found[3] == PlanRow("d", "refuses", "it has no score 'x'")


# ---- with real daemons

GROUPS = "ab: a b\n"


def prepare(theatre: Theatre) -> None:
    (theatre.home / "groups").write_text(GROUPS)


def test_a_plan_stores_nothing_and_its_token_is_good_until_something_changes(
    theatre: Theatre, command: Command, orchestra: OutsideOrchestra
) -> None:
    request = ("uptime", "@ab", "c", "--all")
    before = len(orchestra.jobs())
    shown = command("submitjob", *request, "--plan")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[:3] == ["uptime on all of 3 hosts", "  2 hosts would run it now", "    a.demo.test,b.demo.test"]
    assert "  1 host would wait: never seen yet" in lines
    expect, good = lines[-1].split()
    assert len(orchestra.jobs()) == before
    done = command("submitjob", *request, expect, good, "--expire", "1h")
    assert (done.returncode, len(orchestra.jobs())) == (0, before + 1)
    other = command("submitjob", "uptime", "@ab", "--all", expect, good)
    assert (other.returncode, other.stdout) == (64, "")
    assert "This is not what was planned: the targets were 3, and are 2 now." in other.stderr
    conf = theatre.scores / "uptime.conf"
    text = conf.read_text()
    try:
        conf.write_text(text + "# changed\n")
        command("orchestra", "reload", "player", f"--config={theatre.home / 'a'}")
        changed = command("submitjob", *request, expect, good)
        assert "the score, or its .conf, is not the same any more on some of the targets" in changed.stderr
        assert "warning: 'uptime' is not the same on all targets" in command("submitjob", *request, "--plan").stderr
    finally:
        conf.write_text(text)
        command("orchestra", "reload", "player", f"--config={theatre.home / 'a'}")
    assert len(orchestra.jobs()) == before + 1


def test_a_plan_says_who_would_refuse_and_why(command: Command) -> None:
    done = command("submitjob", "nonsense", "@ab", "--all", "--plan", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 64
    assert "None of the targets has a score named 'nonsense'" in told["plan"]["refused"]
    assert [(one["would"], one["why"]) for one in told["hosts"]] == [("refuses", "it has no score 'nonsense'")] * 2


def test_a_plan_knows_holds_and_who_is_to_spare(command: Command) -> None:
    command("orchestra", "hold", "--host", "a", "--reason", "a new kernel")
    try:
        hosts = json.loads(command("submitjob", "uptime", "@all", "--some", "1", "--plan", "--json").stdout)["hosts"]
        assert [one["would"] for one in hosts] == ["waits", "starts", "waits"]
        assert hosts[0]["why"].endswith(": a new kernel")
    finally:
        command("orchestra", "release", "--host", "a")
    hosts = json.loads(command("submitjob", "uptime", "@ab", "--some", "1", "--plan", "--json").stdout)["hosts"]
    assert sorted(one["would"] for one in hosts) == ["spare", "starts"]


def test_a_plan_of_waves_says_who_comes_later(command: Command) -> None:
    shown = command("submitjob", "uptime", "@ab", "--all", "--batch", "1", "--plan").stdout
    assert "  in 2 waves, 1 at a time\n" in shown
    assert "  1 host would run it later: its wave has not begun\n    b.demo.test\n" in shown


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("@ab", "c"), "a.demo.test,b.demo.test,c.demo.test\n"),
        (("@all", "--exclude", "a", "--expand"), "b.demo.test\nc.demo.test\n"),
        (("@all", "--count"), "3\n"),
        (("@all", "--limit", "1", "--json"), '["a.demo.test"]\n'),
    ],
)
def test_whom_targets_mean_is_shown(command: Command, words: tuple[str, ...], out: str) -> None:
    done = command("orchestra", "targets", *words)
    assert (done.returncode, done.stdout) == (0, out)


def test_a_wrong_word_is_told_as_a_submit_would(command: Command) -> None:
    done = command("orchestra", "targets", "@abc")
    assert (done.returncode, done.stdout) == (64, "")
    assert "There is no group '@abc'; did you mean @ab?" in done.stderr


def test_what_targets_shows_is_taken_as_targets(theatre: Theatre, command: Command) -> None:
    shown = command("orchestra", "targets", "@all").stdout
    (theatre.home / "hosts").write_text(shown)
    assert command("orchestra", "targets", "--targets-from", theatre.home / "hosts").stdout == shown
