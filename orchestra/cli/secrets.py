"""Secret parameters at a terminal: asked for when the conductor wants them, and never shown."""

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

import click
from msgspec.structs import replace

from orchestra.cli.session import talk
from orchestra.errors import SecretsWanted
from orchestra.model import Ask, Receipt, Rerun

T = TypeVar("T")


def with_secrets(path: str, ask: Ask, act: Callable[[Ask], T]) -> T:
    """What ``act`` returns for ``ask``, once what is secret and missing was asked for; without a terminal that is
    the error it is."""
    try:
        return act(ask)
    except SecretsWanted:
        if not sys.stdin.isatty():
            raise
    told = asked_for(talk(path, lambda conductor: conductor.secrets_wanted(ask)))
    return act(replace(ask, private=ask.private | told))


def rerun_with_secrets(path: str, wanted: Rerun) -> Receipt:
    """Run a job once more, once the secrets that it had and that were not given were asked for in the same way."""
    try:
        return talk(path, lambda conductor: conductor.rerun(wanted))
    except SecretsWanted:
        if not sys.stdin.isatty():
            raise
    names = talk(path, lambda conductor: conductor.job(wanted.job)).secrets
    told = asked_for(name for name in names if name not in wanted.secrets)
    return talk(path, lambda conductor: conductor.rerun(replace(wanted, secrets=wanted.secrets | told)))


def asked_for(names: Iterable[str]) -> dict[str, str]:
    """What somebody at the terminal types for each of ``names``."""
    return {name: str(click.prompt(name, hide_input=True, err=True)) for name in names}
