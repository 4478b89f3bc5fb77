"""The stage's sha256 is the sha256, however long the data is and however it comes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra import checksum
from orchestra.checksum import LITTLE, Running, sha256, sha256_of_file

SIZES = [0, 1, 63, 64, LITTLE - 1, LITTLE, LITTLE + 1, 3 * LITTLE + 17]


@pytest.mark.parametrize("size", SIZES)
def test_little_and_much_have_the_same_digest_as_everywhere(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    pieces = Running()
    for at in range(0, size, 40_000):
        pieces.update(data[at : at + 40_000])
    with open(tmp_path / "file", "rb") as file:
        of_file = sha256_of_file(file.fileno())
    assert {sha256(data), pieces.digest(), of_file} == {hashlib.sha256(data).digest()}


def test_a_digest_may_be_asked_for_meanwhile() -> None:
    pieces, whole = Running(), b""
    for _ in range(4):
        pieces.update(b"x" * 30_000)
        whole += b"x" * 30_000
        assert pieces.digest() == hashlib.sha256(whole).digest()


def test_openssl_is_not_loaded_for_little() -> None:
    """It would be a third of the stage's memory."""
    program = f"""
import sys
sys.path.append({str(Path(checksum.__file__).parents[1])!r})
import orchestra.player.stage
from orchestra.checksum import LITTLE, sha256
sha256(bytes(LITTLE))
assert "_hashlib" not in sys.modules
sha256(bytes(LITTLE + 1))
assert "_hashlib" in sys.modules
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_a_stage_whose_python_is_gone_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python may be replaced below it; what it has not loaded by then it does without."""
    expected = hashlib.sha256(bytes(LITTLE + 1)).digest()
    monkeypatch.setitem(sys.modules, "hashlib", None)
    assert sha256(bytes(LITTLE + 1)) == expected
