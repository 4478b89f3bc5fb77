"""Secret parameters at a terminal: asked for when the conductor wants them, and never shown."""

import sys
from collections.abc import Callable
from typing import TypeVar

import click
from msgspec.structs import replace

from orchestra.cli.session import talk
from orchestra.errors import SecretsWanted
from orchestra.model import Ask

T = TypeVar("T")


def with_secrets(path: str, ask: Ask, act: Callable[[Ask], T]) -> T:
    """What ``act`` returns for ``ask``, once what is secret and missing was asked for; without a terminal that is
    the error it is."""
    try:
        return act(ask)
    except SecretsWanted:
        if not sys.stdin.isatty():
            raise
    names = talk(path, lambda conductor: conductor.secrets_wanted(ask))
    told = {name: str(click.prompt(name, hide_input=True, err=True)) for name in names}
    return act(replace(ask, private=ask.private | told))
