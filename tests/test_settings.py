"""Every key of the daemons' files is declared once, and means the same in the file and on the command line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import settings
from orchestra.config import Key, parse, sections
from orchestra.errors import EX_CONFIG, OrchestraError
from orchestra.options import ConductorOptions, DaemonOptions, PlayerOptions
from orchestra.settings import CONDUCTOR, PLAYER, ConductorAddress, Listen


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "conductor.conf").write_text("")
    (tmp_path / "player.conf").write_text("conductors = c.example\n")
    return tmp_path


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(OrchestraError) as caught:
        call(*arguments)
    assert caught.value.status == EX_CONFIG
    return caught.value.sentence


# ---- the two files


def test_an_empty_conductor_conf_gives_the_defaults(conf: Path) -> None:
    found = settings.conductor(str(conf))
    assert found.listen == (Listen("0.0.0.0", 2258),)
    assert (found.default_expire, found.removal_grace, found.beat) == (86_400_000, 900_000, 30_000)
    assert (found.send_queue, found.log_size, found.log_format) == (8 << 20, 10 << 20, "text")


def test_paths_start_at_the_configuration_directory(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the daemon is started, and when the directory itself is named relatively."""
    monkeypatch.chdir(conf.parent)
    found = settings.conductor(conf.name, {"state": "s/../store", "crl": "/x/crl.pem"})
    assert found.config == str(conf)
    assert found.players == str(conf / "players")
    assert found.certificate == str(conf / "tls/conductor.crt")
    assert (found.state, found.crl) == (str(conf / "store"), "/x/crl.pem")
    assert settings.conductor(conf.name).crl == ""


def test_the_stage_keeps_its_outcomes_in_the_players_state_unless_told(conf: Path) -> None:
    assert settings.player(str(conf), {"state": "/s"}).stage_dir == "/s/stage"
    assert settings.player(str(conf), {"state": "/s", "stage_dir": "/other"}).stage_dir == "/other"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[tls]", "this file has no [sections]"),
        ("slots = 0", "slots: expected a whole number from 1 to 1024, not '0'"),
        ("slot = 4", "slot: unknown key; did you mean 'slots'?"),
        ("beat = 0", "beat: expected a duration longer than 0, not '0'"),
        ("log_size = 1k", "log_size: expected a size of at least 64k, not '1k'"),
        ("stage_start = true", "stage_start: expected yes or no, not 'true'"),
        ("state =", "state: expected a path, not ''"),
        ("log_format = xml", "log_format: expected text or json, not 'xml'"),
    ],
)
def test_what_is_wrong_names_file_line_and_key(conf: Path, line: str, problem: str) -> None:
    (conf / "player.conf").write_text(f"conductors = c.example\n{line}\n")
    assert refused(settings.player, str(conf)) == f"{conf}/player.conf, line 2: {problem}"


def test_a_missing_file_and_a_missing_key_are_named(conf: Path) -> None:
    """A mistyped --config does not start a daemon with defaults."""
    (conf / "player.conf").write_text("")
    assert refused(settings.player, str(conf)).startswith(f"{conf}/player.conf: conductors: must be written: ")
    assert (
        refused(settings.conductor, "/no/where")
        == "/no/where/conductor.conf: cannot be read: No such file or directory"
    )


def test_a_socket_path_the_kernel_would_refuse_is_refused_here(conf: Path) -> None:
    """107 bytes are allowed, counted as the file system counts them."""
    fits = "/" + "x" * 106
    assert settings.conductor(str(conf), {"audience": fits}).audience == fits
    sentence = refused(settings.conductor, str(conf), {"audience": "/" + "x" * 105 + "é"})
    assert sentence.startswith("command line: audience: the kernel allows a socket path of 107 bytes")


def test_everything_that_is_wrong_is_said_at_once(conf: Path) -> None:
    """In the order of the file's complaints, each key once; a file that is right has no problems."""
    (conf / "player.conf").write_text("slot = 4\nbeat = 0\nslots = 1\nslots = x\n")
    wrong = [problem.sentence.partition(": ")[2] for problem in settings.problems(str(conf), "player.conf", PLAYER)]
    assert [sentence.partition(":")[0] for sentence in wrong] == ["slot", "slots", "conductors", "beat"]
    assert settings.problems(str(conf), "conductor.conf", CONDUCTOR) == ()
    (conf / "conductor.conf").write_text("audience = " + "x" * 200)
    (wrong_length,) = settings.problems(str(conf), "conductor.conf", CONDUCTOR)
    assert "the kernel allows" in wrong_length.sentence
    (conf / "conductor.conf").write_text("a word")
    (no_syntax,) = settings.problems(str(conf), "conductor.conf", CONDUCTOR)
    assert "expected 'key = value'" in no_syntax.sentence


def test_never_must_be_written(conf: Path) -> None:
    assert settings.conductor(str(conf), {"default_expire": "never"}).default_expire is None
    assert "longer than 0" in refused(settings.conductor, str(conf), {"default_expire": "0"})


# ---- addresses


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:0", [("127.0.0.1", 0)]),
        ("10.0.0.1", [("10.0.0.1", 2258)]),
        ("[::]:2258, 0.0.0.0:2258", [("::", 2258), ("0.0.0.0", 2258)]),
        ("0.0.0.0:1 0.0.0.0:1", [("0.0.0.0", 1)]),
        ("[2001:DB8::1]", [("2001:db8::1", 2258)]),
    ],
)
def test_what_may_be_listened_on(text: str, found: list[tuple[str, int]]) -> None:
    assert list(settings.listens(text)) == found


@pytest.mark.parametrize(
    "text", ["", "host:1", "0.0.0.0:65536", "0.0.0.0:", ":2258", "::1", "[::1", "[1.2.3.4]:5", "1:2:3"]
)
def test_what_may_not_be_listened_on(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        settings.listens(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("C.Example", [("c.example", "c.example", 2258)]),
        ("c.example:99", [("c.example", "c.example", 99)]),
        ("c.example@10.0.0.1", [("c.example", "10.0.0.1", 2258)]),
        ("c@[::1]:5, D@gw.example:6", [("c", "::1", 5), ("d", "gw.example", 6)]),
        ("c c", [("c", "c", 2258)]),
    ],
)
def test_conductors_have_a_name_and_an_address(text: str, found: list[ConductorAddress]) -> None:
    assert list(settings.conductor_addresses(text)) == found


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "c:0", "c:x", "@10.0.0.1", "c@", "c@a@b", "[::1]:5", "*.example", "c:1@10.0.0.1"]
)
def test_what_is_no_conductor(text: str) -> None:
    """An address has no certificate: a name is asked for."""
    with pytest.raises(ValueError, match="expected"):
        settings.conductor_addresses(text)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://x", "expected a port from 0 to 65535 at the end of 'http://x'"),
        ("a b:99999", "expected a port from 0 to 65535 at the end of 'b:99999', not 'a b:99999'"),
        ("10.0.0.1", "expected a host name such as web1.example.org, not '10.0.0.1'"),
    ],
)
def test_a_wrong_address_is_quoted_once(conf: Path, value: str, problem: str) -> None:
    (conf / "player.conf").write_text(f"conductors = {value}\n")
    assert refused(settings.player, str(conf)) == f"{conf}/player.conf, line 1: conductors: {problem}"


@given(st.text(st.sampled_from("ab1.:@[] ,-")))
def test_any_text_is_addresses_or_an_expectation(text: str) -> None:
    for understand in (settings.listens, settings.conductor_addresses):
        said = "expected"
        try:
            understand(text)
        except ValueError as problem:
            said = str(problem)
        assert said.startswith("expected")


# ---- the players file


def players(tmp_path: Path, text: str, domain: str = "") -> tuple[str, ...]:
    (tmp_path / "players").write_text(text)
    return settings.players_file(str(tmp_path / "players"), domain)


def test_players_are_one_to_a_line_each_once_in_lower_case(tmp_path: Path) -> None:
    """Comments and blank lines are nothing; the default domain completes names without a dot."""
    text = "# ours\n\nWeb1\n  web2.other.org  # new\r\nweb1.example.org\n"
    assert players(tmp_path, text, "example.org") == ("web1.example.org", "web2.other.org")
    assert players(tmp_path, text) == ("web1", "web2.other.org", "web1.example.org")


@pytest.mark.parametrize("line", ["web1 web2", "10.0.0.1", "web[01-20]", "*.example.org", "web1,"])
def test_a_line_that_is_no_host_name_is_named(tmp_path: Path, line: str) -> None:
    sentence = refused(players, tmp_path, f"web1\n{line}\n")
    assert sentence == f"{tmp_path}/players, line 2: expected a host name such as web1.example.org, not '{line}'"


def test_fifty_thousand_players_are_read(tmp_path: Path) -> None:
    """The bound on the size of a .conf file is not one on the fleet."""
    names = tuple(f"node{number:05}.cluster.example.org" for number in range(50_000))
    assert players(tmp_path, "\n".join(names)) == names


# ---- the command line


def parsed(options: DaemonOptions, *argv: str) -> DaemonOptions:
    options.parseOptions(list(argv))
    return options


def test_every_key_is_an_option_that_wins_over_the_file(conf: Path) -> None:
    (conf / "player.conf").write_text("conductors = c.example\nslots = 3\n")
    options = parsed(PlayerOptions(), "--config", str(conf), "--slots", "4", "--score-user=nobody", "--stage_start=no")
    found = options.read()
    assert (found.slots, found.score_user, found.stage_start) == (4, "nobody", False)


@pytest.mark.parametrize(("options", "keys"), [(ConductorOptions, CONDUCTOR), (PlayerOptions, PLAYER)])
def test_help_shows_every_key_with_its_sentence(
    options: type[DaemonOptions],
    keys: tuple[Key, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """-help, as the older guide says, is --help."""
    monkeypatch.setenv("COLUMNS", "400")
    for word in ("-help", "--help"):
        with pytest.raises(SystemExit) as ended:
            parsed(options(), word)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{settings.option_name(key)}=" in text and key.meaning in text for key in keys)


def test_a_bad_setting_ends_with_78_and_a_sentence(conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(PlayerOptions(), "--config", str(conf), "--slots=many")
    assert ended.value.code == EX_CONFIG
    assert capfd.readouterr().err == "command line: slots: expected a whole number from 1 to 1024, not 'many'\n"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("slots=4", "'slots=4' is not understood here; a setting is written --KEY=VALUE"),
        ("--colour=red", "option --colour not recognized"),
        ("--slots", "option --slots requires argument"),
    ],
)
def test_a_word_that_is_no_setting_ends_with_78_and_a_sentence(
    conf: Path, capfd: pytest.CaptureFixture[str], word: str, problem: str
) -> None:
    """A mistake in a unit's command line is not tried again and again."""
    with pytest.raises(SystemExit) as ended:
        parsed(PlayerOptions(), "--config", str(conf), word)
    assert ended.value.code == EX_CONFIG
    assert capfd.readouterr().err == f"command line: {problem} (--help lists what is)\n"


def test_what_only_the_machine_can_judge_names_its_place_too(conf: Path) -> None:
    """A group or an address that this machine does not have: the file and the line, or the command line."""
    (conf / "player.conf").write_text("conductors = c.example\n\nscore_user = nosuch\n")
    options = parsed(PlayerOptions(), "--config", str(conf), "--slots=3")
    assert str(options.wrong("score_user", "no")) == f"{conf}/player.conf, line 3: score_user: no"
    assert str(options.wrong("scores", "no")) == f"{conf}/player.conf: scores: no"
    assert str(options.wrong("slots", "no")) == "command line: slots: no"


def test_the_directory_is_kept_as_an_absolute_path(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that has gone to / reads the same files at SIGHUP."""
    monkeypatch.chdir(conf.parent)
    options = parsed(ConductorOptions(), "--config", conf.name)
    monkeypatch.chdir("/")
    assert options.read().config == str(conf)


# ---- declarations and samples


@pytest.mark.parametrize(("keys", "kind"), [(CONDUCTOR, settings.ConductorSettings), (PLAYER, settings.PlayerSettings)])
def test_keys_and_fields_are_the_same(keys: tuple[Key, ...], kind: type[tuple[Any, ...]]) -> None:
    """Each key is declared once, and has a field of its name in the same order."""
    assert ["config", *(key.name for key in keys)] == list(kind._fields)  # type: ignore[attr-defined]


@pytest.mark.parametrize("keys", [CONDUCTOR, PLAYER])
def test_a_sample_with_every_default_written_out_is_the_defaults(keys: tuple[Key, ...]) -> None:
    """What the sample shows as the default is the default, and it is in the syntax that is read."""
    text = settings.sample(keys, "T").replace("\n#", "\n").replace("conductors =", "conductors = c.example")
    lines = [line for line in text.split("\n") if line.partition(" ")[0] in {key.name for key in keys}]
    written = parse("sample", sections("sample", "\n".join(lines))[0].entries, keys)
    assert written.values == parse("none", (), keys, {"conductors": "c.example"} if keys is PLAYER else {}).values
    assert all(written.lines.values())
