"""The vault: what it seals nobody reads or guesses without its key, and the key is made once and kept."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.errors import FileProblem
from orchestra.model import Run
from orchestra.security.vault import NO_KEY, Unsealable, Vault, unsealed

SECRET = {"password": "canary"}


def opened(file: Path) -> Vault:
    vault = Vault(str(file))
    vault.open()
    return vault


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return opened(tmp_path / "key")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=50), max_size=4))
def test_what_is_sealed_comes_out_as_it_was(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    vault = opened(tmp_path_factory.mktemp("vault") / "key")
    assert vault.unseal("login", vault.seal("login", values).sealed) == values


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """What was sealed before a restart can be read after it."""
    file = tmp_path / "key"
    vault = Vault(str(file))
    assert vault.open()
    assert file.stat().st_mode & 0o777 == 0o600
    again = Vault(str(file))
    assert not again.open()
    assert again.unseal("login", vault.seal("login", SECRET).sealed) == SECRET
    assert os.listdir(tmp_path) == ["key"]


def test_a_start_that_was_cut_off_leaves_no_half_a_key(tmp_path: Path) -> None:
    (tmp_path / "key.part").write_text("half")
    assert opened(tmp_path / "key").seal("login", SECRET)
    assert os.listdir(tmp_path) == ["key"]


def test_nothing_of_a_secret_shows(vault: Vault) -> None:
    """Twice the same looks different, and yet can be told to be the same."""
    one, two = vault.seal("login", SECRET), vault.seal("login", SECRET)
    assert b"canary" not in one.sealed and b"canary" not in one.likeness
    assert one.sealed != two.sealed and one.likeness == two.likeness
    assert one.likeness != vault.seal("login", {"password": "other"}).likeness


def test_another_key_knows_nothing(vault: Vault, tmp_path: Path) -> None:
    """Neither what it is, nor whether it is the same."""
    other = opened(tmp_path / "other")
    sealed = vault.seal("login", SECRET)
    assert other.seal("login", SECRET).likeness != sealed.likeness
    with pytest.raises(Unsealable):
        other.unseal("login", sealed.sealed)


@pytest.mark.parametrize("damage", [lambda sealed: b"", lambda sealed: sealed[:-1], lambda sealed: sealed + b"x"])
def test_what_is_damaged_is_not_unsealed(vault: Vault, damage: object) -> None:
    with pytest.raises(Unsealable):
        vault.unseal("login", damage(vault.seal("login", SECRET).sealed))  # type: ignore[operator]


def test_what_is_sealed_for_one_score_is_not_for_another(vault: Vault) -> None:
    with pytest.raises(Unsealable):
        vault.unseal("echo", vault.seal("login", SECRET).sealed)


def test_a_run_gets_its_secrets_or_the_reason_why_not(vault: Vault, tmp_path: Path) -> None:
    """It is the player's already: it can only be refused now."""
    run = Run(1, 7, 0, 1, "login", {}, None)
    sealed = vault.seal("login", SECRET).sealed
    assert unsealed(vault, run, None) is run
    assert unsealed(vault, run, sealed).secrets == SECRET
    assert unsealed(opened(tmp_path / "other"), run, sealed).trouble == NO_KEY
    assert unsealed(None, run, sealed).trouble == NO_KEY


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("x" * 64, 0o600, "holds no key: 64 hexadecimal digits were expected"),
        ("ab" * 31, 0o600, "holds no key: 64 hexadecimal digits were expected"),
        ("ab" * 32, 0o640, "may be read or written by others; 'chmod 600' mends that"),
    ],
)
def test_a_key_that_is_none_is_told(tmp_path: Path, text: str, mode: int, says: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(FileProblem) as caught:
        opened(tmp_path / "key")
    assert caught.value.sentence == f"{tmp_path}/key: {says}"


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be made: No such file or directory"):
        opened(tmp_path / "gone" / "key")
