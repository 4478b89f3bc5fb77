"""What people and programs are shown. Whatever came from a remote host is made harmless for a terminal first."""

import base64
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from orchestra import rolling
from orchestra.core import explain
from orchestra.core.explain import moment
from orchestra.model import Course, JobView, State, Stream, TaskView

TAIL_LINES: Final = 10
TAIL_BYTES: Final = 2_000
INDENT: Final = "    "
COLOURS: Final = {
    "ok": "green",
    "failed": "red",
    "killed": "red",
    "lost": "magenta",
    "refused": "yellow",
    "expired": "yellow",
    "cancelled": "yellow",
    "partial": "yellow",
}


def safe(text: str) -> str:
    """``text`` with everything that a terminal or an eye could take for something else written as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_lines(data: bytes) -> list[str]:
    """Output as lines that are safe to show; what is not UTF-8 is written as escapes."""
    text = data.decode(errors="backslashreplace")
    return [safe(line.removesuffix("\r").expandtabs()) for line in text.removesuffix("\n").split("\n")] if text else []


def say(text: str = "") -> None:
    """A line on stdout."""
    click.echo(text)


def tell(text: str) -> None:
    """A line on stderr, for the person at the terminal."""
    click.echo(text, err=True)


# ---- JSON


def print_json(value: object) -> None:
    """``value`` on one line of stdout."""
    click.echo(msgspec.json.encode(value).decode())


def json_text(data: bytes) -> dict[str, str]:
    """Bytes in JSON: as text, and exactly (base64) where the text is not."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"text": data.decode(errors="replace"), "base64": base64.b64encode(data).decode()}


def json_task(task: TaskView) -> dict[str, Any]:
    """A task in JSON."""
    value: dict[str, Any] = {name: getattr(task, name) for name in task.__struct_fields__}
    return value | {"stdout": _json_stream(task.stdout), "stderr": _json_stream(task.stderr)}


def _json_stream(stream: Stream) -> dict[str, Any]:
    kept: dict[str, Any] = {"total": stream.total, "sha256": stream.sha256, "spans": stream.spans}
    return kept | (json_text(stream.data) if stream.data or not stream.total else {})


# ---- tables


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; a terminal gets a handsome one, a pipe plain columns."""
    cells = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        return _rich_table(headers, cells)
    widths = [max(len(row[n]) for row in [list(headers), *cells]) for n in range(len(headers))]
    for row in [list(headers), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # slow to import, and most commands print no table
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(drawn)


# ---- values


def when(at: int | None) -> str:
    """A moment, or nothing."""
    return "" if at is None else moment(at)


def lasted(milliseconds: int) -> str:
    """A duration as a person says it."""
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def sized(size: int) -> str:
    """So many bytes, as a person says it."""
    for unit, power in (("GB", 30), ("MB", 20), ("kB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return f"{size} bytes"


def counted(counts: dict[str, int]) -> str:
    """``3 ok, 1 lost``, in the order of the states."""
    return ", ".join(f"{counts[state.label]} {state.label}" for state in State if counts.get(state.label))


def many(count: int, what: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def coloured(word: str) -> str:
    """A state or verdict; click drops the colour where there is no terminal."""
    return click.style(word, fg=COLOURS.get(word))


def host_of(task: TaskView) -> str:
    """Where a task is, or is to be, run."""
    return safe(task.player) if task.player else "(not chosen yet)"


def outcome(task: TaskView) -> str:
    """A task in one line: its outcome and why, or what it waits for."""
    if not State[task.state.upper()].terminal:
        return safe(task.why or task.state)
    words = [coloured(task.state) + _ending(task)]
    if task.started_at is not None and task.ended_at is not None:
        words.append(f"in {lasted(task.ended_at - task.started_at)}")
    if task.reason:
        words.append(f"- {safe(task.reason)}")
    return " ".join(words)


def _ending(task: TaskView) -> str:
    if task.signal is not None:
        return f" (signal {_signal_name(task.signal)})"
    return f" (exit status {task.rc})" if task.rc else ""


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def answer(task: TaskView, tails: dict[int, bytes], job: int) -> list[str]:
    """What a host answered: the outcome, the response, and the end of its output."""
    lines = [f"{host_of(task)}: {outcome(task)}"]
    lines += [f"{INDENT}{safe(key)} = {safe(_value(value))}" for key, value in (task.response or {}).items()]
    for number, mark, stream in ((1, "|", task.stdout), (2, "!", task.stderr)):
        lines += _tail(mark, stream, tails.get(number, stream.data), f"getstatus {job} --output {task.player}")
    return lines + [f"{INDENT}note: {safe(note)}" for note in task.notes]


def _value(value: Any) -> str:
    """A value of a response: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _tail(mark: str, stream: Stream, data: bytes, command: str) -> list[str]:
    lines = safe_lines(data[-TAIL_BYTES:])
    shown = lines[-TAIL_LINES:]
    if stream.total > len(data[-TAIL_BYTES:]) or len(lines) > len(shown):
        shown.insert(0, f"… of {stream.total} bytes this is the end; what was kept: {safe(command)}")
    return [f"{INDENT}{mark} {line}" for line in shown]


def details(task: TaskView) -> list[str]:
    """The rest of what is known of a task, for those who look closer."""
    lines = []
    for label, at in (("handed over", task.dispatched_at), ("started", task.started_at), ("ended", task.ended_at)):
        if at is not None:
            lines.append(f"{INDENT}{label} {when(at)}")
    if task.attempt > 1:
        lines.append(f"{INDENT}attempt {task.attempt}")
    if task.maybe_ran and not State[task.state.upper()].terminal:
        lines.append(f"{INDENT}an earlier attempt may have run")
    return lines + ([f"{INDENT}ran {safe(task.digest)}"] if task.digest else [])


def job_head(job: JobView) -> list[str]:
    """A job in a few lines."""
    total = sum(job.counts.values())
    hosts = {"one": "one host", "some": f"{total} of its targets"}.get(job.scope, f"{total} hosts")
    what = f"job {job.job}: {safe(job.score)} on {hosts}"
    if total == 1 and job.scope == "all":
        what = f"job {job.job}: {safe(job.score)} on 1 host"
    if job.dry_run:
        what += ", a dry run"
    standing = coloured(job.verdict) if job.verdict else "not ended"
    lines = [f"{what}: {standing} ({counted(job.counts)})", f"  asked by {asker(job)} on {when(job.created_at)}"]
    if job.request_key:
        lines.append(f"  request key {safe(job.request_key)}")
    if job.digest:
        lines.append(f"  pinned to {safe(job.digest)}")
    names = sorted([*job.params, *(f"{name} (secret)" for name in job.secrets)])
    if names:
        many = "1 parameter" if len(names) == 1 else f"{len(names)} parameters"
        lines.append(f"  {many}: {safe(', '.join(names))} (--json tells more)")
    if job.priority:
        lines.append(f"  priority {job.priority}")
    lines += [f"  {safe(line)}" for line in _course(job)]
    ends = f"ended {when(job.ended_at)}" if job.ended_at is not None else _expires(job)
    return [*lines, f"  {ends}"]


def _course(job: JobView) -> Iterator[str]:
    """How a job is handed out that is not handed out whole and at once."""
    if job.rerun_of is not None:
        yield f"a rerun of job {job.rerun_of}"
    if job.reruns:
        yield f"run again as job {', '.join(map(str, job.reruns))}"
    if job.not_before is not None:
        yield f"not before {when(job.not_before)}"
    if job.course is not None and job.course.waves.max_failures is not None:
        yield _rolls(job.course)
    if job.course is not None and job.course.stopped:
        yield job.course.stopped
    if job.paused is not None and not job.verdict:
        yield f"{explain.paused(job.paused)}; 'orchestra resume {job.job}' lets it go on"


def _rolls(course: Course) -> str:
    waves = course.waves
    how = [f"{waves.batch} at a time"] if waves.batch < waves.tasks else []
    how += [f"{waves.canary} first, which must be ok"] if waves.canary else []
    how += [f"at most {waves.max_failures} failed"]
    how += [f"{lasted(waves.pause)} between waves"] if waves.pause else []
    following = f"; the next {when(course.next_at)}" if course.next_at is not None else ""
    return f"rolling: wave {course.wave} of {rolling.how_many(waves)} ({', '.join(how)}){following}"


def asker(job: JobView) -> str:
    """Who asked; behind sudo, who had logged in too."""
    logged_in = "" if job.login_uid in (None, job.uid) else f", logged in as {user_name(job.login_uid or 0)}"
    return f"{safe(job.owner)} (uid {job.uid}{logged_in})"


def user_name(uid: int) -> str:
    """The name of a user of this machine, or the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _expires(job: JobView) -> str:
    return "never expires" if job.expires_at is None else f"what has not started by {when(job.expires_at)} expires"


def pipe_closed() -> None:
    """Nobody reads our stdout any more; keep the interpreter from complaining about that at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
