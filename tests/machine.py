"""A machine to try the guide on: this one's disk with a layer on top, and a systemd of its own, in namespaces.

Nothing of it is left when it is closed. Whoever may not make one (not root, a container without the rights, no
systemd) is told why in :class:`NoMachine`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Final

TOOLS: Final = ("unshare", "nsenter", "mount", "chroot", "ip", "runuser")
SYSTEMD: Final = Path("/lib/systemd/systemd")
CHECKOUT: Final = "/srv/checkout"
KINDS: Final = ("purelib", "platlib", "scripts")
"""Where Python has packages and commands; in the machine they are beside the checkout."""
PATIENCE: Final = 30.0
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BOOT: Final = r"""
set -e
mount -t tmpfs none "$BASE"
mkdir "$BASE/up" "$BASE/work" "$BASE/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$BASE/up,workdir=$BASE/work" "$BASE/root"
cd "$BASE/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev  # its own: systemd makes and removes things there
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
for name in checkout purelib platlib scripts; do
    mkdir -p "srv/$name"
    mount --bind "${!name}" "srv/$name"
    mount -o remount,bind,ro "srv/$name"
done
ip link set lo up
hostname conductor.example.com
echo "127.0.0.1 localhost conductor.example.com web1.example.com" > etc/hosts
exec chroot . env -i container=unshare "PATH=$PATH" "$SYSTEMD" --system --unit=basic.target --log-target=null
"""

INSTALL: Final = """
import pathlib, sys
there = sys.argv[1]
site = next(pathlib.Path(there).glob("lib/python*/site-packages"))
(site / "ours.pth").write_text("/srv/checkout\\n/srv/purelib\\n/srv/platlib\\n")
for name in ("orchestra", "submitjob", "getstatus", "twistd"):
    script = pathlib.Path(there, "bin", name)
    script.write_text(f"#!{there}/bin/python3\\n" + pathlib.Path("/srv/scripts", name).read_text().partition("\\n")[2])
    script.chmod(0o755)
"""
"""In the place of ``pip install .``, which would need an index: the packages that these tests run with."""


class NoMachine(Exception):
    """Why there is none."""


class Machine:
    """Booted when it is made."""

    def __init__(self, base: Path, checkout: Path) -> None:
        if os.geteuid() != 0:
            raise NoMachine("only root can make a machine")
        lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
        if lacking or not SYSTEMD.exists():
            raise NoMachine(f"not here: {', '.join(lacking) or SYSTEMD}")
        self._group = _own_group()
        places = {"checkout": str(checkout)} | {kind: sysconfig.get_path(kind) for kind in KINDS}
        environment = {"BASE": str(base), "SYSTEMD": str(SYSTEMD), "PATH": PATH, **places}
        boxed = ["unshare", "--mount", "--pid", "--uts", "--net", "--ipc", "--cgroup", "--fork", "bash", "-c", BOOT]
        enter = f"echo $$ > '{self._group}/cgroup.procs' && exec \"$@\""
        self._log = base.with_name(f"{base.name}.log")
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["bash", "-c", enter, "enter", *boxed],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._until_up()
        except NoMachine:
            self.close()
            raise

    def _until_up(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._outer.poll() is None:
            if self.shell("systemctl is-system-running", check=False).strip() in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise NoMachine(f"systemd does not come up here: {self._log.read_text()[-500:]}")

    def _init(self) -> int:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def shell(self, text: str, user: str = "root", check: bool = True) -> str:
        """What a shell says to these lines, run by ``user``; the first that fails ends them."""
        inside = ["env", "-i", f"PATH={PATH}", "HOME=/root", "runuser", "-u", user, "--", "bash", "-ec", text]
        namespaces = ["nsenter", f"--target={self._init()}", "-m", "-p", "-u", "-n", "-i", "-C", "-r", "-w"]
        done = subprocess.run(
            [*namespaces, *inside], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{text}\n({done.returncode})\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, there: str) -> None:
        """``pip install`` in the virtual environment ``there``."""
        self.shell(f"{there}/bin/python3 -c {shlex.quote(INSTALL)} {there}")

    def close(self) -> None:
        """Switch it off; the kernel takes away all that was in it."""
        if self._outer.poll() is None and (init := self._init()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait()
        end = time.monotonic() + PATIENCE
        while self._group.exists() and time.monotonic() < end:
            for directory, _, _ in os.walk(self._group, topdown=False):
                with contextlib.suppress(OSError):  # its last process is on its way out
                    os.rmdir(directory)
            time.sleep(0.02)


def _own_group() -> Path:
    """A control group for the machine alone, below ours."""
    for mount, prefix in (("/sys/fs/cgroup", "0::"), ("/sys/fs/cgroup/systemd", "name=systemd:")):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        ours = next((line.split(prefix, 1)[1] for line in lines if prefix in line), None)
        home = Path(mount + (ours or ""))
        if ours is not None and (home / "cgroup.procs").exists():
            group = home / f"orchestra-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError as problem:
                raise NoMachine(f"no control group can be made: {problem}") from None
            return group
    raise NoMachine("there are no control groups here")
