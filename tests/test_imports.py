"""Who may import whom: the house's walls, walked with ast, each trespass named."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parent.parent / "orchestra"

FOUNDATION = {"checksum", "model", "errors", "rolling"}
BELOW_SERVICES = {*FOUNDATION, "config", "core", "options", "parameters", "security", "settings", "store", "wire"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "checksum": set(),
    "model": {"checksum"},
    "errors": set(),
    "rolling": {"model"},
    "parameters": set(),
    "supervisor": set(),
    "logs": set(),
    "config": {"errors"},
    "options": {"config", "errors", "logs", "settings"},
    "hangup": {"errors"},
    "settings": {"config", *FOUNDATION},
    "core": FOUNDATION,
    "wire": FOUNDATION,
    "store": FOUNDATION,
    "security": {"config", *FOUNDATION},
    "audience": {*FOUNDATION, "core", "parameters"},
    "conductor": {*BELOW_SERVICES, "audience", "hangup", "supervisor"},
    "player": {*BELOW_SERVICES, "audience", "hangup", "supervisor"},
    "bench": {*BELOW_SERVICES, "audience", "player"},
    "drill": {*FOUNDATION, "audience", "player"},
    "cli": {*BELOW_SERVICES, "audience", "bench", "drill", "hangup", "logs", "player"},
}
"""Every room of the house and the rooms it may import; its own is always among them."""

PURE_LIBRARIES = {"msgspec", "ClusterShell"}
MAKES_REACTOR = {"conductor.tap", "player.tap"}
MAKES_REACTOR_LATE = {
    "bench.spawning": "a floor, in a process of its own",
    "audience.client": "its blocking facade",
    "logs": "twistd calls it when one was chosen",
}
STAGE = "player.stage"


class Import(NamedTuple):
    """One import statement's module, ``orchestra.x`` with the first part left out if it is ours."""

    module: str
    ours: bool
    inside: bool  # of a function
    line: int


def imports_of(source: str) -> Iterator[Import]:
    """Every import in ``source``, those made only for the type checker left out."""
    yield from _walk(ast.parse(source), inside=False)


def _walk(node: ast.AST, inside: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (_named(alias.name, inside, child) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            yield from (_named(_target(child.module or "", a.name), inside, child) for a in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def _target(module: str, name: str) -> str:
    """``from orchestra.core import explain`` imports a module, ``from orchestra.model import Run`` a value."""
    path = HOUSE.parent / module.replace(".", "/") / name
    whole = f"{module}.{name}"
    if path.is_dir() or path.with_suffix(".py").exists() or whole == "twisted.internet.reactor":
        return whole
    return module


def _named(module: str, inside: bool, node: ast.stmt) -> Import:
    ours = module.split(".")[0] == "orchestra"
    return Import(module.partition(".")[2] or "__init__" if ours else module, ours, inside, node.lineno)


def trespasses(name: str, source: str) -> list[str]:
    """What ``source``, if it were the module ``name`` of the house, imports and must not."""
    return [f"{name}, line {one.line}: {wrong}" for one in imports_of(source) if (wrong := _wrong(name, one))]


def _wrong(name: str, one: Import) -> str:
    room, other = name.split(".")[0], one.module.split(".")[0]
    if not one.ours:
        return _wrong_library(name, one)
    if other not in {room, "__init__"} | MAY_IMPORT[room]:
        return f"{room} imports {one.module}"
    if one.module.endswith(".tap"):
        return f"imports {one.module}, which only twistd may"
    return ""


def _wrong_library(name: str, one: Import) -> str:
    top = one.module.split(".")[0]
    if name.startswith("core") and top not in PURE_LIBRARIES | sys.stdlib_module_names:
        return f"core imports {one.module}"
    if one.module != "twisted.internet.reactor" or name in MAKES_REACTOR or name.startswith("cli."):
        return ""
    return "" if one.inside and name in MAKES_REACTOR_LATE else "imports the reactor"


def modules() -> dict[str, str]:
    """Every module of the house and its source."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])] = path.read_text()
    return found


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward_only(name: str) -> None:
    """No room imports one above or beside it, and the reactor is chosen where daemons and commands are made."""
    assert trespasses(name, MODULES[name]) == []


def test_the_stage_needs_the_standard_library_alone() -> None:
    """Whatever the stage imports, and what that imports, is ours or Python's own."""
    assert foreign(STAGE) == []


def foreign(first: str) -> list[str]:
    """What ``first`` pulls in from outside the house and the standard library."""
    found, ahead, been = [], [first], set()
    while ahead:
        name = ahead.pop()
        been.add(name)
        for one in imports_of(MODULES[name]):
            if one.ours:
                ahead += [one.module] * (one.module not in been)
            elif one.module.split(".")[0] not in sys.stdlib_module_names:
                found.append(f"{name}, line {one.line}: {one.module}")
    return found


def test_a_library_behind_another_module_is_seen() -> None:
    """The walk follows imports of imports; what is not the stage does pull in more."""
    assert any(line.startswith("model, ") for line in foreign("player.repertoire"))


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("core.x", "from orchestra.wire import commands", "core.x, line 1: core imports wire.commands"),
        ("core.x", "import os\nimport twisted", "core.x, line 2: core imports twisted"),
        ("conductor.x", "from orchestra.player.line import Line", "conductor.x, line 1: conductor imports player.line"),
        ("player.x", "import orchestra.conductor", "player.x, line 1: player imports conductor"),
        ("store.x", "def f():\n from orchestra.core import explain", "store.x, line 2: store imports core.explain"),
        ("wire.x", "from twisted.internet import reactor", "wire.x, line 1: imports the reactor"),
        ("player.x", "def f():\n from twisted.internet import reactor as r", "player.x, line 2: imports the reactor"),
        ("logs", "from twisted.internet import reactor", "logs, line 1: imports the reactor"),
        ("player.x", "if 1:\n import twisted.internet.reactor", "player.x, line 2: imports the reactor"),
        ("cli.x", "from orchestra.player import tap", "cli.x, line 1: imports player.tap, which only twistd may"),
    ],
)
def test_a_trespass_is_named(name: str, source: str, says: str) -> None:
    """Who, where and what: enough to mend it."""
    assert trespasses(name, source) == [says]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.x", "import enum\nfrom ClusterShell.NodeSet import NodeSet\nfrom orchestra.model import Run"),
        ("player.tap", "def f():\n from twisted.internet import reactor"),
        ("wire.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from orchestra.player import line"),
        ("wire.x", "from twisted.internet.interfaces import IReactorTime"),
    ],
)
def test_what_is_allowed_is_not_complained_of(name: str, source: str) -> None:
    """The walls have doors."""
    assert trespasses(name, source) == []
