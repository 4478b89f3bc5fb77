"""What a player tells of its machine: a few facts that are always there, and those that its files add.

All are read without a process, in a millisecond. A file of facts is believed under the same conditions as a score:
nobody but root and the player's user may have written it. What cannot be a fact is left out, and said.
"""

import os
import platform
import re
import stat
from collections.abc import Callable, Collection, Iterator
from typing import Final

from orchestra import config
from orchestra.errors import OrchestraError
from orchestra.model import Facts

BUILT_IN: Final = ("arch", "cores", "kernel", "memory", "os", "python", "release", "virtual")
ENDING: Final = ".conf"
MOST_FILES: Final = 100
MOST_FACTS: Final = 400
LONGEST: Final = 1_000

_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_OS_RELEASE: Final = re.compile(r"^(ID|VERSION_ID)=[\"']?([^\"'\n]*)[\"']?$", re.M)
_MEMORY: Final = re.compile(r"^MemTotal: +([0-9]+) kB$", re.M)
_MACHINES: Final = {
    "QEMU": "kvm",
    "KVM": "kvm",
    "VMware": "vmware",
    "VirtualBox": "oracle",
    "innotek": "oracle",
    "Microsoft": "microsoft",
    "Xen": "xen",
    "Amazon EC2": "amazon",
    "Google": "google",
    "Parallels": "parallels",
    "Bochs": "bochs",
}


def read(directory: str, trusted_uids: Collection[int], root: str = "/") -> Facts:
    """The facts of this machine, with those in the files of ``directory``, which need not be there."""
    known = _built_in(root)
    problems = [] if not os.path.lexists(directory) else list(_add_files(directory, trusted_uids, known))
    return Facts.of(known, tuple(problem[:LONGEST] for problem in problems[:MOST_FILES]))


# ---- what is always there


def _built_in(root: str) -> dict[str, str]:
    machine = os.uname()
    found = {
        "arch": machine.machine,
        "cores": str(os.cpu_count() or 1),
        "kernel": machine.release,
        "python": platform.python_version(),
        "virtual": _virtual(root),
    }
    names = dict(_OS_RELEASE.findall(_text(root, "etc/os-release") or _text(root, "usr/lib/os-release")))
    memory = _MEMORY.search(_text(root, "proc/meminfo"))
    more = {
        "os": names.get("ID", ""),
        "release": names.get("VERSION_ID", ""),
        "memory": str(int(memory[1]) // 1024) if memory else "",
    }
    return found | {name: value for name, value in more.items() if value}


def _virtual(root: str) -> str:
    """What the machine is made of: a container by its name, a kind of virtual machine, or none."""
    if container := _text(root, "run/systemd/container").strip():
        return container
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if os.path.exists(os.path.join(root, mark)):
            return name
    dmi = " ".join(_text(root, f"sys/class/dmi/id/{part}") for part in ("sys_vendor", "product_name", "bios_vendor"))
    for mark, name in _MACHINES.items():
        if mark in dmi:
            return name
    if _text(root, "sys/hypervisor/type").strip() == "xen":
        return "xen"
    return "other" if " hypervisor" in _text(root, "proc/cpuinfo") else "none"


def _text(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""


# ---- what files add


def _add_files(directory: str, trusted: Collection[int], known: dict[str, str]) -> Iterator[str]:
    """Add to ``known`` what the files say, and yield what is wrong with them."""
    if wrong := _mistrusted(directory, trusted, stat.S_ISDIR, "is not a directory"):
        yield wrong
        return
    names = sorted(name for name in os.listdir(directory) if name.endswith(ENDING) and not name.startswith("."))
    if len(names) > MOST_FILES:
        yield f"{directory}: has more than {MOST_FILES} files; the others are not read"
    origin = dict.fromkeys(known, "")
    for name in names[:MOST_FILES]:
        yield from _add(os.path.join(directory, name), trusted, known, origin)


def _add(file: str, trusted: Collection[int], known: dict[str, str], origin: dict[str, str]) -> Iterator[str]:
    if wrong := _mistrusted(file, trusted, stat.S_ISREG, "is not a file"):
        yield wrong
        return
    try:
        untitled, *titled = config.sections(file, config.read_text(file))
    except OrchestraError as problem:
        yield problem.sentence
        return
    if titled:
        yield f"{file}, line {titled[0].line}: facts have no [sections]; nothing of this file is read"
        return
    for entry in untitled.entries:
        if wrong := _unfit(entry, origin, len(known)):
            yield f"{file}, line {entry.line}: {wrong}"
        else:
            known[entry.key], origin[entry.key] = entry.value, file


def _unfit(entry: config.Entry, origin: dict[str, str], many: int) -> str:
    if not _NAME.fullmatch(entry.key):
        return f"{entry.key[:40]!a} is no name of a fact: a small letter, then letters, digits and _ . -"
    if entry.key in origin:
        first = f"is already in {origin[entry.key]}" if origin[entry.key] else "is built in"
        return f"the fact '{entry.key}' {first}"
    if len(entry.value) > LONGEST or not entry.value.isprintable():
        return f"the value of '{entry.key}' is not one line of at most {LONGEST} printable characters"
    return f"there are more than {MOST_FACTS} facts" if many >= MOST_FACTS else ""


def _mistrusted(path: str, trusted: Collection[int], is_kind: Callable[[int], bool], what: str) -> str:
    """Why ``path`` is not to be believed, or ""."""
    try:
        info = os.stat(path)
    except OSError as problem:
        return f"{path}: cannot be read: {os.strerror(problem.errno or 0)}"
    if not is_kind(info.st_mode):
        return f"{path}: {what}"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path}: others than its owner may write it (mode {stat.S_IMODE(info.st_mode):04o})"
    return (
        ""
        if info.st_uid in {0, *trusted}
        else f"{path}: belongs to uid {info.st_uid}, neither root nor the player's user"
    )
