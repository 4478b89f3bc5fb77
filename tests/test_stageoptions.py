"""The stage's command line says what a stage needs, or what is wrong with it."""

import pytest

from orchestra.player.stageoptions import StageOptions

NEEDED = ["--socket", "/run/s", "--dir", "/var/d", "--scores", "/etc/scores"]


def test_what_is_not_said_is_nothing() -> None:
    options = StageOptions(NEEDED)
    assert (options.socket, options.dir, options.scores) == ("/run/s", "/var/d", "/etc/scores")
    assert (options.score_user, options.player_uid, options.log, options.resume) == (None, None, None, None)
    assert (options.detach, options.check) == (False, None)


def test_every_word_is_understood_in_both_forms() -> None:
    """An older stage becomes this program with the words that it was started with, and one more."""
    more = ["--score-user=nobody", "--player-uid", "7", "--log", "/l", "--detach", "--resume=9"]
    options = StageOptions([*NEEDED, *more, "--dir=/other"])
    assert (options.score_user, options.player_uid, options.log, options.resume) == ("nobody", 7, "/l", 9)
    assert (options.detach, options.dir) == (True, "/other")


def test_a_trial_needs_nothing_else() -> None:
    assert StageOptions(["--check", "2"]).check == 2
    assert StageOptions([*NEEDED, "--check", "3"]).check == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (NEEDED[:-2], "--socket, --dir and --scores are needed"),
        ([*NEEDED, "--colour", "red"], "option --colour not recognized"),
        ([*NEEDED, "--log"], "option --log requires argument"),
        ([*NEEDED, "--player-uid", "me"], "--player-uid takes a number, not 'me'"),
        ([*NEEDED, "please"], "please is no option"),
    ],
)
def test_what_makes_no_sense_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        StageOptions(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"\n{says}\n")


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        StageOptions(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    options = {f"--{name.replace('_', '-')}" for name in vars(StageOptions(NEEDED))}
    assert {option for option in options if option not in said} == set()
