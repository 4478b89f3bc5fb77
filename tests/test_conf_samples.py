"""The files under conf/ say the truth: samples show the defaults, and the units keep the daemons' promises."""

import os
import re
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from orchestra import settings
from orchestra.cli import stage as stage_cli
from orchestra.config import Key
from orchestra.core import groups
from orchestra.errors import EX_CONFIG, ConfigError

CONF = Path(__file__).parent.parent / "conf"
UNITS = ("orchestra-conductor", "orchestra-player", "orchestra-stage")
BIN = "/opt/orchestra/bin/"


def unit(name: str) -> RawConfigParser:
    found = RawConfigParser(delimiters="=", comment_prefixes="#", strict=True)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(CONF / f"{name}.service")
    return found


def command(name: str) -> list[str]:
    return unit(name)["Service"]["ExecStart"].split()


# ---- the settings


@pytest.mark.parametrize(("name", "keys"), [("conductor.conf", settings.CONDUCTOR), ("player.conf", settings.PLAYER)])
def test_a_sample_is_what_the_declarations_say(name: str, keys: tuple[Key, ...]) -> None:
    """To renew it: write settings.sample(keys, settings.SAMPLE_TITLES[name]) into it."""
    assert (CONF / name).read_text() == settings.sample(keys, settings.SAMPLE_TITLES[name])


def test_the_samples_are_read_as_they_are() -> None:
    """Only what must be written is missing, and the error says where to write it."""
    assert settings.conductor(str(CONF)).listen == (("0.0.0.0", 2258),)
    with pytest.raises(ConfigError, match=r"player\.conf, line \d+: conductors: expected at least one conductor"):
        settings.player(str(CONF))


def test_the_players_sample_lists_nobody_until_its_lines_are_uncommented(tmp_path: Path) -> None:
    assert settings.players_file(str(CONF / "players")) == ()
    (tmp_path / "players").write_text((CONF / "players").read_text().replace("\n#w", "\nw"))
    assert settings.players_file(str(tmp_path / "players")) == ("web1.example.org", "web2.example.org")


# ---- the units


@pytest.mark.parametrize("name", UNITS)
def test_a_daemon_comes_back_unless_its_configuration_is_wrong(name: str) -> None:
    service = unit(name)["Service"]
    assert (service["Restart"], service["RestartSec"]) == ("on-failure", "5")
    assert service["RestartPreventExitStatus"] == str(EX_CONFIG)
    assert unit(name)["Unit"]["StartLimitIntervalSec"] == "0"
    assert int(service["LimitNOFILE"]) >= 4096


@pytest.mark.parametrize("name", UNITS)
def test_who_starts_a_unit_waits_until_it_is_ready(name: str) -> None:
    """However long that takes: the command after it in a script finds the daemon there."""
    service = unit(name)["Service"]
    assert (service["Type"], service["TimeoutStartSec"]) == ("notify", "infinity")


@pytest.mark.parametrize(("name", "daemon"), [("orchestra-conductor", "conductor"), ("orchestra-player", "player")])
def test_twistd_stays_in_the_foreground_and_logs_to_the_journal(name: str, daemon: str) -> None:
    """No pidfile, no log file, no root; what the daemon may write is its own."""
    program, *arguments = command(name)
    assert program == f"{BIN}twistd"
    assert arguments[:3] == ["-n", "--pidfile=", daemon]
    service = unit(name)["Service"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["User"] == service["Group"] == "orchestra"
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == (f"orchestra/{daemon}", "0700")


def test_the_stages_directory_can_be_passed_through_and_not_read() -> None:
    """Whoever a score runs as gets to its pinned copy, and sees nothing else on the way."""
    service = unit("orchestra-stage")["Service"]
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == ("orchestra/stage", "0711")


@pytest.mark.parametrize(
    ("name", "keys"), [("orchestra-conductor", settings.CONDUCTOR), ("orchestra-player", settings.PLAYER)]
)
def test_directories_of_the_units_are_the_defaults_of_the_settings(name: str, keys: tuple[Key, ...]) -> None:
    """The directories that systemd makes are those the daemons use."""
    default = {key.name: str(key.default) for key in keys}
    service = unit(name)["Service"]
    assert default["state"] == f"/var/lib/{service['StateDirectory']}"
    sockets = [default[key] for key in ("audience", "seat", "stage") if key in default]
    assert {os.path.dirname(path) for path in sockets} == {f"/run/{service['RuntimeDirectory']}"}
    assert f"--config={settings.CONFIG_DIR}" in command(name)


def test_options_of_the_units_are_options_of_the_daemons() -> None:
    for name, keys in (("orchestra-conductor", settings.CONDUCTOR), ("orchestra-player", settings.PLAYER)):
        given = [word.partition("=")[0] for word in command(name)[4:]]
        assert set(given) <= {"--config", *(f"--{settings.option_name(key)}" for key in keys)}


def test_the_stage_outlives_the_player_and_its_scores_a_full_memory() -> None:
    """The player's unit starts no stage and kills none; the stage's own keeps the others when one score is killed."""
    player, stage = unit("orchestra-player"), unit("orchestra-stage")
    assert "--stage-start=no" in command("orchestra-player")
    assert player["Service"]["KillMode"] == "process"
    assert "orchestra-stage.service" in player["Unit"]["Wants"].split()
    assert "orchestra-stage.service" in player["Unit"]["After"].split()
    assert not {"Requires", "BindsTo", "PartOf"} & {*player["Unit"], *stage["Unit"]}
    assert (stage["Service"]["OOMPolicy"], stage["Service"]["Delegate"]) == ("continue", "yes")
    assert stage["Service"]["KillMode"] == "control-group"
    assert command("orchestra-stage")[:2] == [f"{BIN}orchestra", "stage"]


def test_the_stages_unit_says_where_and_for_whom() -> None:
    """Root's outcomes are not kept in a directory of the player's user."""
    given = stage_cli.stage.make_context("stage", command("orchestra-stage")[2:]).params
    assert given == {
        "config_dir": settings.CONFIG_DIR,
        "directory": "/var/lib/orchestra/stage",
        "player_user": "orchestra",
    }
    service = unit("orchestra-stage")["Service"]
    assert given["directory"] == f"/var/lib/{service['StateDirectory']}"
    assert given["player_user"] == unit("orchestra-player")["Service"]["User"]
    assert "User" not in service


def test_the_sockets_directory_belongs_to_the_daemons_and_outlives_them() -> None:
    """systemd hands a RuntimeDirectory= to the user of each unit that starts: so all that name it are one user's."""
    for name in UNITS[:2]:
        service = unit(name)["Service"]
        assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == ("orchestra", "0755")
        assert service["RuntimeDirectoryPreserve"] == "yes"
    assert "RuntimeDirectory" not in unit("orchestra-stage")["Service"]
    lines = (CONF / "orchestra.tmpfiles").read_text().splitlines()
    assert lines[-1].split() == ["d", "/run/orchestra", "0755", "orchestra", "orchestra", "-"]


# ---- as systemd sees them


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"this machine has no {name}")
    return found


def complaints(directory: Path) -> list[str]:
    """What systemd has to say about the units in ``directory``, and nothing about others on this machine."""
    verify = [tool("systemd-analyze"), "verify", *map(str, directory.iterdir())]
    said = subprocess.run(verify, check=False, capture_output=True, text=True, timeout=30).stderr
    return [line for line in said.splitlines() if "orchestra-" in line]


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Every key is one that systemd knows; the programs are taken from where this test finds them."""
    for name in UNITS:
        text = (CONF / f"{name}.service").read_text()
        here = text.replace(f"{BIN}twistd", sys.executable).replace(f"{BIN}orchestra", sys.executable)
        (tmp_path / f"{name}.service").write_text(here)
    assert complaints(tmp_path) == []
    (tmp_path / "orchestra-odd.service").write_text(here.replace("OOMPolicy", "OOMPolici"))
    assert len(complaints(tmp_path)) == 1, "the tool itself does not work here"


def test_systemd_makes_the_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may play with users, be it under another root directory")
    (tmp_path / "etc").mkdir()
    shutil.copy(CONF / "orchestra.sysusers", tmp_path / "orchestra.conf")
    subprocess.run(
        [tool("systemd-sysusers"), f"--root={tmp_path}", str(tmp_path / "orchestra.conf")], check=True, timeout=30
    )
    assert (tmp_path / "etc/passwd").read_text().startswith("orchestra:")


def test_the_sample_of_groups_names_none_until_its_lines_are_uncommented() -> None:
    text = (CONF / "groups").read_text()
    assert len(groups.parse(text, "groups")) == 0
    found = groups.parse(re.sub(r"^#(\w+:|    )", r"\1", text, flags=re.M), "groups")
    assert list(found) == ["web", "db", "backend", "quiet"]
    assert len(found.members("backend")) == 7
