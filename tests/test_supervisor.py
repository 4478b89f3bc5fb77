"""Each daemon tells its supervisor when it is ready, and then it is."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.cli.check import listening
from orchestra.cli.theatre import Theatre


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    """Files for a conductor and a player; nothing is started."""
    built = Theatre(tmp_path, ["a"])
    built.build(None)
    built.scores.mkdir(mode=0o755)
    yield built
    built.close()
    assert built.left_behind() == []


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("twistd -n --pidfile= conductor --config={home}", "audience.pb"),
        ("twistd -n --pidfile= player --config={home}/a", "a.pb"),
        ("orchestra stage --config={home}/a", "a.stage"),
    ],
    ids=["conductor", "player", "stage"],
)
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_who_waits_for_a_daemon_is_told_when_its_socket_is_there(
    theatre: Theatre, line: str, place: str, abstract: bool
) -> None:
    """In the words of sd_notify(3), once, and by the process that was started."""
    address = f"@{theatre.home}/notify" if abstract else f"{theatre.home}/notify"
    program, *words = line.format(home=theatre.home).split()
    command = [str(Path(sys.executable).with_name(program)), *words]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        supervisor.bind("\0" + address[1:] if abstract else address)
        supervisor.settimeout(30)
        log = (theatre.home / "log" / "daemon.log").open("wb")
        environment = {**os.environ, "NOTIFY_SOCKET": address}
        with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as daemon:
            try:
                said, credentials, _, _ = supervisor.recvmsg(100, socket.CMSG_SPACE(12))
                assert said == b"READY=1"
                assert int.from_bytes(credentials[0][2][:4], sys.byteorder) == daemon.pid
                assert listening(str(theatre.home / "run" / place))
            finally:
                daemon.send_signal(signal.SIGTERM)
