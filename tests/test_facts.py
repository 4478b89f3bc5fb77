"""What is known of a machine: read without a process, believed under conditions, kept once for all that share it."""

import os
import time
from pathlib import Path

import msgspec
import pytest
from storehouse import Storehouse, greet

from orchestra.model import Announce, Facts
from orchestra.player import facts
from orchestra.store import statements

TRUSTED = {0, os.geteuid()}


def machine(root: Path, **files: str) -> Path:
    """A root directory with these files in it, "__" for "/"."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def added(directory: Path, **texts: str) -> Facts:
    directory.mkdir(mode=0o755)
    for name, text in texts.items():
        (directory / f"{name}.conf").write_text(text)
        (directory / f"{name}.conf").chmod(0o644)
    return facts.read(str(directory), TRUSTED)


def test_this_machine_is_known() -> None:
    """Every fact that is built in, and it takes no process and no time."""
    before = time.process_time()
    found = facts.read("/nonexistent", TRUSTED)
    assert time.process_time() - before < 0.5
    assert found.facts.keys() <= set(facts.BUILT_IN)
    assert {"arch", "cores", "kernel", "python", "virtual"} <= found.facts.keys()
    assert found.facts["cores"] == str(os.cpu_count())
    assert found == Facts.of(found.facts)


def test_what_a_debian_in_a_virtual_machine_says(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        etc__os_dot_release="unused",
        proc__meminfo="MemTotal:       16372844 kB\nMemFree: 1 kB\n",
        sys__class__dmi__id__sys_vendor="QEMU\n",
    )
    (root / "etc" / "os-release").write_text('NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    found = facts.read("/nonexistent", TRUSTED, str(root)).facts
    assert [found[name] for name in ("os", "release", "memory", "virtual")] == ["debian", "12", "15989", "kvm"]


@pytest.mark.parametrize(
    ("files", "virtual"),
    [
        ({}, "none"),
        ({"run__systemd__container": "lxc\n"}, "lxc"),
        ({"_dot_dockerenv": ""}, "docker"),
        ({"sys__class__dmi__id__product_name": "VMware Virtual Platform"}, "vmware"),
        ({"sys__hypervisor__type": "xen\n"}, "xen"),
        ({"proc__cpuinfo": "flags : fpu hypervisor lahf"}, "other"),
    ],
)
def test_what_it_is_made_of(tmp_path: Path, files: dict[str, str], virtual: str) -> None:
    found = facts.read("/nonexistent", TRUSTED, str(machine(tmp_path, **files)))
    assert found.facts["virtual"] == virtual
    assert "os" not in found.facts, "what is not there is not known, and not guessed"


def test_files_add_facts(tmp_path: Path) -> None:
    found = added(tmp_path / "facts.d", role="# by hand\nrole = db\nrack.row = 7 b\n", site="site = north\n")
    assert {name: found.facts[name] for name in ("role", "rack.row", "site")} == {
        "role": "db",
        "rack.row": "7 b",
        "site": "north",
    }
    assert found.problems == ()


def test_what_cannot_be_a_fact_is_left_out_and_said(tmp_path: Path) -> None:
    found = added(
        tmp_path / "facts.d",
        a="os = plan9\nRole = x\nrole = db\n",
        b="role = web\nsite = a\x1bb\nlong = " + "x" * 1_001 + "\n",
        c="[role]\nx = 1\n",
        d="nonsense\n",
    )
    where = str(tmp_path / "facts.d")
    assert (found.facts["role"], "site" in found.facts, "x" in found.facts) == ("db", False, False)
    for problem in (
        f"{where}/a.conf, line 1: the fact 'os' is built in",
        f"{where}/a.conf, line 2: 'Role' is no name of a fact",
        f"{where}/b.conf, line 1: the fact 'role' is already in {where}/a.conf",
        f"{where}/b.conf, line 2: the value of 'site' is not one line",
        f"{where}/b.conf, line 3: the value of 'long' is not one line",
        f"{where}/c.conf, line 1: facts have no [sections]",
        f"{where}/d.conf, line 1: 'nonsense': expected 'key = value'",
    ):
        assert any(told.startswith(problem) for told in found.problems), problem
    assert len(found.problems) == 7


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    """Whoever may say what a machine is may have work sent to it."""
    found = added(tmp_path / "facts.d", role="role = db\n")
    (tmp_path / "facts.d" / "role.conf").chmod(0o664)
    again = facts.read(str(tmp_path / "facts.d"), TRUSTED)
    assert ("role" in found.facts, "role" in again.facts) == (True, False)
    assert "others than its owner may write it (mode 0664)" in again.problems[0]
    (tmp_path / "facts.d").chmod(0o777)
    assert "others than its owner" in facts.read(str(tmp_path / "facts.d"), TRUSTED).problems[0]


def test_a_huge_file_is_refused_at_once(tmp_path: Path) -> None:
    before = time.process_time()
    found = added(tmp_path / "facts.d", big="x = 1\n" * 1_700_000)
    assert "is larger than 256 KiB" in found.problems[0]
    assert time.process_time() - before < 2


def test_what_a_player_may_say_is_bounded() -> None:
    """A name or a value that no file could give is no Announce at all."""
    for known in ({"Role": "x"}, {"a b": "x"}, {"role": "x" * 1_001}, {f"f{n}": "" for n in range(501)}):
        raw = msgspec.msgpack.encode(Announce(None, Facts("", known)))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(raw, type=Announce)


# ---- in the store

DEBIAN, ALPINE = Facts.of({"os": "debian"}), Facts.of({"os": "alpine"})


def bodies(store: Storehouse) -> int:
    [(many,)] = store.cur.execute("SELECT count(*) FROM facts").fetchall()
    return int(many)


def test_a_body_is_asked_for_once_and_shared() -> None:
    store = Storehouse(2)
    assert greet(store.cur, 1, facts=DEBIAN.digest).wanted == (DEBIAN.digest,)
    statements.announce_facts(store.cur, 1, DEBIAN)
    assert greet(store.cur, 2, facts=DEBIAN.digest).wanted == ()
    assert bodies(store) == 1
    known = statements.facts_of(store.cur, ["web-2", "web-1"])
    assert list(known) == ["web-2", "web-1"]
    assert known["web-1"] is known["web-2"]
    assert known["web-1"] == DEBIAN


def test_what_nobody_has_any_more_is_forgotten() -> None:
    store = Storehouse(2)
    for player in (1, 2):
        statements.announce_facts(store.cur, player, DEBIAN)
    statements.announce_facts(store.cur, 1, ALPINE)
    assert bodies(store) == 2
    statements.announce_facts(store.cur, 2, ALPINE)
    assert bodies(store) == 1


def test_nothing_is_known_until_what_changed_is_told() -> None:
    """What was true of a machine may not be so now: better unknown than wrong."""
    store = Storehouse(1)
    statements.announce_facts(store.cur, 1, DEBIAN)
    greeting = greet(store.cur, 1, facts=ALPINE.digest)
    assert greeting.wanted == (ALPINE.digest,)
    assert statements.facts_of(store.cur, ["web-1", "nobody"]) == {"web-1": None, "nobody": None}
    assert bodies(store) == 0


def test_a_player_that_knows_no_facts_has_none() -> None:
    """An older one says nothing of them."""
    store = Storehouse(1)
    statements.announce_facts(store.cur, 1, DEBIAN)
    assert greet(store.cur, 1).wanted == ()
    assert statements.facts_of(store.cur, ["web-1"]) == {"web-1": None}
