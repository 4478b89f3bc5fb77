"""A whole Orchestra on one machine: an authority, a conductor and players as real ``twistd`` daemons, in one directory.

The demo plays on it, the tests play on it. Nothing here is known to the daemons: they are started as an operator
would start them, configured by files, and reached through their sockets.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestra.errors import FileProblem
from orchestra.security import authority
from orchestra.security.authority import Authority

DOMAIN: Final = "demo.test"
PATIENCE: Final = 20.0  # seconds for a daemon to start or to end
STEP: Final = 0.02


class NotStarted(FileProblem):
    """{file} did not start: {problem}"""


class Theatre:
    """The directory ``home`` and the daemons that were started in it."""

    def __init__(self, home: Path, players: Sequence[str]) -> None:
        """``players``: short names; every one gets a certificate, and a line in the players file."""
        self.home = home
        self.names = [f"{player}.{DOMAIN}" for player in players]
        self.conductor_name = f"conductor.{DOMAIN}"
        self.port = 0
        self.scores = home / "scores"
        self.environment = dict(os.environ)
        """What the daemons inherit."""

    @property
    def socket(self) -> Path:
        return self.home / "run" / "audience.pb"

    # ---- the setting

    def build(self, scores_from: Path | None) -> Authority:
        """Certificates, configuration files and scores, if any; nothing is started."""
        for part in ("run", "log", "conductor", "ledger"):
            (self.home / part).mkdir(mode=0o755, parents=True, exist_ok=True)
        if scores_from is not None:
            self._copy_scores(scores_from)
        self.port = free_port()
        ca = authority.init(self.home / "ca", "Orchestra demo")
        ca.issue("conductor", [self.conductor_name], out=self.home / "tls")
        for name in self.names:
            ca.issue("player", [name], out=self.home / "tls")
        self.write_conductor()
        for name in self.names:
            self.write_player(name, self.home / "tls")
        return ca

    def _copy_scores(self, source: Path) -> None:
        self.scores.mkdir(mode=0o755, exist_ok=True)
        for file in sorted(source.iterdir()):
            copy = Path(shutil.copy(file, self.scores / file.name))
            copy.chmod(0o644 if file.suffix == ".conf" else 0o755)

    def add_score(self, name: str, text: str, conf: str) -> None:
        """Install a score, as configuration management would."""
        (self.scores / f"{name}.conf").write_text(conf)
        (self.scores / f"{name}.conf").chmod(0o644)
        (self.scores / name).write_text(text)
        (self.scores / name).chmod(0o755)

    def write_conductor(self, **more: object) -> None:
        """The configuration of the conductor, and its list of players."""
        (self.home / "players").write_text("".join(f"{name}\n" for name in self.names))
        tls = self.home / "tls"
        lines = {
            "listen": f"127.0.0.1:{self.port}",
            "state": self.home / "conductor" / "state",
            "certificate": tls / f"{self.conductor_name}.crt",
            "key": tls / f"{self.conductor_name}.key",
            "ca": tls / "ca.crt",
            "audience": self.socket,
            "default_domain": DOMAIN,
            **more,
        }
        write_conf(self.home / "conductor.conf", lines)

    def write_player(self, name: str, tls: Path, **more: object) -> Path:
        """The configuration of one player; returns its directory."""
        directory = self.home / name.split(".")[0]
        directory.mkdir(mode=0o755, exist_ok=True)
        lines = {
            "conductors": f"{self.conductor_name}@127.0.0.1:{self.port}",
            "state": directory / "state",
            "scores": self.scores,
            "certificate": tls / f"{name}.crt",
            "key": tls / f"{name}.key",
            "ca": tls / "ca.crt",
            "stage": self.home / "run" / f"{directory.name}.stage",
            "seat": self.home / "run" / f"{directory.name}.pb",
            **({"score_user": "root"} if os.geteuid() == 0 else {}),
            **more,
        }
        write_conf(directory / "player.conf", lines)
        return directory

    # ---- the daemons

    def start_conductor(self) -> None:
        """Start the conductor; returns when it is there for its audience."""
        self._twistd("conductor", self.home, self.home / "run" / "conductor.pid")
        wait_until(lambda: _answers(self.socket), "the conductor", self.home / "log" / "conductor.log")

    def start_player(self, short: str) -> None:
        """Start a player; it connects when it can."""
        self._twistd("player", self.home / short, self.home / "run" / f"{short}.pid")

    def second_player(self, short: str) -> str:
        """Start a player with the configuration of one that runs already, or try to; what is said to that."""
        try:
            self._twistd("player", self.home / short, self.home / "run" / f"{short}-second.pid")
        except NotStarted as problem:
            return problem.sentence
        self.kill(f"{short}-second")
        return "it started"

    def _twistd(self, what: str, config: Path, pidfile: Path) -> None:
        log = self.home / "log" / f"{pidfile.stem}.log"
        command = [_script("twistd"), f"--pidfile={pidfile}", f"--logfile={log}", what, f"--config={config}"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=self.home,
            env=self.environment,
            start_new_session=True,  # Ctrl-C is for us: we stop them
        )
        if done.returncode:
            raise NotStarted(file=" ".join(command), problem=(done.stderr or done.stdout).strip()[-2000:])

    def pid(self, daemon: str) -> int:
        """The process id of ``conductor`` or of a player."""
        return int((self.home / "run" / f"{daemon}.pid").read_text())

    def is_up(self, daemon: str) -> bool:
        """Whether it runs."""
        try:
            return _alive(self.pid(daemon))
        except (FileNotFoundError, ValueError):
            return False

    def tidy(self, daemon: str) -> bool:
        """Remove what a daemon that is not up has left; True: nobody had ended it."""
        try:
            (self.home / "run" / f"{daemon}.pid").unlink()
        except FileNotFoundError:
            return False
        return True

    def kill(self, daemon: str) -> None:
        """SIGKILL, as a crash would have it."""
        pid = self.pid(daemon)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _alive(pid), f"the end of {daemon}", Path())
        # where nobody reaps orphans, twistd would take the dead process for a running one
        (self.home / "run" / f"{daemon}.pid").unlink()

    def kill_stage(self, player: str) -> None:
        """SIGKILL for the stage of a player; the player starts another."""
        for pid in self.stages_of(player):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not _alive(pid), f"the end of the stage of {player}", Path())

    def stop(self, daemon: str) -> None:
        """SIGTERM, and wait for its end."""
        pid = self.pid(daemon)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _alive(pid), f"the end of {daemon}", Path())
        # one that was stopped before it could catch a signal has left it, and then it is as in kill
        (self.home / "run" / f"{daemon}.pid").unlink(missing_ok=True)

    def stages(self) -> list[int]:
        """The process ids of the stages that serve this home."""
        return [pid for pid in _processes() if self._is_stage(pid)]

    def stages_of(self, player: str) -> list[int]:
        """The process ids of the stages that serve this player: one, if all is well."""
        served = str(self.home / "run" / f"{player}.stage")
        return [pid for pid in self.stages() if served in _command(pid)]

    def _is_stage(self, pid: int) -> bool:
        words = _command(pid)
        return any(word.endswith("stage.py") for word in words) and any(str(self.home) in word for word in words)

    def close(self) -> None:
        """Stop everything that runs here."""
        for daemon in ("conductor", *(name.split(".")[0] for name in self.names)):
            try:
                self.stop(daemon)
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue
        for pid in self.stages():
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda pid=pid: not _alive(pid), "the end of a stage", Path())

    def left_behind(self) -> list[int]:
        """Processes that still belong to this home."""
        ours = os.getpid()
        return [p for p in _processes() if p != ours and any(str(self.home) in word for word in _command(p)[1:])]


def scores_directory() -> Path:
    """Where the sample scores are: installed beside us, or in the checkout."""
    for place in (Path(sys.prefix) / "share" / "orchestra" / "scores", Path(__file__).parents[2] / "scores"):
        if (place / "uptime").is_file():
            return place
    raise FileProblem(file=f"{sys.prefix}/share/orchestra/scores", problem="the sample scores are not installed here")


def write_conf(path: Path, lines: dict[str, object]) -> None:
    """A ``.conf`` file of these keys."""
    path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))


def free_port() -> int:
    """A port of the loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: object, what: str, log: Path) -> None:
    """Return when ``condition()`` holds; a bounded wait, with the end of ``log`` in the error."""
    assert callable(condition)
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            tail = log.read_text()[-2000:] if log.is_file() else ""
            raise NotStarted(file=what, problem=f"nothing after {PATIENCE:.0f} s. {tail}")
        time.sleep(STEP)


def _script(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
