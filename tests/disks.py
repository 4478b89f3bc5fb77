"""Small disks of their own, for tests that fill them: a tmpfs, where this machine lets us mount one."""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest


def _mount(place: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _permitted() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as place:
        mounted = _mount(Path(place), "size=64k")
        return mounted and subprocess.run(["umount", place], check=False).returncode == 0


needs_mount = pytest.mark.skipif(not _permitted(), reason="this test fills a disk, and may not mount one here")


class SmallDisk:
    """A disk of so many megabytes at ``place``."""

    def __init__(self, place: Path, megabytes: int, inodes: int = 0) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        assert _mount(place, f"size={megabytes}m,mode=700" + (f",nr_inodes={inodes}" if inodes else ""))

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def remount(self, option: str) -> None:
        """``ro`` or ``rw``."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.place)], check=True)

    def fill(self, leave: int = 0) -> None:
        """Take all of it but ``leave`` bytes."""
        with open(self.place / "filler", "ab", buffering=0) as file:
            about = os.statvfs(self.place)
            os.posix_fallocate(file.fileno(), file.tell(), max(about.f_bavail * about.f_frsize - leave, 1))
            with contextlib.suppress(OSError):
                while not leave:
                    file.write(b"x" * 4096)

    def empty(self) -> None:
        """Give back what was taken."""
        (self.place / "filler").unlink()
