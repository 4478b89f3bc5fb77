"""A small disk of memory under a daemon's state, so that it can be filled without harm to the user's own."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from orchestra.errors import FileProblem

_CHUNK: Final = bytes(1 << 20)


class MemoryDisk:
    """A tmpfs of ``megabytes`` on ``place``."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self._place = place
        self._balloon = place / "balloon"
        self._megabytes = megabytes
        self._mounted = False

    def mount(self) -> None:
        """:class:`FileProblem` where that is not permitted."""
        self._place.mkdir(mode=0o755, parents=True, exist_ok=True)
        options = f"size={self._megabytes}m,mode=0755,uid={os.geteuid()},gid={os.getegid()}"
        _run("mount", "-t", "tmpfs", "-o", options, "orchestra-drill", str(self._place))
        self._mounted = True

    def unmount(self, keep: bool = False) -> None:
        """Give it back; with ``keep`` its files stay where they were, on the disk below."""
        if not self._mounted:
            return
        self.empty()
        aside = self._place.with_name(f"{self._place.name}.kept")
        if keep:
            shutil.copytree(self._place, aside, symlinks=True, ignore=_only_files)
        _run("umount", str(self._place))
        self._mounted = False
        if keep:
            shutil.copytree(aside, self._place, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(aside)

    def fill(self) -> None:
        """Leave no room at all."""
        with open(self._balloon, "wb", buffering=0) as balloon:
            with contextlib.suppress(OSError):
                while balloon.write(_CHUNK):
                    pass
            with contextlib.suppress(OSError):
                while balloon.write(_CHUNK[:512]):
                    pass

    def empty(self) -> None:
        """Make room again."""
        self._balloon.unlink(missing_ok=True)


def _only_files(directory: str, names: list[str]) -> list[str]:
    """Sockets cannot be copied, and nobody misses them."""
    paths = [(name, os.path.join(directory, name)) for name in names]
    return [name for name, path in paths if not (os.path.isfile(path) or os.path.isdir(path))]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        raise FileProblem(file=command[0], problem=str(problem)) from None
    if done.returncode:
        said = done.stderr.strip() or f"{command[0]} failed"
        raise FileProblem(file=command[-1], problem=said.splitlines()[0])
