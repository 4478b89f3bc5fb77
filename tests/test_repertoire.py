"""What a player has on disk, as it announces it and as it may start it."""

import os
from pathlib import Path

import pytest

from orchestra.errors import NoSuchScore, UnfitScore
from orchestra.model import Catalogue, RefusedScore, ScoreEntry
from orchestra.player.repertoire import Repertoire

ME = {os.getuid()}


def put(path: Path, content: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    """A file that came as configuration management brings it: whole, and with its mode."""
    new = path.parent / ".new"
    new.write_text(content)
    new.chmod(mode)
    return new.replace(path)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    directory = tmp_path / "scores"
    directory.mkdir()
    directory.chmod(0o755)
    put(directory / "a")
    put(directory / "b")
    put(directory / "b.conf", "description = The second\nidempotent = yes\ntimeout = 5s", 0o644)
    return directory


@pytest.fixture
def repertoire(scores: Path) -> Repertoire:
    made = Repertoire(str(scores), ME)
    assert made.reload() == ("score 'a' added", "score 'b' added")
    return made


def names(catalogue: Catalogue) -> list[str]:
    return [score.name for score in catalogue.scores]


def test_before_the_first_reload_it_is_empty(scores: Path) -> None:
    catalogue = Repertoire(str(scores), ME).catalogue
    assert (catalogue.scores, catalogue.refused) == ((), ())


def test_the_catalogue_says_what_the_conductor_needs(repertoire: Repertoire) -> None:
    digest = repertoire.find("b").digest
    assert repertoire.catalogue.scores[1] == ScoreEntry("b", digest, "The second", "env", 5_000, 10_000, 1, True, 3)
    assert names(repertoire.catalogue) == ["a", "b"]
    assert repertoire.catalogue.refused == ()


def test_equal_disks_share_one_catalogue(scores: Path, repertoire: Repertoire) -> None:
    """Neither times nor inodes are in its digest."""
    before = repertoire.catalogue
    for path in list(scores.iterdir()):
        put(path, path.read_text(), path.stat().st_mode & 0o777)
    assert repertoire.reload() == ()
    assert repertoire.catalogue == before


def test_a_reload_says_what_changed(scores: Path, repertoire: Repertoire) -> None:
    """One line for each, and the digest moves; what did not change is not mentioned."""
    before = repertoire.catalogue.digest
    put(scores / "b.conf", "timeout = 6s", 0o644)
    put(scores / "c")
    (scores / "a").unlink()
    assert repertoire.reload() == ("score 'a' removed", "score 'b' changed", "score 'c' added")
    assert names(repertoire.catalogue) == ["b", "c"]
    assert repertoire.catalogue.digest != before
    assert repertoire.reload() == ()


def test_a_bad_score_affects_no_other(scores: Path, repertoire: Repertoire) -> None:
    """It is refused with its path and reason, at every reload until it is mended; the rest can be started."""
    conf = put(scores / "a.conf", "timeout = soon", 0o644)
    reason = f"{conf}: line 1: timeout: expected a duration such as 10s, 5m, 1h or 2d, not 'soon'"
    assert repertoire.reload() == (f"'a' refused: {reason}",)
    assert repertoire.reload() == (f"'a' refused: {reason}",)
    assert repertoire.catalogue.refused == (RefusedScore("a", reason),)
    assert names(repertoire.catalogue) == ["b"]
    assert repertoire.find("b").name == "b"
    with pytest.raises(UnfitScore, match="line 1: timeout"):
        repertoire.find("a")
    conf.unlink()
    assert repertoire.reload() == ("score 'a' added",)


def test_a_refused_score_that_is_removed_is_said_to_be(scores: Path, repertoire: Repertoire) -> None:
    (scores / "a").chmod(0o644)
    repertoire.reload()
    (scores / "a").unlink()
    assert repertoire.reload() == ("score 'a' removed",)
    assert repertoire.catalogue.refused == ()


def test_find_gives_what_the_disk_has_now(scores: Path, repertoire: Repertoire) -> None:
    """A score is found changed or new without a reload; what is announced waits for one."""
    announced = repertoire.catalogue
    before = repertoire.find("b")
    put(scores / "b.conf", "timeout = 7s", 0o644)
    put(scores / "new")
    assert repertoire.find("b").rules.timeout == 7_000
    assert repertoire.find("b").digest != before.digest
    assert repertoire.find("new").path == str(scores / "new")
    assert repertoire.catalogue == announced
    assert repertoire.changed_on_disk()
    assert repertoire.reload() == ("score 'b' changed", "score 'new' added")


def test_what_is_not_there_is_not_found(scores: Path, repertoire: Repertoire) -> None:
    with pytest.raises(NoSuchScore, match="This player has no score named 'absent'"):
        repertoire.find("absent")
    (scores / "a").unlink()
    with pytest.raises(NoSuchScore):
        repertoire.find("a")
    put(scores / "a")
    assert repertoire.find("a").name == "a"


@pytest.mark.parametrize("name", ["", "../scores/a", "a.conf", "a\0", "/bin/sh", "a" * 300, "\udc80"])
def test_no_name_leads_out_of_the_directory(repertoire: Repertoire, name: str) -> None:
    with pytest.raises(NoSuchScore) as caught:
        repertoire.find(name)
    assert caught.value.sentence.isprintable()
    assert len(caught.value.sentence) < 200


def test_a_score_that_became_unfit_is_not_found(scores: Path, repertoire: Repertoire) -> None:
    """The check before a start does not wait for a reload either."""
    (scores / "a").chmod(0o777)
    with pytest.raises(UnfitScore, match="writable by group or others"):
        repertoire.find("a")
    assert repertoire.changed_on_disk()


def test_nothing_changed_on_disk(scores: Path, repertoire: Repertoire) -> None:
    """Only what would change the catalogue counts: not a touched file, nor one that is no score."""
    assert not repertoire.changed_on_disk()
    os.utime(scores / "a", (1, 1))
    put(scores / "a.bak")
    assert not repertoire.changed_on_disk()


@pytest.mark.parametrize("change", ["touch", "unlink", "chmod", "conf"])
def test_a_change_on_disk_is_seen(scores: Path, repertoire: Repertoire, change: str) -> None:
    """Until it is loaded, and no longer."""
    match change:
        case "touch":
            put(scores / "c")
        case "unlink":
            (scores / "a").unlink()
        case "chmod":
            (scores / "a").chmod(0o666)
        case "conf":
            put(scores / "a.conf", "", 0o644)
    assert repertoire.changed_on_disk()
    assert repertoire.changed_on_disk()
    repertoire.reload()
    assert not repertoire.changed_on_disk()


def test_a_missing_directory_is_an_empty_catalogue_with_the_reason(scores: Path, repertoire: Repertoire) -> None:
    """And it heals."""
    away = scores.rename(scores.parent / "away")
    assert repertoire.changed_on_disk()
    said = f"'{scores}' refused: {scores}: does not exist"
    assert repertoire.reload() == ("score 'a' removed", "score 'b' removed", said)
    assert repertoire.catalogue.scores == ()
    assert repertoire.catalogue.refused == (RefusedScore(str(scores), f"{scores}: does not exist"),)
    with pytest.raises(UnfitScore, match="does not exist"):
        repertoire.find("a")
    away.rename(scores)
    assert repertoire.reload() == ("score 'a' added", "score 'b' added")


def test_a_directory_that_others_may_write_has_no_scores(scores: Path, repertoire: Repertoire) -> None:
    """One reason for the directory, not one for each file in it."""
    scores.chmod(0o775)
    repertoire.reload()
    assert [refused.name for refused in repertoire.catalogue.refused] == [str(scores)]
    assert "writable by group or others" in repertoire.catalogue.refused[0].reason


def test_an_empty_directory_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir(mode=0o755)
    empty = Repertoire(str(tmp_path / "none"), ME)
    assert empty.reload() == ()
    assert (empty.catalogue.scores, empty.catalogue.refused) == ((), ())
