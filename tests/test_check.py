"""``orchestra check`` says what a daemon would stumble over, a sentence for each thing, and disturbs nobody."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from orchestra.cli import check, dial
from orchestra.cli.dial import Finding
from orchestra.cli.theatre import write_conf
from orchestra.conductor.door import Limits, Porch
from orchestra.errors import EX_CONFIG
from orchestra.security import authority, credentials
from orchestra.security.authority import Authority
from orchestra.security.contexts import ServerCredentials
from orchestra.settings import ConductorAddress

CONDUCTOR, PLAYER = "c.example.org", "web1.example.org"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority and a certificate for each of the two, in ``issued``."""
    directory = tmp_path_factory.mktemp("ca")
    made = authority.init(directory, "Test CA")
    made.issue("conductor", [CONDUCTOR], out=directory / "issued")
    made.issue("player", [PLAYER], out=directory / "issued")
    return made


def files(ca: Authority, name: str) -> dict[str, object]:
    issued = Path(ca.directory) / "issued"
    return {"certificate": issued / f"{name}.crt", "key": issued / f"{name}.key", "ca": issued / "ca.crt"}


@pytest.fixture
def home(tmp_path: Path, ca: Authority) -> Path:
    """The configuration of a conductor and of a player, with nothing wrong but that no conductor runs."""
    (tmp_path / "run").mkdir()
    (tmp_path / "scores").mkdir(mode=0o755)
    score = tmp_path / "scores" / "hello"
    score.write_text("#!/bin/sh\n")
    score.chmod(0o755)
    (tmp_path / "players").write_text(f"{PLAYER}\n")
    run = tmp_path / "run"
    conductor = {"listen": "127.0.0.1:0", "state": tmp_path / "store", "audience": run / "audience.pb"}
    write_conf(tmp_path / "conductor.conf", conductor | files(ca, CONDUCTOR))
    player = {
        "conductors": f"{CONDUCTOR}@127.0.0.1:{unused_port()}",
        "state": tmp_path / "journal",
        "seat": run / "seat",
    }
    player |= {"scores": tmp_path / "scores", "stage": run / "stage", "score_user": "root"}
    write_conf(tmp_path / "player.conf", player | files(ca, PLAYER))
    return tmp_path


def unused_port() -> int:
    """A port that the kernel gave away and has back: nothing listens there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rewrite(file: Path, **values: object) -> None:
    lines = [line for line in file.read_text().splitlines() if line.partition(" ")[0] not in values]
    file.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in values.items())]) + "\n")


def run(what: str, home: Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(check.check, [what, "--config", str(home)])
    return result.exit_code, result.output.splitlines()


def wrong(what: str, home: Path) -> list[str]:
    """The sentences of what is WRONG; nothing else may be."""
    status, lines = run(what, home)
    found = [line.removeprefix("WRONG ") for line in lines if line.startswith("WRONG ")]
    assert status == (EX_CONFIG if found else 0)
    assert all(line.startswith(("ok    ", "note  ", "WRONG ")) for line in lines)
    return found


def wrong_but_for_the_conductor(home: Path) -> list[str]:
    """The player's, without the last: that nothing listens where its conductor should be."""
    *found, last = wrong("player", home)
    assert last.startswith(f"{CONDUCTOR}: nothing listens at 127.0.0.1")
    return found


# ---- without a conductor


def test_a_conductor_with_nothing_wrong_ends_with_0(home: Path) -> None:
    status, lines = run("conductor", home)
    assert status == 0
    assert f"ok    {home}/players lists 1 player" in lines
    assert f"ok    state: {home}/store will be made" in lines
    assert any(line.startswith(f"ok    certificate and key are those of {CONDUCTOR}, issued by") for line in lines)
    assert "note  crl is not set: revoked certificates are accepted" in lines
    assert not (home / "store").exists()


def test_a_player_with_no_conductor_there_says_only_that(home: Path) -> None:
    assert wrong_but_for_the_conductor(home) == []
    assert f"ok    scores: 1 score in {home}/scores may be asked for" in run("player", home)[1]
    assert not (home / "journal").exists()


def test_everything_wrong_in_a_file_is_said_at_once(home: Path) -> None:
    rewrite(home / "conductor.conf", listen="nowhere", beat="soon", audiense="x")
    keys = [sentence.partition(": ")[2].partition(":")[0] for sentence in wrong("conductor", home)]
    assert sorted(keys) == ["audiense", "beat", "listen"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"audience_group": "no-such-group"}, "audience_group: this machine has no group 'no-such-group'"),
        ({"players": "absent"}, "{home}/absent: cannot be read: No such file or directory"),
        ({"audience": "absent/audience.pb"}, "audience: there is no directory {home}/absent for the socket"),
        ({"audience": "players"}, "audience: {home}/players is there and is not a socket"),
        ({"state": "players/x"}, "state: {home}/players is not a directory"),
        ({"listen": "192.0.2.1:0"}, "listen: 192.0.2.1:0 cannot be used: Cannot assign requested address"),
        ({"certificate": "absent"}, "{home}/absent (configuration key 'certificate'): cannot be read"),
        ({"key": "players"}, "{home}/players (configuration key 'key'): "),
    ],
)
def test_what_is_wrong_with_a_conductor_has_a_sentence(home: Path, values: dict[str, object], sentence: str) -> None:
    rewrite(home / "conductor.conf", **values)
    (found,) = wrong("conductor", home)
    assert found.startswith(sentence.format(home=home))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"score_user": "no-such-user"}, "score_user: this machine has no user 'no-such-user'"),
        (
            {"stage_start": "no"},
            "stage: nobody listens at {home}/run/stage; 'systemctl start orchestra-stage' starts it",
        ),
        ({"scores": "absent"}, "{home}/absent"),
        ({"stage_dir": "players"}, "stage_dir: {home}/players is not a directory"),
    ],
)
def test_what_is_wrong_with_a_player_has_a_sentence(home: Path, values: dict[str, object], sentence: str) -> None:
    rewrite(home / "player.conf", **values)
    (found,) = wrong_but_for_the_conductor(home)
    assert found.startswith(sentence.format(home=home))


def test_a_score_that_will_not_be_run_is_wrong(home: Path) -> None:
    """The others stay."""
    bad = home / "scores" / "bad"
    bad.write_text("#!/bin/sh\n")
    bad.chmod(0o775)
    (found,) = wrong_but_for_the_conductor(home)
    assert found.startswith(str(bad))
    assert f"ok    scores: 1 score in {home}/scores may be asked for" in run("player", home)[1]


def test_nobody_in_the_players_file_and_no_scores_are_worth_a_note(home: Path) -> None:
    (home / "players").write_text("# none yet\n")
    (home / "scores" / "hello").unlink()
    assert f"note  {home}/players lists nobody: every player will be turned away" in run("conductor", home)[1]
    assert f"note  scores: {home}/scores has none, so nothing can be asked for" in run("player", home)[1]


def test_a_stage_that_runs_is_not_connected_to(home: Path) -> None:
    """It would leave its player for us."""
    rewrite(home / "player.conf", stage_start="no")
    with socket.socket(socket.AF_UNIX) as stage:
        stage.bind(str(home / "run" / "stage"))
        assert not check.listening(str(home / "run" / "stage"))
        stage.listen()
        stage.setblocking(False)
        assert wrong_but_for_the_conductor(home) == []
        with pytest.raises(BlockingIOError):
            stage.accept()


def test_a_port_in_use_may_be_our_own_daemon(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        rewrite(home / "conductor.conf", listen=where)
        assert f"note  listen: {where} is in use: is the conductor running already?" in run("conductor", home)[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_root_is_told_to_check_as_the_daemons_user(home: Path) -> None:
    """To root everything looks writable."""
    (home / "store").mkdir()
    os.chown(home / "store", 12345, -1)
    lines = run("conductor", home)[1]
    assert any(line.startswith(f"note  {home}/store belongs to uid 12345, and root may do anything") for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_we_may_not_write_in_is_named(home: Path) -> None:
    rewrite(home / "conductor.conf", state="/etc/x", audience="/etc/audience.pb")
    state, audience = wrong("conductor", home)
    assert "may not write in /etc; /etc/x must belong" in state
    assert "may not make a socket in /etc" in audience


def test_help_is_shown_as_the_older_guide_says() -> None:
    for arguments in (["-help"], ["player", "-help"], ["conductor", "--help"]):
        result = CliRunner().invoke(check.check, arguments)
        assert (result.exit_code, result.output.split()[0]) == (0, "Usage:")


# ---- with a conductor


class Roster:
    """A dispatch that knows some players, and hears nothing from any."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.hellos: list[Any] = []

    def player_id(self, name: str) -> int | None:
        return self.names.index(name) + 1 if name in self.names else None

    async def hello(self, door: Any, hello: Any) -> None:
        self.hellos.append(hello)

    def left(self, door: Any) -> None:
        """Nobody waits for it."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "VERDICT", 0.5)


@pytest_twisted.async_yield_fixture
async def serve() -> Any:
    ports: list[Any] = []

    async def listen(factory: Factory) -> ConductorAddress:
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        ports.append(port)
        return ConductorAddress(CONDUCTOR, "127.0.0.1", port.getHost().port)

    yield listen
    for port in ports:
        await port.stopListening()


def porch(ca: Authority, *listed: str) -> Porch:
    named = {key: str(value) for key, value in files(ca, CONDUCTOR).items()}
    ours = credentials.load(**named, crl=None, role="conductor")
    return Porch(reactor, ServerCredentials(ours), Roster(*listed), Limits())


async def dialled(address: ConductorAddress, ca: Authority, name: str = PLAYER) -> list[Finding]:
    named = {key: str(value) for key, value in files(ca, name).items()}
    ours = credentials.load(**named, crl=None, role="player")
    found: list[Finding] = await deferToThread(lambda: list(dial.dial(address, ours)))
    return found


@pytest.mark.usefixtures("quick")
@pytest_twisted.ensureDeferred
async def test_a_player_that_is_listed_hears_only_good(ca: Authority, serve: Any) -> None:
    address = await serve(porch(ca, PLAYER))
    assert [finding.line for finding in await dialled(address, ca)] == [
        f"ok    {CONDUCTOR}: dialled at 127.0.0.1",
        f"ok    {CONDUCTOR}: 127.0.0.1 answers at port {address.port}",
        f"ok    {CONDUCTOR}: TLS 1.3 is spoken, and its certificate is right",
        f"ok    {CONDUCTOR}: it accepts our certificate",
        f"ok    {CONDUCTOR}: it lists {PLAYER}",
    ]


@pytest_twisted.ensureDeferred
async def test_a_player_that_is_not_listed_hears_it(ca: Authority, serve: Any) -> None:
    *good, last = await dialled(await serve(porch(ca, "other.example.org")), ca)
    assert [finding.label for finding in good] == ["ok"] * 4
    assert last.label == "WRONG"
    assert f"{PLAYER} is not in the conductor's players file" in last.text


@pytest_twisted.ensureDeferred
async def test_a_conductor_of_another_authority_does_not_trust_us(ca: Authority, serve: Any, tmp_path: Path) -> None:
    """We trust it (our ca file has both), it does not trust us."""
    foreign = authority.init(tmp_path / "ca", "Foreign CA")
    issued = foreign.issue("player", [PLAYER], out=tmp_path / "ca" / "issued")
    with issued.ca.open("a") as both:
        both.write((Path(ca.directory) / "issued" / "ca.crt").read_text())
    last = (await dialled(await serve(porch(ca, PLAYER)), foreign))[-1]
    assert last.label == "WRONG"
    assert "does not trust our certificate authority, 'CN=Foreign CA'" in last.text


@pytest_twisted.ensureDeferred
async def test_a_conductor_whose_authority_we_lack_is_not_accepted(ca: Authority, serve: Any, tmp_path: Path) -> None:
    foreign = authority.init(tmp_path / "ca", "Foreign CA")
    foreign.issue("player", [PLAYER], out=tmp_path / "ca" / "issued")
    last = (await dialled(await serve(porch(ca, PLAYER)), foreign))[-1]
    assert last.label == "WRONG"
    assert "we do not accept it: " in last.text
    assert "not in our ca file" in last.text


@pytest_twisted.ensureDeferred
async def test_a_conductor_of_another_name_is_not_accepted(ca: Authority, serve: Any) -> None:
    address = (await serve(porch(ca, PLAYER)))._replace(name="d.example.org")
    last = (await dialled(address, ca))[-1]
    assert last.text == (
        "d.example.org: we do not accept it: the conductor's certificate is for c.example.org, not for d.example.org"
    )


class Greeter(Protocol):
    """Something else that listens: it speaks first, in no TLS."""

    greeting = b"SSH-2.0-OpenSSH_9.2\r\n"

    def connectionMade(self) -> None:
        self.transport.write(self.greeting)


class Mute(Protocol):
    """Something that never says a word."""


class Slammer(Protocol):
    """Something that hangs up."""

    def connectionMade(self) -> None:
        self.transport.loseConnection()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (Greeter, "what is at the other end does not speak TLS: is it the right port?"),
        (Mute, "it did not finish the TLS handshake within 0.3 s: is it a conductor's port?"),
        (Slammer, "it closed the connection without a word; its log says why"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_conductor_has_a_sentence(
    ca: Authority, serve: Any, monkeypatch: pytest.MonkeyPatch, what: type[Protocol], sentence: str
) -> None:
    monkeypatch.setattr(dial, "PATIENCE", 0.3)
    last = (await dialled(await serve(Factory.forProtocol(what)), ca))[-1]
    assert last == Finding("WRONG", f"{CONDUCTOR}: {sentence}")


def test_a_name_without_an_address_has_a_sentence(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> Iterator[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    (only,) = dial.dial(ConductorAddress(CONDUCTOR, CONDUCTOR, 2258), None)
    assert only.line == (
        "WRONG c.example.org: the name c.example.org cannot be resolved to an address (Name or service not known); "
        "check its spelling and DNS, or write c.example.org@ADDRESS"
    )


def test_groups_are_checked_and_strangers_in_them_noted(home: Path) -> None:
    """A group with a host that is no player is refused when it is asked for: better said before."""
    (home / "groups").write_text("ours: @all\nold: mainframe.example.org\n")
    found = run("conductor", home)[1]
    assert f"ok    {home}/groups names 2 groups" in found
    assert any(line.startswith("note  @old has hosts that are no players") for line in found)
    assert not any("@ours" in line for line in found)
    (home / "groups").write_text("ours: @ours\n")
    assert f"WRONG {home}/groups, line 1: a group is a member of itself: @ours -> @ours" in run("conductor", home)[1]
