"""Scores that take and give JSON, and scores with limits: on a real stage, with real processes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.player.streams import Object, object_in
from tests.stagehand import Player, Theatre, end, read_fifo

ECHO = "cat >&3"
PARAMS = """
interface = json
[param host]
required = yes
[param port]
type = int
default = 80
[param load]
type = float
[param mode]
type = enum
values = fast, safe
[param force]
type = bool
default = no
[param tags]
type = list
max = 3
[param password]
secret = yes
"""


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    theatre = Theatre(tmp_path)
    theatre.start()
    yield theatre
    theatre.close()


@pytest.fixture
def player(theatre: Theatre) -> Iterator[Player]:
    player = Player(theatre)
    yield player
    player.close()


def test_parameters_arrive_with_their_types(theatre: Theatre, player: Player) -> None:
    """Defaults filled in, what has none and was not given left out."""
    theatre.score("echo", ECHO, PARAMS)
    params = {"host": "web1", "load": "0.5", "tags": "a, b", "force": "yes"}
    outcome = player.outcome(1, "echo", params=params)
    assert (outcome["told"], outcome["notes"]) == ("ok", [])
    assert outcome["response"] == {"host": "web1", "port": 80, "load": 0.5, "tags": ["a", "b"], "force": True}


def test_the_environment_of_a_json_score_has_no_parameters(theatre: Theatre, player: Player) -> None:
    """Nor is there a descriptor but the four; sh has one more, the tenth, for the script."""
    theatre.score("show", "env; echo; ls /proc/$$/fd; echo '{}' >&3", PARAMS)
    player.perform(1, "show", params={"host": "web1"}, secrets={"password": "canary"})
    outcome, body = player.ended(1)
    assert outcome["response"] == {}
    assert b"ORCHESTRA_SCORE=show" in body and b"ORC_" not in body and b"canary" not in body
    assert body.decode().rpartition("\n\n")[2].split() == ["0", "1", "10", "2", "3"]


def test_a_secret_arrives_by_stdin_alone(theatre: Theatre, player: Player) -> None:
    theatre.score("echo", ECHO, PARAMS)
    outcome = player.outcome(1, "echo", params={"host": "web1"}, secrets={"password": "s3cret"})
    assert outcome["response"]["password"] == "s3cret"


@pytest.mark.parametrize(
    ("params", "secrets", "words"),
    [
        ({}, {}, "parameter 'host' is required"),
        ({"host": "a", "hots": "b"}, {}, "parameter 'hots': the score declares no such parameter"),
        ({"host": "a", "port": "x"}, {}, "parameter 'port': expected a whole number, such as 42"),
        ({"host": "a", "mode": "slow"}, {}, "parameter 'mode': expected fast or safe"),
        ({"host": "a", "tags": "a,b,c,d"}, {}, "parameter 'tags': expected at most 3 items"),
        ({"host": "a", "password": "canary"}, {}, "parameter 'password' is secret, and was not given as a secret"),
        ({}, {"host": "canary"}, "parameter 'host' was given as a secret, and the score does not declare it as one"),
    ],
)
def test_the_stage_checks_against_the_disk(
    theatre: Theatre, player: Player, params: dict[str, str], secrets: dict[str, str], words: str
) -> None:
    """The sentence names the parameter and the rule, and no value."""
    theatre.score("echo", ECHO, PARAMS)
    player.perform(1, "echo", params=params, secrets=secrets)
    refused, _ = player.hear("refused", 1)
    assert words in refused["reason"] and "canary" not in refused["reason"]
    assert "canary" not in (theatre.log.read_text() if theatre.log.exists() else "")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("echo no >&3", "response dropped: what it wrote to descriptor 3 is no JSON"),
        ("echo '[1]' >&3", "response dropped: what it wrote to descriptor 3 is JSON, but no object"),
        ("echo '{\"a\": NaN}' >&3", "response dropped: what it wrote to descriptor 3 is no JSON"),
        ("echo '{\"a\": 1e999}' >&3", "response dropped: it holds a number that is too large"),
        ("echo '{\"a\": 99999999999999999999}' >&3", "response dropped: it holds a whole number of more than 64 bits"),
        ('printf \'{"a": "\\\\ud800"}\' >&3', "response dropped: it holds half of a surrogate pair"),
        ("printf '\\377' >&3", "response dropped: what it wrote to descriptor 3 is no JSON"),
        ("head -c 70000 /dev/zero >&3", "response of more than 64 KiB dropped"),
    ],
)
def test_a_response_that_is_no_object_is_noted_and_fails_nothing(
    theatre: Theatre, player: Player, text: str, note: str
) -> None:
    """The exit status says what happened; that the answer is missing is said beside it."""
    theatre.score("bad", text, "interface = json")
    outcome = player.outcome(1, "bad")
    assert (outcome["told"], outcome["response"], outcome["notes"]) == ("ok", None, [note])


def test_no_response_is_none_and_nothing_to_note(theatre: Theatre, player: Player) -> None:
    theatre.score("quiet", "exit 3", "interface = json")
    outcome = player.outcome(1, "quiet")
    assert (outcome["told"], outcome["rc"], outcome["response"], outcome["notes"]) == ("failed", 3, None, [])


def test_a_response_limit_is_heard_by_both_kinds(theatre: Theatre, player: Player) -> None:
    theatre.score("json", 'printf \'{"a":"%01000d"}\' 1 >&3', "interface = json\nresponse_limit = 1k")
    theatre.score("pipe", "printf 'a=%01100d\\n' 1; echo b=1", "interface = pipe\nresponse_limit = 1k")
    assert len(player.outcome(1, "json")["response"]["a"]) == 1000
    outcome = player.outcome(2, "pipe")
    assert (outcome["response"], outcome["notes"]) == ({}, ["response cut at 1 KiB"])


def test_a_response_survives_a_change_of_program(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """What was written before and after is one object."""
    fifo, go = tmp_path / "fifo", tmp_path / "go"
    os.mkfifo(fifo)
    os.mkfifo(go)
    theatre.score("slow", f"printf '{{\"a\":' >&3; echo > {fifo}; read x < {go}; echo '1}}' >&3", "interface = json")
    player.perform(1, "slow")
    read_fifo(fifo)
    player.say(type="upgrade")
    assert player.hear("upgraded")[0]["reason"] == ""
    go.write_text("\n")
    assert player.ended(1)[0]["response"] == {"a": 1}
    theatre.score("echo", ECHO, PARAMS)
    assert player.outcome(2, "echo", params={"host": "a"})["response"]["host"] == "a"


def test_a_daemon_that_holds_descriptor_3_delays_nothing(theatre: Theatre, player: Player) -> None:
    theatre.score("leave", "echo '{\"a\": 1}' >&3; sleep 60 >/dev/null 2>&1 & echo $!", "interface = json")
    player.perform(1, "leave")
    outcome, body = player.ended(1)
    end(int(body))
    assert outcome["response"] == {"a": 1}
    assert outcome["notes"] == ["left 1 process behind, in its process group"]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_object_does_not_depend_on_how_it_is_cut(size: int) -> None:
    data = json.dumps({"a": [{"b": None}] * 50, "é": "ü"}).encode()
    taken = Object()
    for at in range(0, len(data), size):
        taken.feed(data[at : at + size])
    taken.close()
    assert (taken.response, taken.notes) == (json.loads(data), [])


def test_what_is_nested_without_end_is_refused() -> None:
    nested: Any = {}
    for _ in range(31):
        nested = {"a": nested}
    assert object_in(json.dumps(nested).encode()) == nested
    with pytest.raises(ValueError, match="nested deeper than 32"):
        object_in(json.dumps({"a": nested}).encode())
    with pytest.raises(ValueError, match="no JSON"):
        object_in(b'{"a":' * 20_000)


# ---- what the environment carries


def test_typed_parameters_in_the_environment(theatre: Theatre, player: Player) -> None:
    """A bool is true or false, a list has a line for each item, and what is not given is not there."""
    conf = PARAMS.replace("interface = json", "").replace("secret = yes", "")
    theatre.score("show", 'env | grep ^ORC_ | sort; echo "$ORC_tags"', conf)
    player.perform(1, "show", params={"host": "web1", "force": "yes", "tags": "a, b"})
    _, body = player.ended(1)
    assert body.decode().splitlines() == ["ORC_force=true", "ORC_host=web1", "ORC_port=80", "ORC_tags=a", "a", "b"]


def test_a_rehearsal_is_for_scores_that_know_it(theatre: Theatre, player: Player) -> None:
    theatre.score("careful", "echo $ORCHESTRA_DRY_RUN", "dry_run = yes")
    theatre.score("careless", "true")
    player.perform(1, "careful", dry_run=True)
    assert player.ended(1)[1] == b"1\n"
    player.perform(2, "careful")
    assert player.ended(2)[1] == b"0\n"
    player.perform(3, "careless", dry_run=True)
    assert "'careless' knows no dry run" in player.hear("refused", 3)[0]["reason"]


# ---- limits


def test_limits_change_nothing_else(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """Its parameters, its response, its session, its directory and its umask; and no descriptor of the stage's."""
    show = "umask; pwd; ls /proc/self/fd | wc -l; echo $(cut -d' ' -f5,6 /proc/$$/stat) $$"
    conf = f"interface = json\ndir = {tmp_path}\numask = 027\n{{}}[param host]\n"
    for seq, more in ((1, ""), (2, "limit_files = 64\n"), (3, "")):
        theatre.score(f"show{seq}", f"{show}; cat >&3", conf.format(more))
        player.perform(seq, f"show{seq}", params={"host": "web1"})
        outcome, body = player.ended(seq)
        assert outcome["response"] == {"host": "web1"}
        umask, where, handles, ids = body.decode().splitlines()
        assert (umask, where, int(handles)) == ("0027", str(tmp_path), 5)  # ls looks at a directory, too
        assert len(set(ids.split())) == 1


def test_every_limit_is_heard(theatre: Theatre, player: Player) -> None:
    conf = """
        nice = 7
        limit_cpu = 1.5s
        limit_memory = 1G
        limit_files = 64
        limit_processes = 4000
        limit_core = 0
        limit_file_size = 10M
    """
    theatre.score("show", "cat /proc/self/limits; echo nice $(nice)", conf)
    player.perform(1, "show")
    lines = player.ended(1)[1].decode().splitlines()
    table = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert table["Max cpu time"] == ["2", "7"]
    assert table["Max address space"] == [str(1 << 30)] * 2
    assert table["Max open files"] == ["64"] * 2
    assert table["Max processes"] == ["4000"] * 2
    assert table["Max core file size"] == ["0"] * 2
    assert table["Max file size"] == [str(10 << 20)] * 2
    assert "nice 7" in lines


def test_a_limit_is_never_more_than_the_stage_has(theatre: Theatre, player: Player) -> None:
    theatre.score("show", "ulimit -Hn", "limit_files = 1000000")
    theatre.score("own", "ulimit -Hn")
    player.perform(1, "own")
    own = int(player.ended(1)[1])
    player.perform(2, "show")
    assert int(player.ended(2)[1]) == min(own, 1_000_000)


def test_a_run_past_its_cpu_limit_fails_by_the_signal(theatre: Theatre, player: Player) -> None:
    theatre.score("spin", "while :; do :; done", "limit_cpu = 1s")
    outcome = player.outcome(1, "spin")
    assert (outcome["told"], outcome["signal"]) == ("failed", 24)
