"""A pinned run starts from the stage's own copy: what was checked is what runs, whatever happens to the disk."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stagehand import Player, Theatre, public_theatre, python_for_all, read_fifo

from orchestra.errors import NotStarted
from orchestra.player import pins
from orchestra.player.loop import Loop
from orchestra.player.pins import Pins
from orchestra.player.scorefile import load

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


def digest(theatre: Theatre, name: str) -> str:
    return load(str(theatre.scores), name, {os.geteuid()}).digest


def copies(theatre: Theatre) -> list[str]:
    place = theatre.state / "pins"
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


# ---- on a real stage


def test_a_pinned_run_runs_from_a_copy_that_is_called_as_the_score(theatre: Theatre, player: Player) -> None:
    """The stage's own file, with its conf; the outcome has the digest."""
    theatre.score("where", 'echo "path=$0"; ls "$(dirname "$0")"', "interface = pipe")
    wanted = digest(theatre, "where")
    player.perform(1, "where", digest=wanted)
    outcome, body = player.ended(1)
    copy = theatre.state / "pins" / f"{wanted}.where" / "where"
    assert (outcome["told"], outcome["digest"], outcome["response"]) == ("ok", wanted, {"path": str(copy)})
    assert body == b"where\nwhere.conf\n"
    assert copy.read_bytes() == (theatre.scores / "where").read_bytes()
    assert (copy.stat().st_uid, copy.stat().st_mode & 0o777) == (os.geteuid(), 0o755)


def test_a_run_that_is_not_pinned_makes_no_copy(theatre: Theatre, player: Player) -> None:
    theatre.score("plain", 'echo "$0"')
    player.perform(1, "plain")
    assert player.ended(1)[1].decode() == f"{theatre.scores}/plain\n"
    assert not (theatre.state / "pins").exists()


def test_what_changes_on_the_disk_while_it_runs_does_not_change_a_pinned_run(
    theatre: Theatre, player: Player, tmp_path: Path
) -> None:
    """A score that runs itself anew finds itself as it was; one that is not pinned finds what is there by then."""
    go, done = tmp_path / "go", tmp_path / "done"
    for fifo in (go, done):
        os.mkfifo(fifo)
    text = f'[ "$again" ] && exec echo old > {done}\ncat {go}\nagain=1 exec "$0"'
    for seq, pinned, says in ((1, False, b"new\n"), (2, True, b"old\n")):
        file = theatre.score("slow", text)
        player.perform(seq, "slow", digest=digest(theatre, "slow") if pinned else "")
        with open(go, "w"):  # opens when the score is there to read
            with open(file, "r+") as disk:  # in place, as an editor or a careless deployment would
                disk.write(f"#!/bin/sh\n{text}\n".replace("echo old", "echo new"))
        assert read_fifo(done) == says
        assert player.ended(seq)[0]["told"] == "ok"


def test_another_digest_on_the_disk_is_refused_and_both_are_named(theatre: Theatre, player: Player) -> None:
    """Also when a copy of the one that was asked for is still there: the disk says what may run."""
    theatre.score("deploy", "echo one")
    first = digest(theatre, "deploy")
    assert player.outcome(1, "deploy", digest=first)["told"] == "ok"
    theatre.score("deploy", "echo another")
    player.perform(2, "deploy", digest=first)
    reason = player.hear("refused", 2)[0]["reason"]
    assert digest(theatre, "deploy")[:12] in reason and first[:12] in reason
    assert [name.partition(".")[0] for name in copies(theatre)] == [first]


def test_the_conf_is_pinned_too(theatre: Theatre, player: Player) -> None:
    theatre.score("deploy", "echo one", "timeout = 10s")
    wanted = digest(theatre, "deploy")
    (theatre.scores / "deploy.conf").write_text("timeout = 20s")
    player.perform(1, "deploy", digest=wanted)
    assert wanted[:12] in player.hear("refused", 1)[0]["reason"]


def test_a_successor_trusts_no_copy_that_it_did_not_make(theatre: Theatre, player: Player) -> None:
    """What a power failure has left is looked at, and made anew if it is not what it is called."""
    theatre.score("deploy", "echo whole")
    wanted = digest(theatre, "deploy")
    assert player.outcome(1, "deploy", digest=wanted)["told"] == "ok"
    copy = theatre.state / "pins" / f"{wanted}.deploy" / "deploy"
    (theatre.state / "pins" / "new-unfinished").mkdir()
    theatre.stages[0].kill()
    theatre.stages[0].wait()
    copy.write_text("#!/bin/sh\necho half")
    theatre.start()
    successor = Player(theatre)
    assert copies(theatre) == [f"{wanted}.deploy"]
    successor.perform(2, "deploy", digest=wanted)
    assert successor.ended(2)[1] == b"whole\n"
    successor.close()


def test_a_copy_that_somebody_removed_is_made_again(theatre: Theatre, player: Player) -> None:
    theatre.score("deploy", "echo here")
    wanted = digest(theatre, "deploy")
    assert player.outcome(1, "deploy", digest=wanted)["told"] == "ok"
    (theatre.state / "pins" / f"{wanted}.deploy" / "deploy").unlink()
    assert player.outcome(2, "deploy", digest=wanted)["told"] == "ok"


def test_two_scores_of_one_digest_keep_their_names(theatre: Theatre, player: Player) -> None:
    for name in ("one", "two"):
        theatre.score(name, 'basename "$0"')
    assert digest(theatre, "one") == digest(theatre, "two")
    for seq, name in enumerate(("one", "two"), 1):
        player.perform(seq, name, digest=digest(theatre, name))
        assert player.ended(seq)[1].decode() == f"{name}\n"


@pytest.fixture
def public() -> Iterator[Theatre]:
    """A theatre that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        made = public_theatre(Path(home))
        yield made
        made.close()


@as_root
def test_another_user_runs_a_copy_and_cannot_change_it(public: Theatre) -> None:
    """They get to it and no further: nothing else of the stage's is open to them."""
    look = 'id -un; echo x 2>/dev/null >>"$0" || echo kept; ls .. 2>/dev/null || echo closed; ls ../../runs 2>/dev/null || echo closed'
    public.score("who", f'cd "$(dirname "$0")"; {look}', "user = daemon")
    public.run(public.command())
    player = Player(public)
    player.perform(1, "who", digest=digest(public, "who"))
    assert player.ended(1)[1].decode().split() == ["daemon", "kept", "closed", "closed"]
    player.close()


@as_root
def test_what_a_user_may_not_run_they_may_not_run_pinned(public: Theatre) -> None:
    """A copy is no way around the permissions of a score, nor a way to read it."""
    public.score("secret", "echo password", "user = daemon", mode=0o700)
    public.run(public.command())
    player = Player(public)
    player.perform(1, "secret", digest=digest(public, "secret"))
    assert "may not be run by daemon" in player.hear("refused", 1)[0]["reason"]
    player.close()


@as_root
def test_a_stage_that_is_not_root_pins_as_its_user(public: Theatre) -> None:
    public.score("own", 'id -un; stat -c %U "$0"')
    public.state.mkdir()
    os.chown(public.state, 65534, 65534)
    public.socket = public.state / "socket"
    public.run([python_for_all(), *public.command(user=None)[1:]], user=65534, group=65534, extra_groups=[])
    player = Player(public)
    player.perform(1, "own", digest=digest(public, "own"))
    assert player.ended(1)[1] == b"nobody\nnobody\n"
    player.close()


# ---- copies alone


@pytest.fixture
def keeping(tmp_path: Path) -> Callable[..., Pins]:
    """Copies in a directory, on a loop that turns until what was said is said."""
    (tmp_path / "state").mkdir()
    return lambda loop, running=set, say=lambda _: None: Pins(str(tmp_path / "state"), loop, running, say)


def test_what_changed_between_check_and_copy_is_refused(theatre: Theatre, keeping: Callable[..., Pins]) -> None:
    """The copy is what is checked; nothing of it stays."""
    file = theatre.score("deploy", "echo one")
    checked = load(str(theatre.scores), "deploy", {os.geteuid()})
    file.write_text("#!/bin/sh\necho two\n")
    with pytest.raises(NotStarted) as refused:
        keeping(Loop(lambda: None)).pinned(checked)
    assert checked.digest[:12] in refused.value.sentence
    assert digest(theatre, "deploy")[:12] in refused.value.sentence
    assert list((file.parents[1] / "state" / "pins").iterdir()) == []


def test_a_pipe_in_the_place_of_a_score_holds_nobody_up(theatre: Theatre, keeping: Callable[..., Pins]) -> None:
    file = theatre.score("deploy", "echo one")
    checked = load(str(theatre.scores), "deploy", {os.geteuid()})
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(NotStarted):
        keeping(Loop(lambda: None)).pinned(checked)


def test_a_copy_is_removed_when_nothing_has_run_from_it_for_a_while(
    theatre: Theatre, keeping: Callable[..., Pins], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while something runs from it."""
    monkeypatch.setattr(pins, "KEEP", 0.01)
    theatre.score("deploy", "echo one")
    score = load(str(theatre.scores), "deploy", {os.geteuid()})
    running, looks = {score.digest}, []

    def seen() -> set[str]:
        looks.append(Path(copy).exists())
        if len(looks) == 3:
            running.clear()
        return set(running)

    loop = Loop(lambda: None)
    copy = (kept := keeping(loop, seen, lambda _: loop.stop())).pinned(score).path
    loop.run()
    assert looks[:3] == [True, True, True]
    assert not Path(copy).parent.exists()
    kept.recover()


def test_a_stage_with_no_room_for_a_copy_says_so(
    theatre: Theatre, keeping: Callable[..., Pins], tmp_path: Path
) -> None:
    theatre.score("deploy", "echo one")
    score = load(str(theatre.scores), "deploy", {os.geteuid()})
    (tmp_path / "state").rmdir()
    with pytest.raises(NotStarted, match="the stage cannot keep a copy of score deploy: No such file"):
        keeping(Loop(lambda: None)).pinned(score)
