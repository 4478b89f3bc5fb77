"""What parameters may be, and the environment that carries them."""

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.parameters import environment, problem

KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)
KIB = 1024


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_an_environment_can_carry_whatever_is_allowed(params: dict[str, str]) -> None:
    """What has no problem becomes one encodable NAME=value string per parameter, none of them lost."""
    assert problem(params) is None
    carried = environment(params)
    assert len(carried) == len(params)
    for key, value in params.items():
        assert carried[f"ORC_{key}"] == value
        assert b"\0" not in os.fsencode(value)


@given(st.text(max_size=80))
def test_a_key_is_allowed_exactly_when_it_is_a_short_ascii_identifier(key: str) -> None:
    """No other key passes, and the sentence about it can be printed anywhere."""
    said = problem({key: ""})
    if key.isascii() and key.isidentifier() and len(key) <= 64:
        assert said is None
    else:
        assert said is not None
        assert said.isascii() and said.isprintable()


@pytest.mark.parametrize("key", ["", "1a", "a-b", "a b", "a=b", "a\n", "é", "a" * 65, "a\0", "x" * 100_000])
def test_a_bad_key_is_named(key: str) -> None:
    """The sentence names the key, shortened if it is endless, and the rule."""
    said = problem({"fine": "", key: "v"})
    assert said is not None and "a name is a letter or _" in said
    assert ascii(key[:20])[1:-1] in said
    assert len(said) < 300


@pytest.mark.parametrize("key", ["a", "_", "A9_", "a" * 64])
def test_a_good_key_passes(key: str) -> None:
    assert problem({key: "v"}) is None


def test_a_value_with_nul_is_refused() -> None:
    said = problem({"message": "a\0b"})
    assert said == "parameter 'message': the value holds a NUL byte, which no environment can carry"


def test_a_value_that_cannot_be_encoded_is_refused() -> None:
    said = problem({"message": "a\udc80b"})
    assert said == "parameter 'message': the value holds a character that UTF-8 cannot encode"


def test_a_value_has_at_most_16_kib_of_utf8() -> None:
    """Bytes are counted, not characters, and the last allowed one is allowed."""
    assert problem({"v": "x" * 16 * KIB}) is None
    assert problem({"v": "é" * 8 * KIB}) is None
    said = problem({"v": "é" * 8 * KIB + "x"})
    assert said == "parameter 'v': the value has 16385 bytes; at most 16384 (16 KiB) are allowed"


def filled(total: int) -> dict[str, str]:
    """Parameters whose keys and values have ``total`` bytes together."""
    params = dict.fromkeys("abc", "x" * 16 * KIB)
    params["rest"] = "x" * (total - 3 - 3 * 16 * KIB - len("rest") - 100)
    params["z"] = "é" * 49 + "x"
    return params


def test_all_together_have_64_kib_exactly() -> None:
    """65,536 bytes of keys and values are allowed, one more is not."""
    assert sum(len(k.encode()) + len(v.encode()) for k, v in filled(64 * KIB).items()) == 64 * KIB
    assert problem(filled(64 * KIB)) is None
    said = problem(filled(64 * KIB + 1))
    assert said == "parameter 'z': the parameters together exceed 65536 bytes (64 KiB of keys and values)"


def test_the_largest_parameters_still_start_a_process() -> None:
    """The kernel's own limits are above ours."""
    env = environment(filled(64 * KIB))
    done = subprocess.run(["/bin/sh", "-c", 'echo "${#ORC_a} ${#ORC_rest}"'], env=env, capture_output=True, check=True)
    assert done.stdout.split() == [b"16384", str(len(env["ORC_rest"])).encode()]


def test_case_is_kept() -> None:
    assert environment({"path": "/a", "PATH": "/b"}) == {"ORC_path": "/a", "ORC_PATH": "/b"}
