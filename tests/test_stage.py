"""A real stage runs real scores: what it starts, what it refuses, how runs end, and what outlives whom."""

import hashlib
import os
import pwd
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stagehand import (
    ME,
    PATIENCE,
    Player,
    Theatre,
    alive,
    end,
    public_theatre,
    python_for_all,
    read_fifo,
    wait_until_gone,
)

import orchestra.player.stage
from orchestra.player import handover
from orchestra.player.streams import Answers, Kept
from orchestra.player.sweep import scan

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch users")


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    made = Theatre(tmp_path)
    yield made
    made.close()


@pytest.fixture
def player(theatre: Theatre) -> Iterator[Player]:
    theatre.start()
    made = Player(theatre)
    yield made
    made.close()


# ---- what a score finds, and how it ends


def test_a_score_that_exits_with_0_is_ok_and_its_output_is_kept(theatre: Theatre, player: Player) -> None:
    """Exit status 0 is success; short output travels in the outcome."""
    score = theatre.score("greet", "echo hello; echo careful >&2")
    player.perform(1, "greet")
    started, _ = player.hear("started")
    outcome, body = player.ended(1)
    assert (outcome["told"], outcome["rc"], outcome["signal"]) == ("ok", 0, None)
    assert started["at"] == outcome["started_at"] <= outcome["ended_at"]
    assert body == b"hello\ncareful\n"
    assert outcome["stdout"] == {"total": 6, "sha256": hashlib.sha256(b"hello\n").hexdigest(), "spans": [[0, 6]]}
    assert outcome["notes"] == [] and outcome["response"] is None
    assert outcome["digest"] and score.exists()


def test_any_other_exit_status_is_a_failure(theatre: Theatre, player: Player) -> None:
    theatre.score("fail", "exit 3")
    outcome = player.outcome(1, "fail")
    assert (outcome["told"], outcome["rc"], outcome["signal"]) == ("failed", 3, None)


def test_a_score_that_dies_by_a_signal_has_failed_and_the_signal_is_named(theatre: Theatre, player: Player) -> None:
    theatre.score("crash", "kill -SEGV $$")
    outcome = player.outcome(1, "crash")
    assert (outcome["told"], outcome["rc"], outcome["signal"]) == ("failed", None, signal.SIGSEGV)


def test_the_environment_is_built_from_nothing(theatre: Theatre, player: Player) -> None:
    """A score finds what the design lists, and no variable or descriptor of the stage's."""
    theatre.score("env", "exec /usr/bin/env", "path = /opt/tools:/usr/bin")
    player.perform(9, "env", params={"path": "/srv/a b", "x": "line\nline"}, attempt=2)
    _, body = player.ended(9)
    found = body.decode().replace("line\nline", "line line").splitlines()
    assert sorted(line for line in found if not line.startswith(("PWD=", "SHLVL=", "_="))) == [
        f"HOME={pwd.getpwnam(ME).pw_dir}",
        "LANG=C.UTF-8",
        "ORCHESTRA_ATTEMPT=2",
        "ORCHESTRA_DRY_RUN=0",
        "ORCHESTRA_JOB=7",
        "ORCHESTRA_PLAYER=web1.example.com",
        f"ORCHESTRA_RUN={theatre.journal}:9",
        "ORCHESTRA_SCORE=env",
        "ORC_path=/srv/a b",
        "ORC_x=line line",
        "PATH=/opt/tools:/usr/bin",
    ]


def test_a_score_stands_alone(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """Its own session and group, no argument, its directory and umask, stdin empty, no descriptor of ours."""
    look = 'echo $#; cat; echo $(cut -d" " -f5,6 /proc/$$/stat) $$; umask; pwd; readlink /proc/$$/fd/*'
    theatre.score("look", look, f"dir = {tmp_path}\numask = 027")
    player.perform(1, "look")
    _, body = player.ended(1)
    arguments, ids, umask, where, *handles = body.decode().splitlines()
    group, session, pid = ids.split()
    assert (arguments, umask, where) == ("0", "0027", str(tmp_path))
    assert group == session == pid
    ours = [handle for handle in handles if not handle.startswith((str(theatre.scores), "/proc/"))]  # the shell's own
    assert ours[0] == "/dev/null" and len(ours) == 3 and all(handle.startswith("pipe:") for handle in ours[1:])


def test_signals_that_the_stage_was_told_to_ignore_are_not_ignored_by_scores(theatre: Theatre) -> None:
    """A stage started under nohup does not make scores deaf to SIGHUP."""
    theatre.score("deaf", "grep SigIgn /proc/self/status")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        theatre.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    player = Player(theatre)
    player.perform(1, "deaf")
    _, body = player.ended(1)
    ignored = int(body.split()[1], 16)
    assert [number for number in signal.valid_signals() if ignored >> number - 1 & 1] == []
    player.close()


def test_what_the_stage_was_started_with_goes_to_no_score(theatre: Theatre, tmp_path: Path) -> None:
    """A descriptor that its parent forgot to close; and none is missed that its parent has closed."""
    theatre.score("handles", "ls -l /proc/self/fd | grep -c '[0-9]* -> '")
    with (tmp_path / "secret").open("w") as file:
        theatre.run(["/bin/sh", "-c", 'exec "$@" <&-', "-", *theatre.command()], pass_fds=[file.fileno()])
    player = Player(theatre)
    player.perform(1, "handles")
    assert player.ended(1)[1] == b"4\n"  # three, and the directory that ls looks at
    player.close()


def test_a_run_is_told_to_have_started_before_it_has_ended(theatre: Theatre, player: Player) -> None:
    """Whether it is over at once or not."""
    theatre.score("quick", "true")
    theatre.score("slow", "sleep 0.1")
    for seq, name in enumerate(("quick", "slow", "quick"), 1):
        player.perform(seq, name)
    heard = [(message["type"], message["seq"]) for message, _ in (player.hear() for _ in range(6))]
    assert sorted(heard) == [(kind, seq) for kind in ("ended", "started") for seq in (1, 2, 3)]
    assert all(heard.index(("started", seq)) < heard.index(("ended", seq)) for seq in (1, 2, 3))


def test_a_timeout_may_be_shorter_than_a_run_is_young(theatre: Theatre, player: Player) -> None:
    theatre.score("slow", "exec sleep 60", "timeout = 1ms")
    assert player.outcome(1, "slow")["reason"] == "ran longer than its timeout of 0.001s"


# ---- output


def test_output_without_end_is_kept_at_its_head_and_tail_in_flat_memory(theatre: Theatre) -> None:
    """100 MB of output: the true total and sha256, the first and last bytes, and a stage that does not grow."""
    stage = theatre.start()
    player = Player(theatre)
    size = 100_000_000
    theatre.score("much", f"echo begin; head -c {size} /dev/zero; echo end", "output_limit = 64k")
    player.perform(1, "much")
    outcome, body = player.ended(1)
    expected = hashlib.sha256(b"begin\n" + bytes(size) + b"end\n").hexdigest()
    total = size + 10
    kept = outcome["stdout"]
    assert kept == {"total": total, "sha256": expected, "spans": [[0, 16384], [total - 49152, 49152]]}
    assert body == b"" and not outcome["inline"]
    assert fetched(player, 1, 1, 0, 16384).startswith(b"begin\n\0")
    assert fetched(player, 1, 1, total - 49152, 49152).endswith(b"\0end\n")
    assert fetched(player, 1, 1, total - 4, 100) == b"end\n"
    status = Path(f"/proc/{stage.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    assert peak < 40_000, f"{peak} kB"
    player.close()


def test_what_is_not_kept_cannot_be_fetched(theatre: Theatre, player: Player) -> None:
    theatre.score("some", "head -c 9000 /dev/zero", "output_limit = 8k")
    assert player.outcome(1, "some")["stdout"]["spans"] == [[0, 2048], [2856, 6144]]
    for seq, stream, offset in ((1, 1, 2048), (1, 1, 9000), (1, 2, 0), (1, 3, 0), (2, 1, 0)):
        player.say(type="fetch", seq=seq, stream=stream, offset=offset, size=10)
        piece, data = player.hear("piece")
        assert piece["gone"] and data == b""


def test_short_output_can_be_fetched_too(theatre: Theatre, player: Player) -> None:
    theatre.score("both", "printf abc; printf defgh >&2")
    player.outcome(1, "both")
    assert fetched(player, 1, 1, 1, 100) == b"bc"
    assert fetched(player, 1, 2, 1, 3) == b"efg"


def fetched(player: Player, seq: int, stream: int, offset: int, size: int) -> bytes:
    player.say(type="fetch", seq=seq, stream=stream, offset=offset, size=size)
    message, data = player.hear("piece")
    assert (message["seq"], message["stream"], message["offset"]) == (seq, stream, offset)
    return data


def test_a_pipe_scores_lines_become_its_response(theatre: Theatre, player: Player) -> None:
    """Split at the first =, the last one wins; other lines are output."""
    theatre.score("ask", r"printf 'a=1\nplain\n=x\nb=2=3\na=\303\274\nc=\377\nlast=yes'", "interface = pipe")
    player.perform(1, "ask")
    outcome, body = player.ended(1)
    assert outcome["response"] == {"a": "ü", "b": "2=3", "c": "\ufffd", "last": "yes"}
    assert body == b"plain\n=x\n"
    assert outcome["stdout"] == {"total": 9, "sha256": hashlib.sha256(body).hexdigest(), "spans": [[0, 9]]}


@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_answers_do_not_depend_on_how_the_stream_is_cut(size: int) -> None:
    text = b"a=1\r\n" + b"x" * 70_000 + b"=no\nnothing\nk=" + b"v" * 60_000 + b"\n\nb=2\n" + b"y" * 65_537 + b"\nz=end"
    answers = Answers(kept := Kept(1 << 20))
    for at in range(0, len(text), size):
        answers.feed(text[at : at + size])
    answers.close()
    assert answers.response == {"a": "1\r", "k": "v" * 60_000, "b": "2", "z": "end"}
    assert kept.data == b"x" * 70_000 + b"=no\nnothing\n\n" + b"y" * 65_537 + b"\n"


def test_a_response_is_cut_at_its_limit_and_says_so(theatre: Theatre, player: Player) -> None:
    """What does not fit is output: nothing is lost without a word."""
    write = "for k in a b c d; do printf $k=; head -c 20000 /dev/zero | tr '\\0' x; echo; done"
    theatre.score("talk", write, "interface = pipe")
    outcome = player.outcome(1, "talk")
    assert sorted(outcome["response"]) == ["a", "b", "c"]
    assert outcome["notes"] == ["response cut at 64 KiB"]
    assert outcome["stdout"]["total"] == 20_003


@pytest.mark.parametrize("limit", [0, 1, 3, 10, 1000])
def test_kept_is_the_first_quarter_and_the_last_three(limit: int) -> None:
    data = bytes(range(256)) * 3000
    kept = Kept(limit)
    for at in range(0, len(data), 777):
        kept.feed(data[at : at + 777])
    kept.close()
    head, tail = limit // 4, limit - limit // 4
    assert kept.data == data[:head] + (data[-tail:] if tail else b"")
    assert sum(length for _, length in kept.spans) == limit
    assert b"".join(data[at : at + length] for at, length in kept.spans) == kept.data


# ---- ending a run


def test_a_run_past_its_timeout_is_killed_and_told_so(theatre: Theatre, player: Player) -> None:
    theatre.score("slow", "exec sleep 60", "timeout = 100ms")
    outcome = player.outcome(1, "slow")
    assert (outcome["told"], outcome["reason"]) == ("killed", "ran longer than its timeout of 0.1s")
    assert (outcome["rc"], outcome["signal"]) == (None, signal.SIGTERM)


def test_a_score_that_ignores_sigterm_is_killed_after_its_grace(theatre: Theatre, player: Player) -> None:
    theatre.score(
        "stubborn", "trap '' TERM; echo armed; while :; do sleep 1; done", "timeout = 300ms\nkill_grace = 200ms"
    )
    outcome = player.outcome(1, "stubborn")
    assert (outcome["told"], outcome["signal"]) == ("killed", signal.SIGKILL)
    assert outcome["ended_at"] - outcome["started_at"] >= 400


def test_a_player_can_have_a_run_ended(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """Its reason is told; a score that tidies up on SIGTERM may, and its true exit status is told."""
    os.mkfifo(tmp_path / "up")
    theatre.score(
        "tidy",
        f"exec 2> /dev/null; trap 'echo tidied; exit 4' TERM; echo > {tmp_path}/up; while :; do sleep 0.05; done",
    )
    player.perform(1, "tidy")
    read_fifo(tmp_path / "up")
    player.say(type="kill", seq=1, reason="cancelled")
    outcome, body = player.ended(1)
    assert (outcome["told"], outcome["reason"], outcome["rc"]) == ("killed", "cancelled", 4)
    assert body == b"tidied\n"


def test_a_killed_run_leaves_nothing_behind(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """Neither in its process group nor in a session of its own, even where SIGTERM is ignored."""
    os.mkfifo(tmp_path / "up")
    theatre.score(
        "brood",
        f"trap '' TERM; sleep 60 & setsid sleep 60 & echo $! > {tmp_path}/up; wait",
        "kill_grace = 100ms",
    )
    player.perform(1, "brood")
    read_fifo(tmp_path / "up")
    player.say(type="kill", seq=1, reason="enough")
    assert player.ended(1)[0]["told"] == "killed"
    assert marked(f"{theatre.journal}:1") == []


def test_a_stopped_run_can_be_ended(theatre: Theatre, player: Player) -> None:
    theatre.score("stopped", "kill -STOP $$; echo woken", "timeout = 200ms")
    assert player.outcome(1, "stopped")["signal"] == signal.SIGTERM


def test_deadlines_hold_while_no_player_is_connected(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """A run outlives its player, is ended in time, and the next player hears of it."""
    os.mkfifo(tmp_path / "life")
    theatre.score("slow", f"exec > {tmp_path}/life; exec sleep 60", "timeout = 300ms")
    player.perform(1, "slow")
    player.hear("started")
    player.close()
    assert read_fifo(tmp_path / "life") == b""  # it has ended
    again = Player(theatre)
    run = again.standing["runs"]["1"]
    outcome = run["outcome"] if run["state"] == "done" else again.ended(1)[0]
    assert outcome["told"] == "killed"
    again.close()


def test_a_daemon_that_stays_and_holds_the_pipe_delays_nothing(
    theatre: Theatre, player: Player, tmp_path: Path
) -> None:
    """It is noted and left alone; what it writes later is read, thrown away, and does not break it."""
    for name in ("up", "go", "done"):
        os.mkfifo(tmp_path / name)
    daemon = f"echo > {tmp_path}/up; read x < {tmp_path}/go; head -c 300000 /dev/zero && echo fine > {tmp_path}/done"
    theatre.score("daemonize", f"setsid sh -c '{daemon}' & cat {tmp_path}/up; echo began")
    player.perform(1, "daemonize")
    outcome, body = player.ended(1)
    assert (outcome["told"], body) == ("ok", b"\nbegan\n")
    assert outcome["notes"] == ["left 1 process behind, outside its process group"]
    (tmp_path / "go").write_text("")
    assert read_fifo(tmp_path / "done") == b"fine\n"


def test_a_child_left_in_the_group_is_noted_and_left_alone(theatre: Theatre, player: Player) -> None:
    theatre.score("leave", "sleep 60 > /dev/null 2>&1 & echo $!")
    player.perform(1, "leave")
    outcome, body = player.ended(1)
    pid = int(body)
    assert outcome["notes"] == ["left 1 process behind, in its process group"]
    assert alive(pid)
    end(pid)


def marked(mark: str) -> list[int]:
    """Live processes that carry the mark of a run."""
    return [one.pid for one in scan() if one.mark == mark]


# ---- refusals


REFUSALS = [
    ("missing", {}, "no score named 'missing'"),
    ("../greet", {}, "not a name for a score"),
    ("sloppy", {}, "writable by group or others"),
    ("plain", {}, "not executable"),
    ("badconf", {}, "timeout"),
    ("nowhere", {}, "its directory /nonexistent/here cannot be entered"),
    ("nobodyhere", {}, "no such user"),
    ("nogroup", {}, "no such group"),
    ("noprogram", {}, "interpreter on its first line, does not exist"),
    ("garbage", {}, "neither a program for this machine nor does it begin with #!"),
    ("good", {"params": {"bad key": "x"}}, "bad key"),
    ("good", {"params": {"k": "a\0b"}}, "NUL"),
    ("good", {"digest": "0" * 64}, "is not the one that was asked for"),
]


@pytest.mark.parametrize(("name", "more", "words"), REFUSALS)
def test_what_cannot_be_run_is_refused_in_a_sentence(
    theatre: Theatre, player: Player, name: str, more: dict[str, object], words: str
) -> None:
    """Nothing is started, and the same is said to the next player."""
    theatre.score("good", "echo good")
    theatre.score("sloppy", "true", mode=0o775)
    theatre.score("plain", "true", mode=0o644)
    theatre.score("badconf", "true", "timeout = soon")
    theatre.score("nowhere", "true", "dir = /nonexistent/here")
    theatre.score("nobodyhere", "true", "user = no-such-user-here")
    theatre.score("nogroup", "true", "group = no-such-group-here")
    theatre.score("noprogram", "").write_text("#!/no/such/interpreter\n")
    theatre.score("garbage", "").write_bytes(b"\x00\x01\x02\x03")
    player.perform(1, name, **more)
    message, _ = player.hear()
    assert message["type"] == "refused"
    assert words in message["reason"]
    player.close()
    known = Player(theatre).standing["runs"]["1"]
    assert known["state"] == "done"
    assert (known["outcome"]["told"], known["outcome"]["reason"]) == ("refused", message["reason"])


def test_64_kib_of_parameters_run_and_one_byte_more_does_not(theatre: Theatre, player: Player) -> None:
    theatre.score("count", "printf %s $ORC_a$ORC_b$ORC_c$ORC_d | wc -c")
    params = dict.fromkeys("abcd", "v" * 16383)
    player.perform(1, "count", params=params)
    assert player.ended(1)[1] == b"65532\n"
    player.perform(2, "count", params={**params, "a": "v" * 16_384})
    assert "64 KiB" in player.hear()[0]["reason"]


def test_a_stage_without_descriptors_refuses_and_recovers(theatre: Theatre, player: Player) -> None:
    theatre.score("greet", "true")
    player.outcome(1, "greet")
    player.outcome(2, "greet")  # read again, now that the file is old enough to be trusted to show its changes
    stage = theatre.stages[0].pid
    free = max(int(name) for name in os.listdir(f"/proc/{stage}/fd")) + 2
    before = resource.prlimit(stage, resource.RLIMIT_NOFILE)
    resource.prlimit(stage, resource.RLIMIT_NOFILE, (free, before[1]))
    player.perform(3, "greet")
    assert player.hear()[0]["reason"] == "this machine cannot start another process: Too many open files"
    resource.prlimit(stage, resource.RLIMIT_NOFILE, before)
    assert player.outcome(4, "greet")["told"] == "ok"


def test_a_run_that_was_begun_is_not_begun_again(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """A replayed number starts nothing, whether the run goes on, has ended or was refused."""
    os.mkfifo(tmp_path / "go")
    ledger = tmp_path / "ledger"
    theatre.score("once", f"echo began >> {ledger}; cat {tmp_path}/go")
    player.perform(1, "once")
    player.hear("started")
    player.perform(1, "once")
    assert player.hear()[0] == {"type": "repeated", "seq": 1}
    (tmp_path / "go").write_text("")
    player.ended(1)
    player.perform(1, "once")
    assert player.hear()[0] == {"type": "repeated", "seq": 1}
    assert ledger.read_text() == "began\n"


def test_a_changed_score_is_read_again(theatre: Theatre, player: Player) -> None:
    """What runs is what is on disk when it starts."""
    theatre.score("change", "exit 1")
    first = player.outcome(1, "change")
    theatre.score("change", "exit 2")
    second = player.outcome(2, "change")
    assert (first["rc"], second["rc"]) == (1, 2)
    assert first["digest"] != second["digest"]


# ---- connections


def test_a_run_goes_on_without_its_player_and_is_told_to_the_next(
    theatre: Theatre, player: Player, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    theatre.score("long", f"cat {tmp_path}/go; echo survived")
    player.perform(1, "long")
    pid = player.hear("started")[0]["pid"]
    player.close()
    again = Player(theatre)
    assert again.standing["runs"]["1"]["state"] == "running"
    assert again.standing["runs"]["1"]["pid"] == pid
    (tmp_path / "go").write_text("")
    outcome, body = again.ended(1)
    assert (outcome["told"], body) == ("ok", b"survived\n")
    again.close()


def test_a_newer_connection_fences_the_older_one(theatre: Theatre, player: Player) -> None:
    """Closed before the newer one is answered: what the older asks from then on is not done."""
    theatre.score("greet", "true")
    newer = Player(theatre)
    try:
        player.perform(1, "greet")
    except BrokenPipeError:
        pass
    assert player.closed()
    assert not theatre.begun(1).exists()
    assert newer.outcome(2, "greet")["told"] == "ok"
    newer.close()


def test_half_a_request_of_an_older_connection_is_dropped(theatre: Theatre, player: Player) -> None:
    theatre.score("greet", "true")
    player.socket.sendall(struct.pack(">II", 500, 400) + b'{"type":"perform","seq":1,')
    newer = Player(theatre)
    assert player.closed()
    assert newer.standing["runs"] == {}
    assert newer.outcome(2, "greet")["told"] == "ok"
    newer.close()


def test_journals_do_not_see_each_other(theatre: Theatre, player: Player) -> None:
    """A new journal counts from its own numbers; the same number is another run."""
    theatre.score("greet", "true")
    player.outcome(1, "greet")
    other = Player(theatre, "journal-2")
    assert other.standing["runs"] == {}
    assert other.outcome(1, "greet")["told"] == "ok"
    other.close()


NONSENSE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack(">II", 1 << 30, 4),
    struct.pack(">II", 8, 4) + b"nope",
    struct.pack(">II", 6, 2) + b"[]",
    struct.pack(">II", 6, 2) + b"{}",
    struct.pack(">II", 27, 23) + b'{"type":"kill","seq":1}',
    struct.pack(">II", 49, 45) + b'{"type":"hello","journal":"../../../../../x"}',
]


@pytest.mark.parametrize("said", NONSENSE)
def test_nonsense_ends_the_connection_and_nothing_else(theatre: Theatre, player: Player, said: bytes) -> None:
    """A stranger that speaks another language is turned away; the player does not notice."""
    theatre.score("greet", "true")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(PATIENCE)
        stranger.connect(str(theatre.socket))
        stranger.sendall(said)
        assert stranger.recv(100) == b""
    assert player.outcome(1, "greet")["told"] == "ok"


@pytest.mark.parametrize(
    "field",
    [{"seq": 0}, {"seq": "1"}, {"seq": True}, {"params": {"a": 1}}, {"score": 5}, {"player": "a\nb"}, {"job": None}],
)
def test_a_perform_with_wrong_fields_starts_nothing(theatre: Theatre, player: Player, field: dict[str, Any]) -> None:
    theatre.score("greet", "true")
    player.perform(**{"seq": 1, "score": "greet", **field})
    assert player.closed()
    assert Player(theatre).standing["runs"] == {}


# ---- what is kept


def test_what_is_forgotten_is_gone_and_what_runs_cannot_be(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    theatre.score("long", f"cat {tmp_path}/go")
    theatre.score("greet", "true")
    player.outcome(1, "greet")
    player.perform(2, "long")
    player.hear("started")
    player.say(type="forget", seqs=[1, 2, 3])
    again = Player(theatre)
    assert list(again.standing["runs"]) == ["2"]
    assert not theatre.begun(1).exists()
    assert theatre.begun(2).exists()
    (tmp_path / "go").write_text("")
    again.ended(2)
    again.close()


def test_outcomes_outlive_the_stage(theatre: Theatre, player: Player) -> None:
    """A stage that is killed when nothing runs loses nothing."""
    theatre.score("greet", "echo hello")
    theatre.score("much", "head -c 10000 /dev/zero")
    first = player.outcome(1, "greet")
    second = player.outcome(2, "much")
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.start()
    again = Player(theatre)
    assert {seq: run["outcome"] for seq, run in again.standing["runs"].items()} == {"1": first, "2": second}
    assert again.body == b"hello\n"
    assert fetched(again, 2, 1, 0, 20_000) == bytes(10_000)
    again.close()


def test_a_damaged_record_counts_as_none(theatre: Theatre, player: Player) -> None:
    """What cannot be read back is not made up: the run was begun, and has no outcome."""
    theatre.score("greet", "echo hello")
    player.outcome(1, "greet")
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    record = theatre.begun(1)
    record.write_bytes(record.read_bytes()[:-2] + b"?\n")
    theatre.start()
    assert Player(theatre).standing["runs"] == {"1": {"state": "swept"}}


def test_what_an_earlier_stage_has_left_is_understood_and_removed(theatre: Theatre, player: Player) -> None:
    """It had three files for a run. A power failure may have taken the first of them."""
    theatre.score("greet", "echo hello")
    first = player.outcome(1, "greet")
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.age(1)
    theatre.begun(1).unlink()
    theatre.start()
    again = Player(theatre)
    assert again.standing["runs"] == {"1": {"state": "done", "outcome": first}}
    again.perform(1, "greet")
    again.hear("repeated", 1)
    again.say(type="forget", seqs=[1])
    again.outcome(2, "greet")
    assert sorted(path.name for path in theatre.begun(1).parent.iterdir()) == ["2"]
    again.close()


def test_what_an_earlier_stage_was_running_is_swept(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """By who it has recorded as its first process, if there is no mark any more."""
    os.mkfifo(tmp_path / "up")
    theatre.score("bare", f"exec env -i /bin/sh -c 'echo $$ > {tmp_path}/up; exec sleep 60'")
    player.perform(1, "bare")
    pid = int(read_fifo(tmp_path / "up"))
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.age(1)
    theatre.start()
    assert not alive(pid)
    again = Player(theatre)
    assert again.standing["runs"] == {"1": {"state": "swept"}}
    again.say(type="forget", seqs=[1])
    again.perform(2, "bare")
    again.hear("started", 2)
    assert sorted(path.name for path in theatre.begun(1).parent.iterdir()) == ["2"]
    again.close()


def test_the_file_of_a_forgotten_run_serves_the_next(theatre: Theatre, player: Player) -> None:
    """Its outcome is not taken for the next run's, whenever the stage dies."""
    theatre.score("greet", "echo hello")
    theatre.score("long", "exec sleep 60")
    for seq in (1, 2, 3):
        player.outcome(seq, "greet")
    file = theatre.begun(1).stat().st_ino
    player.say(type="forget", seqs=[1])
    player.say(type="fetch", seq=2, stream=1, offset=0, size=1)
    player.hear("piece", 2)  # and with that it has heard what was said before
    player.perform(4, "long")
    player.hear("started", 4)
    assert theatre.begun(4).stat().st_ino == file
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.start()
    runs = Player(theatre).standing["runs"]
    assert {seq: run["state"] for seq, run in runs.items()} == {"2": "done", "3": "done", "4": "swept"}


def test_a_run_that_was_begun_is_not_begun_in_a_spare_file(theatre: Theatre, player: Player) -> None:
    """Exclusive, as ever: what was begun stays what it was."""
    theatre.score("greet", "echo hello")
    for seq in (1, 2):
        player.outcome(seq, "greet")
    player.say(type="forget", seqs=[1])
    player.outcome(3, "greet")
    player.perform(2, "greet")
    assert player.hear()[0] == {"type": "repeated", "seq": 2}
    kept = theatre.files(2).done()
    assert kept and kept.body == b"hello\n"


def test_an_outcome_nobody_heard_is_on_disk(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    theatre.score("long", f"cat {tmp_path}/go; exit 5")
    player.perform(1, "long")
    player.hear("started")
    player.close()
    (tmp_path / "go").write_text("")
    run = (again := Player(theatre)).standing["runs"]["1"]
    outcome = run["outcome"] if run["state"] == "done" else again.ended(1)[0]
    done = theatre.files(1).done()
    assert done and done.outcome == outcome and outcome["rc"] == 5
    again.close()


# ---- a dead stage


def test_a_successor_sweeps_up_before_it_answers(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    """kill -9 of the stage in mid-run: the successor kills what it left, and only then is the run known as gone.

    Even what has left its process group, and what has thrown away its mark but stayed in the session.
    """
    os.mkfifo(tmp_path / "up")
    theatre.score(
        "brood",
        f"setsid sleep 60 & a=$!; env -i /bin/sleep 60 & echo $a $! $$ > {tmp_path}/up; wait",
    )
    theatre.score("greet", "true")
    player.outcome(1, "greet")
    player.perform(2, "brood")
    pids = [int(pid) for pid in read_fifo(tmp_path / "up").split()]
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    assert all(alive(pid) for pid in pids)
    theatre.start()
    assert not any(alive(pid) for pid in pids)
    runs = Player(theatre).standing["runs"]
    assert runs["1"]["state"] == "done"
    assert runs["2"] == {"state": "swept"}


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_stage_killed_in_a_storm_of_starts_is_accounted_for(
    theatre: Theatre, player: Player, tmp_path: Path, after: int
) -> None:
    """Whatever has written to the ledger is known to the successor, and nothing writes once that has answered."""
    ledger = tmp_path / "ledger"
    theatre.score("note", f"echo $ORC_n >> {ledger}; sleep 0.02; echo $ORC_n ended >> {ledger}")
    for seq in range(1, 61):
        player.perform(seq, "note", params={"n": str(seq)})
    for _ in range(after):
        player.hear("started")
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.start()
    written = ledger.read_text() if ledger.exists() else ""
    runs = Player(theatre).standing["runs"]
    assert {line.split()[0] for line in written.splitlines()} <= set(runs)
    assert len(runs) >= after
    finished = [seq for seq, run in runs.items() if run["state"] == "done"]
    assert all(f"{seq} ended" in written.splitlines() for seq in finished)
    assert not [one for one in scan() if one.mark.startswith(theatre.journal)]
    assert written == (ledger.read_text() if ledger.exists() else "")


def test_what_a_finished_run_left_is_not_swept(theatre: Theatre, player: Player) -> None:
    """A service that a score restarted lives through the death of the stage."""
    theatre.score("restart", "sleep 60 > /dev/null 2>&1 & setsid sleep 60 > /dev/null 2>&1 & echo $!")
    player.perform(1, "restart")
    _, body = player.ended(1)
    left = marked(f"{theatre.journal}:1")
    assert len(left) == 2 and int(body) in left
    theatre.stages[0].kill()
    theatre.stages[0].wait(PATIENCE)
    theatre.start()
    assert marked(f"{theatre.journal}:1") == left
    for pid in left:
        end(pid)


def test_a_stage_that_is_told_to_stop_ends_its_runs_truthfully(theatre: Theatre, player: Player) -> None:
    theatre.score("long", "exec sleep 60")
    player.perform(1, "long")
    player.hear("started")
    theatre.stages[0].terminate()
    outcome, _ = player.ended(1)
    assert (outcome["told"], outcome["reason"]) == ("killed", "the stage was stopped")
    assert theatre.stages[0].wait(PATIENCE) == 0
    theatre.start()
    assert Player(theatre).standing["runs"]["1"]["outcome"] == outcome


# ---- the process


def finished(command: list[str], **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE, **more)


def test_two_stages_do_not_share_a_directory(theatre: Theatre, player: Player) -> None:
    second = finished(theatre.command())
    assert second.returncode == 78
    assert f"Another stage is already using {theatre.state}" in second.stderr.decode()
    assert Player(theatre).standing["runs"] == {}


def test_a_stage_takes_no_socket_from_another(theatre: Theatre, player: Player, tmp_path: Path) -> None:
    second = finished(theatre.command("--dir", str(tmp_path / "other")))
    assert second.returncode == 78
    assert f"Another stage is already using {theatre.socket}" in second.stderr.decode()


def test_check_loads_everything_and_nothing_heavy(theatre: Theatre) -> None:
    """The stage stays small: the standard library's light half, and no package."""
    program = orchestra.player.stage.__file__
    done = finished(
        [sys.executable, "-I", "-S", "-X", "utf8", "-X", "importtime", program, "--check", str(handover.FORMAT)]
    )
    assert (done.returncode, done.stdout) == (0, b"ok\n")
    loaded = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()[1:]}
    assert "orchestra.player.running" in loaded
    ours = {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in ours} == {"orchestra"}
    heavy = {"asyncio", "ssl", "logging", "ctypes", "http", "email", "multiprocessing", "inspect", "unittest"}
    heavy |= {"hashlib", "traceback", "argparse", "shutil", "subprocess"}
    assert not heavy & {name.split(".")[0] for name in loaded}


@as_root
def test_a_stage_of_roots_wants_to_be_told_as_whom_scores_run(theatre: Theatre) -> None:
    done = finished(theatre.command(user=None))
    assert done.returncode == 78
    assert "write score_user in player.conf" in done.stderr.decode()


@pytest.fixture
def public() -> Iterator[Theatre]:
    """A theatre that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        made = public_theatre(Path(home))
        yield made
        made.close()


@as_root
def test_a_score_runs_as_the_user_its_conf_names(public: Theatre) -> None:
    """With that user's groups and home and none of root's; the message has no say in it."""
    public.score("who", "id -un; id -G; echo $HOME; grep CapEff /proc/self/status", "user = daemon")
    public.score("default", "id -un")
    public.run(public.command(user="nobody"))
    player = Player(public)
    player.perform(1, "who", user="root")
    _, body = player.ended(1)
    name, groups, home, capabilities = body.decode().splitlines()
    assert (name, groups.split()[0], home) == ("daemon", "1", "/usr/sbin")
    assert "0" not in groups.split()
    assert int(capabilities.split()[1], 16) == 0
    player.perform(2, "default")
    assert player.ended(2)[1] == b"nobody\n"
    player.close()


@as_root
def test_a_stage_that_is_not_root_refuses_to_be_somebody_else(public: Theatre) -> None:
    public.score("who", "id -un", "user = daemon")
    public.score("own", "id -un")
    public.state.mkdir()
    os.chown(public.state, 65534, 65534)
    public.socket = public.state / "socket"
    command = [python_for_all(), *public.command(user=None)[1:]]
    public.run(command, user=65534, group=65534, extra_groups=[])
    player = Player(public)
    player.perform(1, "who")
    assert "it is to run as daemon, but the stage runs as uid 65534" in player.hear("refused")[0]["reason"]
    player.perform(2, "own")
    assert player.ended(2)[1] == b"nobody\n"
    player.close()


@as_root
def test_the_stage_listens_to_root_and_the_players_user_only(public: Theatre) -> None:
    """Others cannot open the socket; were it open to them, the kernel's word on who they are would not let them in."""
    public.start("--player-uid", "65534")
    assert (public.socket.stat().st_uid, public.socket.stat().st_mode & 0o777) == (65534, 0o600)
    assert knock(public, 65534) == "answered"
    assert knock(public, 1) == "PermissionError"
    public.socket.chmod(0o666)
    assert knock(public, 1) == "turned away"
    assert knock(public, 0) == "answered"


def knock(theatre: Theatre, uid: int) -> str:
    """What a process of this user gets to hear when it says hello."""
    code = (
        "import socket, struct, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        "try:\n"
        "    s.connect(sys.argv[1])\n"
        '    m = b\'{"type":"hello","journal":"j"}\'\n'
        "    s.sendall(struct.pack('>II', len(m) + 4, len(m)) + m)\n"
        "    print('answered' if s.recv(10) else 'turned away')\n"
        "except (BrokenPipeError, ConnectionResetError): print('turned away')\n"
        "except OSError as e: print(type(e).__name__)\n"
    )
    command = [python_for_all(), "-c", code, str(theatre.socket)]
    done = finished(command, user=uid, group=uid, extra_groups=[], cwd="/")
    return done.stdout.decode().strip() or done.stderr.decode()


def test_the_log_names_events_and_never_parameters(theatre: Theatre, player: Player) -> None:
    theatre.score("greet", "true")
    player.outcome(1, "greet", params={"secret": "hunter2"})
    player.perform(2, "no\nsuch")
    player.hear("refused")
    theatre.stages[0].terminate()
    assert theatre.stages[0].stderr
    log = theatre.stages[0].stderr.read().decode()
    assert "run 1 of greet: started" in log and "run 1: ok, exit status 0" in log
    assert "hunter2" not in log and "\nsuch" not in log


def test_gone_processes_do_not_confuse_the_helpers() -> None:
    """The test's own means of seeing that a process is gone can tell the difference."""
    process = subprocess.Popen(["sleep", "60"])
    assert alive(process.pid)
    process.kill()
    wait_until_gone(process.pid)
    assert not alive(process.pid)
    process.wait(PATIENCE)


def test_a_log_is_opened_anew_on_sighup(theatre: Theatre) -> None:
    """So that logrotate may move it away."""
    theatre.score("greet", "true")
    assert finished(theatre.command("--log", str(theatre.log), "--detach")).returncode == 0
    player = Player(theatre)
    stage = player.standing["pid"]
    try:
        player.outcome(1, "greet")
        theatre.log.rename(theatre.log.with_suffix(".old"))
        os.kill(stage, signal.SIGHUP)
        player.outcome(2, "greet")
        player.outcome(3, "greet")
        player.perform(4, "missing")
        player.hear("refused")  # the log is written when what it is about was said
        assert "run 3: ok" in theatre.log.read_text()
    finally:
        player.close()
        os.kill(stage, signal.SIGTERM)
        wait_until_gone(stage)
