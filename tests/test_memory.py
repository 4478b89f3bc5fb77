"""A player is small: what it seldom needs, or never, is not in its memory. What a stage loads is in its own tests."""

import subprocess
import sys

from orchestra.model import Catalogue, Facts

LOADED = """
import sys
import twisted.scripts.twistd
found = set(sys.modules)
import orchestra.player.tap, twisted.internet.reactor
print(*sorted(set(sys.modules) - found))
"""
"""What twistd loads anyway is not ours to choose."""

ITS_OPERATORS = {"twisted.spread", "twisted.cred.portal", "orchestra.audience.seat", "orchestra.player.seat"}
THE_CONDUCTORS = {
    "orchestra.audience.desk",
    "orchestra.core.scheduler",
    "orchestra.core.blockers",
    "importlib.resources",
}
THE_STAGES = {"orchestra.player.performing", "orchestra.player.pins", "orchestra.player.loop"}
THE_COMMANDS = {"click", "rich", "ClusterShell", "psycopg", "automat"}


def test_a_player_loads_nothing_that_is_only_for_others() -> None:
    loaded = set(run(LOADED).split())
    assert "orchestra.player.service" in loaded
    assert loaded & (ITS_OPERATORS | THE_CONDUCTORS | THE_STAGES | THE_COMMANDS) == set()


def test_what_a_player_announces_is_hashed_without_openssl() -> None:
    """hashlib's is another than cryptography's, which TLS needs: they would both be in memory."""
    announce = "from orchestra.model import Catalogue, Facts; print(Catalogue.of((), ()).digest, Facts.of({}).digest)"
    done = run(f"import hashlib; hashlib.sha256 = None; {announce}")
    assert done.split() == [Catalogue.of((), ()).digest, Facts.of({}).digest]


def run(program: str) -> str:
    """What this program prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
