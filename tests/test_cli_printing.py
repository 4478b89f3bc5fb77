"""What is shown cannot do anything to the terminal it is shown on."""

import pytest

from orchestra.cli.printing import answer, job_head, json_task, json_text, lasted, safe, safe_lines
from orchestra.model import Course, JobView, Stream, TaskView, Waves

DONE = TaskView(task=0, player="web1", state="ok", attempt=1, rc=0, started_at=1_000, ended_at=3_500)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü", "plain äöü"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\0\x7f\x9b", "a\\x0ab\\x0d\\x00\\x7f\\x9b"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\U000e0001", "\\U000e0001"),
        ("\udcff", "\\udcff"),
    ],
)
def test_whatever_a_terminal_could_obey_is_escaped(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_output_is_lines_and_what_is_not_text_is_escaped() -> None:
    assert safe_lines(b"one\r\n\x1b]0;title\x07two\t.\xff\n") == ["one", "\\x1b]0;title\\x07two   .\\xff"]
    assert safe_lines(b"") == []


def test_json_carries_text_and_the_bytes_where_the_text_is_not_exact() -> None:
    assert json_text(b"abc") == {"text": "abc"}
    assert json_text(b"a\xff") == {"text": "a\ufffd", "base64": "Yf8="}


def test_an_answer_has_outcome_response_output_and_notes() -> None:
    task = TaskView(
        task=0,
        player="web1",
        state="failed",
        attempt=1,
        rc=3,
        reason="no such disk\x1b[2J",
        started_at=1_000,
        ended_at=3_500,
        response={"disk\x07": "sda\n"},
        stdout=Stream(4, None, ((0, 4),), b"out\n"),
        stderr=Stream(4, None, ((0, 4),), b"err\n"),
        notes=("left a process behind",),
    )
    assert answer(task, {}, 7) == [
        "web1: \x1b[31mfailed\x1b[0m (exit status 3) in 2.5 s - no such disk\\x1b[2J",
        "    disk\\x07 = sda\\x0a",
        "    | out",
        "    ! err",
        "    note: left a process behind",
    ]


def test_the_signal_is_named() -> None:
    killed = TaskView(task=0, player="web1", state="killed", attempt=1, signal=9)
    assert "killed\x1b[0m (signal SIGKILL)" in answer(killed, {}, 7)[0]


def test_what_has_not_ended_says_why() -> None:
    waiting = TaskView(task=0, player=None, state="pending", attempt=0, why="waits: nobody is there")
    assert answer(waiting, {}, 7) == ["(not chosen yet): waits: nobody is there"]


def test_long_output_shows_its_end_and_the_way_to_all_of_it() -> None:
    data = b"".join(b"line %d\n" % n for n in range(1_000))
    task = TaskView(
        task=0, player="web1", state="ok", attempt=1, stdout=Stream(len(data), None, ((0, len(data)),), b"")
    )
    lines = answer(task, {1: data[-2_000:]}, 7)
    assert lines[1] == f"    | … of {len(data)} bytes this is the end; what was kept: getstatus 7 --output web1"
    assert lines[-1] == "    | line 999"
    assert len(lines) == 12


def test_a_task_in_json_has_every_field_and_readable_streams() -> None:
    value = json_task(DONE)
    assert value.keys() == set(TaskView.__struct_fields__)
    assert value["stdout"] == {"total": 0, "sha256": None, "spans": (), "text": ""}


def test_a_job_says_who_asked_even_behind_sudo() -> None:
    job = JobView(
        job=7,
        score="uptime",
        params={"password": "hunter2"},
        scope="all",
        owner="root",
        uid=0,
        login_uid=4_000_000_000,
        request_key=None,
        created_at=0,
        expires_at=None,
        ended_at=None,
        priority=0,
        counts={"ok": 1, "pending": 1},
        verdict="",
        last_event=1,
    )
    head = "\n".join(job_head(job))
    assert "uptime on 2 hosts: not ended (1 pending, 1 ok)" in head
    assert "root (uid 0, logged in as 4000000000)" in head
    assert "1 parameter: password (--json tells more)" in head
    assert "hunter2" not in head


@pytest.mark.parametrize(
    ("milliseconds", "said"), [(12, "12 ms"), (59_900, "59.9 s"), (61_000, "1 min 01 s"), (3_720_000, "1 h 02 min")]
)
def test_durations_are_said_as_a_person_would(milliseconds: int, said: str) -> None:
    assert lasted(milliseconds) == said


def test_a_job_that_rolls_says_how_far_it_is() -> None:
    """The wave, the limits, when the next one begins, and why it was stopped."""
    waves = Waves(tasks=200, batch=10, canary=2, max_failures=3, pause=30_000)
    known: dict[str, object] = {"params": {}, "uid": 1, "login_uid": None, "request_key": None, "created_at": 0}
    known |= {"expires_at": None, "ended_at": None, "priority": 0, "verdict": "", "last_event": 9, "counts": {"ok": 2}}
    course = Course(waves=waves, wave=1, opened=2, next_at=60_000, stopped="stopped: 4 failed")
    view = JobView(
        job=7, score="s", scope="all", owner="anne", course=course, not_before=0, rerun_of=3, reruns=(8, 9), **known  # type: ignore[arg-type]
    )  # fmt: skip
    assert job_head(view)[2:-1] == [
        "  a rerun of job 3",
        "  run again as job 8, 9",
        "  not before 1970-01-01 00:00:00 UTC",
        (
            "  rolling: wave 1 of 21 (10 at a time, 2 first, which must be ok, at most 3 failed, 30.0 s between waves); "
            "the next 1970-01-01 00:01:00 UTC"
        ),
        "  stopped: 4 failed",
    ]
