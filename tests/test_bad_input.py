"""Bad input gets an answer: from real daemons and real commands, a sentence that a person understands and an exit
status for programs."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Command, Perform, log_of, until_logged
from outside import OutsideOrchestra
from pki import DAY, Leaf, Signer, write

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import BadRequest
from orchestra.security import authority

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root's stage insists on it")
LENGTHS = "#!/bin/sh\n" + "".join(f'echo "{key}=${{#ORC_{key}}}"\n' for key in "abcd")
SCORES = {
    "lengths": (LENGTHS, "interface = pipe\n"),
    "loud": ("#!/bin/sh\nhead -c 100000000 /dev/zero\n", "timeout = 60s\n"),
    "escape": ("#!/bin/sh\nprintf '\\033[31mred\\000\\377\\n'\n", ""),
    # it says its number when it is in a session of its own, the end of its stdout that it has become the sleep;
    # it holds stderr, which is what makes the stage look for it
    "daemon": ("#!/bin/sh\npid=$(setsid sh -c 'echo $$; exec sleep 60 >/dev/null' &)\necho $pid\n", ""),
    "hydra": ("#!/bin/sh\nsetsid sleep 60 &\necho $!\nsleep 60\n", "timeout = 500ms\nkill_grace = 500ms\n"),
    "polite": ("#!/bin/sh\ntrap 'echo bye; exit 0' TERM\necho ready\nsleep 60 & wait\n", "interface = pipe\n"),
    "lost-shell": ("#!/no/such/shell\n", ""),
    "lost-place": ("#!/bin/sh\n", "dir = /no/such/place\n"),
    "picky": ("#!/bin/sh\n", "user = nosuchuser\n"),
}


def prepare(theatre: Theatre) -> None:
    """b has a disk of its own; the conductor reads revocation lists; an intermediate state of things to break."""
    for name, (text, conf) in SCORES.items():
        theatre.add_score(name, text, conf)
    own = theatre.home / "scores-b"
    own.mkdir(mode=0o755)
    for name in ("picky", "only-b", "uptime"):
        score = own / name
        score.write_text("#!/bin/sh\necho here\n")
        score.chmod(0o755)
    theatre.write_player("b.demo.test", theatre.home / "tls", scores=own)
    shutil.copy(theatre.home / "ca" / "crl.pem", theatre.home / "crl.pem")
    with (theatre.home / "conductor.conf").open("a") as file:
        file.write(f"crl = {theatre.home / 'crl.pem'}\n")


# ---- scores and hosts that are not there


def test_a_host_without_the_score_is_warned_of_and_refuses(perform: Perform, orchestra: OutsideOrchestra) -> None:
    """The others run it; the job says partial, and who did not and why."""
    receipt = orchestra.submit(Ask(score="only-b", targets=("a", "b"), scope=Scope.ALL))
    assert receipt.warnings == ("a.demo.test has no score 'only-b' today",)
    assert orchestra.wait(receipt.job, timeout=30).verdict == "partial"
    here, there = orchestra.tasks(receipt.job)
    assert (here.state, there.state) == ("refused", "ok")
    assert "no score named 'only-b'" in here.reason


def test_a_one_of_that_is_refused_goes_to_the_next(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """a is the only one there and refuses before it starts; b, when it comes, runs it."""
    theatre.stop("b")
    job = orchestra.submit(Ask(score="picky", targets=("a", "b"), scope=Scope.ONE)).job
    log = theatre.home / "log" / "conductor.log"
    wait_until(lambda: "pending" in _kinds(orchestra, job), "the refusal of a", log)
    assert orchestra.job(job).counts == {"pending": 1}
    theatre.start_player("b")
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    [task] = list(orchestra.tasks(job))
    assert task.player == "b.demo.test"
    tried = [event.player for event in orchestra.events(job) if event.kind == "dispatched"]
    assert tried == ["a.demo.test", "b.demo.test"]


def _kinds(orchestra: OutsideOrchestra, job: int) -> list[str]:
    return [event.kind for event in orchestra.events(job)]


@pytest.mark.parametrize(
    ("score", "says"),
    [("lost-shell", "the interpreter on its first line"), ("lost-place", "/no/such/place"), ("picky", "nosuchuser")],
)
def test_a_score_that_cannot_be_started_is_refused_with_its_reason(perform: Perform, score: str, says: str) -> None:
    """Proved never started, and what to mend."""
    job, [task] = perform(score, "a")
    assert job.counts == {"refused": 1}
    assert says in task.reason


# ---- what scores do


def test_parameters_of_64_kib_arrive_whole_and_one_byte_more_is_refused(
    perform: Perform, orchestra: OutsideOrchestra
) -> None:
    """The limit counts keys and values."""
    exact = dict.fromkeys("abcd", "x" * 16383)
    job, [task] = perform("lengths", "a", **exact)
    assert job.verdict == "ok"
    assert task.response == dict.fromkeys("abcd", "16383")
    with pytest.raises(BadRequest, match="64 KiB"):
        orchestra.submit(Ask(score="lengths", targets=("a",), scope=Scope.ALL, params=exact | {"a": "x" * 16384}))


def test_100_megabytes_of_output_pass_through_little_memory(theatre: Theatre, perform: Perform) -> None:
    """The total is true; player, stage and conductor keep what the limit says."""
    daemons = [theatre.pid("a"), theatre.pid("conductor"), *theatre.stages()]
    before = [_peak_memory(pid) for pid in daemons]
    job, [task] = perform("loud", "a")
    assert job.verdict == "ok"
    assert task.stdout.total == 100_000_000
    assert sum(length for _, length in task.stdout.spans) == 262_144
    grown = [_peak_memory(pid) - earlier for pid, earlier in zip(daemons, before, strict=True)]
    assert max(grown) < 16 << 20, grown


def _peak_memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_daemon_that_a_score_leaves_is_noted_and_left_alone(perform: Perform) -> None:
    """The score has ended, so its run has."""
    _, [task] = perform("daemon", "a")
    pid = int(task.stdout.data)
    try:
        os.kill(pid, 0)
        assert task.state == "ok"
        assert any("outside its process group" in note for note in task.notes)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_run_that_is_killed_is_killed_with_all_that_it_forked(perform: Perform) -> None:
    """A child that has left the process group too."""
    _, [task] = perform("hydra", "a")
    assert task.state == "killed"
    assert "timeout" in task.reason
    assert not Path(f"/proc/{int(task.stdout.data)}/cmdline").exists() or _is_zombie(int(task.stdout.data))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_cancelled_run_that_ends_politely_was_killed_all_the_same(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """It keeps its exit status and what it said."""
    job = orchestra.submit(Ask(score="polite", targets=("a",), scope=Scope.ALL)).job
    log = theatre.home / "log" / "a.log"
    wait_until(lambda: next(iter(orchestra.tasks(job))).started_at is not None, "the run", log)
    orchestra.cancel(job)
    assert orchestra.wait(job, timeout=30).counts == {"killed": 1}
    [task] = list(orchestra.tasks(job))
    assert (task.rc, task.stdout.data) == (0, b"ready\nbye\n")


def test_output_cannot_take_over_a_terminal(perform: Perform, command: Command) -> None:
    """Escapes are shown, not sent; programs get the bytes as they were."""
    job, _ = perform("escape", "a")
    shown = command("getstatus", job.job)
    assert (shown.returncode, "\033" in shown.stdout, "red" in shown.stdout) == (0, False, True)
    [task] = json.loads(command("getstatus", job.job, "--json").stdout)["tasks"]
    assert task["stdout"]["base64"]


# ---- command lines


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("submitjob nosuch a", 64, "None of the targets has a score named 'nosuch'"),
        ("submitjob uptime nobody", 64, "Not in the players file: nobody"),
        ("submitjob uptime", 64, "no target"),
        ("submitjob uptime a b", 64, "--all"),
        ("submitjob uptime a 9=x", 64, "parameter '9'"),
        ("submitjob uptime a k=1 k=2", 64, "given twice"),
        ("submitjob uptime a --expire soon", 64, "soon"),
        ("submitjob uptime a --params nosuchfile", 64, "nosuchfile"),
        ("getstatus 999999", 64, "no job 999999"),
        ("getstatus one", 64, "'one' is no number of a job"),
        ("getstatus 0", 64, "There is no job 0"),
        (f"getstatus {10**23}", 64, f"There is no job {10**23}"),
        (f"orchestra wait {2**63}", 64, f"There is no job {2**63}"),
        (f"orchestra cancel {2**64}", 64, f"There is no job {2**64}"),
        ("orchestra jobs --limit many", 64, "'many' is not a valid number"),
        ("orchestra cancel 999999", 64, "no job 999999"),
        ("orchestra players a nobody", 64, "Not in the players file: nobody"),
        ("orchestra scores nobody", 64, "Not in the players file: nobody"),
        ("orchestra frobnicate", 64, "frobnicate"),
        ("getstatus --socket /nowhere", 69, "No conductor answers at /nowhere"),
        (f"getstatus --socket /{'x' * 107}", 69, "a socket path of 107 bytes"),
    ],
)
def test_a_wrong_command_line_gets_a_sentence(command: Command, line: str, status: int, says: str) -> None:
    """One sentence on stderr, nothing on stdout, a status that tells what kind of wrong."""
    done = command(*line.split())
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_tell_a_whole_story(command: Command) -> None:
    """Submit, wait, look, filter, cancel: what is printed and with which status."""
    assert command("orchestra", "players", "a").stdout.splitlines()[1].startswith("a.demo.test  online")
    assert command("submitjob", "fail", "a", "status=7", "--request-key", "story").returncode == 0
    repeat = command("submitjob", "fail", "a", "status=7", "--request-key", "story")
    job = repeat.stdout.strip()
    assert "made by this request key before" in repeat.stderr
    assert command("submitjob", "fail", "a", "status=8", "--request-key", "story").returncode == 64
    assert command("orchestra", "wait", job).returncode == 10
    assert command("getstatus", job, "--only", "failed,lost", "--names").stdout == "a.demo.test\n"
    assert command("getstatus", job, "--only", "ok", "--names").stdout == ""
    assert json.loads(command("getstatus", job, "--json").stdout)["tasks"][0]["rc"] == 7
    waiting = command("submitjob", "uptime", "c", "--wait", "--timeout", "100ms")
    assert waiting.returncode == 13
    late = json.loads(command("orchestra", "jobs", "--unfinished", "--json").stdout)[0]["job"]
    assert command("orchestra", "cancel", late).stdout == f"job {late}: 1 cancelled\n"
    assert command("orchestra", "cancel", late).stdout == f"job {late}: 1 had ended before\n"
    assert command("orchestra", "wait", late).returncode == 12


# ---- daemons that must not start


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("conductor --config={home} --state={home}/other --audience={home}/o.pb", "cannot listen on 127.0.0.1:"),
        ("conductor --config={home} --state={home}/other --listen=127.0.0.1:0", "Another conductor is already using"),
        ("player --config={home}/a", "already using"),
        ("player --config={home}/c --key={home}/tls/a.demo.test.key", "not the one of the certificate"),
        ("player --config={home}/c --key={home}/open.key", "open.key"),
        ("player --config={home}/c --slots=none", "slots"),
        ("player --config={home}/c --colour=red", "command line: option --colour not recognized"),
        ("player --config={home}/c --score-user=nosuch", "score_user: this machine has no user 'nosuch'"),
        pytest.param("player --config={home}/c --score-user=", "write score_user in player.conf", marks=ROOT),
        ("conductor --config={home} --audience-group=nosuch", "audience_group: this machine has no group 'nosuch'"),
        ("player --config={home}/wrong", "player.conf, line 1: colour"),
        ("player --config={home}/nowhere", "nowhere"),
        ("player --config={home}/expired", "the certificate expired on"),
    ],
)
def test_a_daemon_that_is_set_up_wrongly_does_not_start(
    theatre: Theatre, command: Command, line: str, says: str
) -> None:
    """File, line and key in a sentence on stderr, and status 78, which systemd does not restart on."""
    _spoil(theatre)
    done = command("twistd", "-n", "--pidfile=", *line.format(home=theatre.home).split())
    assert done.returncode == 78, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def _spoil(theatre: Theatre) -> None:
    home = theatre.home
    shutil.copy(home / "tls" / "c.demo.test.key", home / "open.key")
    (home / "open.key").chmod(0o644)
    (home / "wrong").mkdir(exist_ok=True)
    (home / "wrong" / "player.conf").write_text("colour = red\n" + (home / "c" / "player.conf").read_text())
    _short_lived(theatre, "expired", Signer("short"), timedelta(seconds=-5))


def _short_lived(theatre: Theatre, short: str, signer: Signer, until: timedelta) -> None:
    leaf: Leaf = signer.leaf(f"{short}.demo.test", until=until)
    files = write(theatre.home / f"{short}-tls", leaf, [signer])
    ca = Path(files.ca)
    ca.write_bytes(ca.read_bytes() + (theatre.home / "tls" / "ca.crt").read_bytes())
    more = {"certificate": files.certificate, "key": files.key, "ca": files.ca}
    theatre.write_player(f"{short}.demo.test", theatre.home / "tls", **more)


def test_a_score_that_is_not_run_is_in_the_log_from_the_start(theatre: Theatre) -> None:
    """Who starts a player need not ask the conductor what is wrong with its scores."""
    theatre.add_score("wild", "#!/bin/sh\n", "")
    (theatre.scores / "wild").chmod(0o777)
    try:
        with started(theatre, "c"):
            until_logged(theatre, "c", "'wild' refused: ", "chmod go-w")
    finally:
        (theatre.scores / "wild").unlink()


def test_a_stage_that_is_not_there_is_said_once(theatre: Theatre) -> None:
    """It is tried every second; the log is not filled with that."""
    place = theatre.home / "run" / "nostage"
    theatre.write_player("c.demo.test", theatre.home / "tls", stage=place, stage_start="no")
    since = len(log_of(theatre, "c"))
    try:
        with started(theatre, "c"):
            until_logged(theatre, "c", f"No stage answers at {place}: No such file or directory.", since=since)
            with socket.socket(socket.AF_UNIX) as useless:
                useless.bind(str(place))
                useless.listen()
                for _ in range(3):
                    useless.accept()[0].close()
        said = re.findall(r"No stage answers.*", log_of(theatre, "c")[since:])
        assert len(said) > 1
        # between bind and listen, and after the last close, it may be refused: that is said anew, once each time
        assert all(one != other for one, other in pairwise(said)), said
    finally:
        theatre.write_player("c.demo.test", theatre.home / "tls")


# ---- files that change while daemons run


@contextmanager
def started(theatre: Theatre, short: str) -> Iterator[None]:
    """A player that is there for the length of a test."""
    theatre.start_player(short)
    try:
        yield
    finally:
        theatre.stop(short)


def status(orchestra: OutsideOrchestra, name: str) -> str:
    return next((player.status for player in orchestra.players() if player.name == name), "unknown")


def until_status(theatre: Theatre, orchestra: OutsideOrchestra, name: str, wanted: str) -> None:
    log = theatre.home / "log" / "conductor.log"
    wait_until(lambda: status(orchestra, name) == wanted, f"{name} {wanted}", log)


def test_a_revoked_certificate_ends_a_live_connection_and_a_new_one_mends_it(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Both sides say so; the player is back as soon as it has been told to read its new certificate."""
    ca = authority.load(theatre.home / "ca")
    with started(theatre, "c"):
        until_status(theatre, orchestra, "c.demo.test", "online")
        ca.revoke("c.demo.test")
        shutil.copy(theatre.home / "ca" / "crl.pem", theatre.home / "crl.pem")
        done = command("orchestra", "reload")
        assert done.returncode == 0, done.stderr
        assert "closed the connection of c.demo.test: its certificate was revoked" in done.stdout
        until_logged(theatre, "c", "the certificate of c.demo.test was revoked")
        until_status(theatre, orchestra, "c.demo.test", "offline")
        ca.issue("player", ["c.demo.test"], out=theatre.home / "tls")
        os.kill(theatre.pid("c"), signal.SIGHUP)
        until_logged(theatre, "c", "certificates read again")
        until_status(theatre, orchestra, "c.demo.test", "online")


def test_a_player_whose_certificate_expires_learns_it_at_its_next_connection(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Another authority is added to the bundles first, and its certificate is good until it is not."""
    signer = Signer("Brief authority", until=100 * DAY)
    _short_lived(theatre, "brief", signer, timedelta(seconds=8))
    bundle = theatre.home / "tls" / "ca.crt"
    brief = (theatre.home / "brief-tls" / "ca.crt").read_bytes()
    write(theatre.home / "brief-crl", signer.leaf("x"), [signer], crls=[signer.crl()])
    with (theatre.home / "crl.pem").open("ab") as lists:
        lists.write((theatre.home / "brief-crl" / "crl.pem").read_bytes())
    own = bundle.read_bytes()
    bundle.write_bytes(brief)
    players = theatre.home / "players"
    listed = players.read_text()
    players.write_text(listed + "brief.demo.test\n")
    done = command("orchestra", "reload")
    assert (done.returncode, done.stdout) == (0, "player brief.demo.test added\ncertificates read again\n"), done
    deadline = time.monotonic() + 9
    with started(theatre, "brief"):
        until_status(theatre, orchestra, "brief.demo.test", "online")
        players.write_text(listed)
        assert orchestra.reload().changed == ("player brief.demo.test removed",)
        until_logged(theatre, "brief", "was removed from the conductor's players file")
        wait_until(lambda: time.monotonic() > deadline, "the certificate's expiry", Path())
        os.kill(theatre.pid("brief"), signal.SIGHUP)
        until_logged(theatre, "brief", "our certificate expired on")
    bundle.write_bytes(own)
    shutil.copy(theatre.home / "ca" / "crl.pem", theatre.home / "crl.pem")
    assert "certificates read again" in orchestra.reload().changed


def test_sighup_lets_a_mended_score_in(theatre: Theatre, orchestra: OutsideOrchestra, perform: Perform) -> None:
    """Group-writable, then mended; the player says what changed."""
    theatre.add_score("loose", "#!/bin/sh\n", "")
    (theatre.scores / "loose").chmod(0o775)
    since = len(log_of(theatre, "a"))
    os.kill(theatre.pid("a"), signal.SIGHUP)
    until_logged(theatre, "a", "loose", since=since)
    wait_until(lambda: "loose" in _refused(orchestra), "the refusal", theatre.home / "log" / "a.log")
    assert "chmod go-w" in _refused(orchestra)["loose"]
    (theatre.scores / "loose").chmod(0o755)
    os.kill(theatre.pid("a"), signal.SIGHUP)
    wait_until(lambda: "loose" not in _refused(orchestra), "the mended score", theatre.home / "log" / "a.log")
    job, _ = perform("loose", "a")
    assert job.verdict == "ok"


@pytest.mark.parametrize(
    ("mode", "conf", "says"),
    [
        (0o644, "", "not executable; 'chmod +x' makes it a score"),
        (0o775, "", "writable by group or others (mode 0775); 'chmod go-w' mends that"),
        (0o755, "timeout = soon\n", "unfit.conf: line 1: timeout: expected a duration such as 10s, 5m, 1h or 2d"),
        (0o755, "colour = red\n", "unfit.conf: line 1: colour: unknown key"),
        (0o755, "gibberish\n", "unfit.conf: line 1: 'gibberish': expected 'key = value'"),
    ],
)
def test_who_asks_for_a_score_that_is_not_run_is_told_why(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, mode: int, conf: str, says: str
) -> None:
    """Not that there is none: somebody has it on the disk and wonders. A host that was never seen is asked later."""
    theatre.add_score("unfit", "#!/bin/sh\n", conf)
    (theatre.scores / "unfit").chmod(mode)
    try:
        reload = command("orchestra", "reload", "player", f"--config={theatre.home / 'a'}")
        assert f"'unfit' refused: {theatre.scores}/unfit" in reload.stdout
        wait_until(lambda: "unfit" in _refused(orchestra), "the refusal", theatre.home / "log" / "a.log")
        done = command("submitjob", "unfit", "a")
        assert (done.returncode, done.stdout) == (64, "")
        assert "None of the targets runs the score 'unfit'; a.demo.test says why: " in done.stderr
        assert says in done.stderr
    finally:
        (theatre.scores / "unfit").unlink()
        (theatre.scores / "unfit.conf").unlink()
        command("orchestra", "reload", "player", f"--config={theatre.home / 'a'}")


def _refused(orchestra: OutsideOrchestra) -> dict[str, str]:
    [(catalogue, _)] = list(orchestra.catalogues(["a.demo.test"]))
    return {each.name: each.reason for each in catalogue.refused}


def test_what_a_reload_cannot_read_leaves_the_old_in_force(
    theatre: Theatre, perform: Perform, command: Command
) -> None:
    """Conductor and player refuse a broken file with its name, status 78, and work on."""
    conductor = theatre.home / "tls" / "conductor.demo.test.crt"
    player = theatre.home / "tls" / "a.demo.test.crt"
    for file, line in ((conductor, ("reload",)), (player, ("reload", "player", f"--config={theatre.home / 'a'}"))):
        sound = file.read_bytes()
        file.write_text("no certificate\n")
        done = command("orchestra", *line)
        assert done.returncode == 78, done
        assert f"refused, the old one stays: {file}" in done.stderr
        file.write_bytes(sound)
        assert command("orchestra", *line).returncode == 0
    job, _ = perform("uptime", "a")
    assert job.verdict == "ok"


@pytest.mark.parametrize(
    ("daemon", "conf"), [("conductor", "conductor.conf"), ("player", "a/player.conf")], ids=["conductor", "player"]
)
def test_a_key_that_is_read_at_start_only_says_so(theatre: Theatre, command: Command, daemon: str, conf: str) -> None:
    """A change that has no effect yet is no silence."""
    file = theatre.home / conf
    before = file.read_text()
    file.write_text(before + "beat = 20s\n")
    done = command("orchestra", "reload", daemon, f"--config={file.parent}")
    file.write_text(before)
    assert done.returncode == 78
    assert f"read at start only: beat; restart the {daemon} for that" in done.stderr


def test_certificates_that_have_moved_are_read_once(theatre: Theatre, command: Command) -> None:
    """Other paths are a change once, not at every look."""
    file = theatre.home / "a" / "player.conf"
    before = file.read_text()
    moved = shutil.copy(theatre.home / "tls" / "ca.crt", theatre.home / "moved.crt")
    file.write_text(re.sub(r"^ca = .*$", f"ca = {moved}", before, flags=re.M))
    try:
        said = [command("orchestra", "reload", "player", f"--config={file.parent}").stdout for _ in range(2)]
        assert said == ["certificates read again\n", "nothing has changed\n"]
    finally:
        file.write_text(before)
        command("orchestra", "reload", "player", f"--config={file.parent}")
