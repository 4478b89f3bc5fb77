"""The words of a request become a frozen list of players; every name must be known, and nothing is guessed.

A word is a host name. (Folded names and groups will be expanded before the names are completed.)
"""

import difflib
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from orchestra.errors import BadRequest, UnknownHosts

MAX_NAMED: Final = 10  # unknown names in one sentence
MAX_CORRECTED: Final = 3  # of them with a suggestion: looking for one takes time
MAX_COMPARED: Final = 2_000
MAX_LABEL: Final = 63  # RFC 1035


def resolve(words: Iterable[str], known: Collection[str], default_domain: str = "") -> tuple[str, ...]:
    """The names of ``known`` that ``words`` mean, sorted, each once; :class:`UnknownHosts` if one is not known."""
    names = {complete(word, default_domain) for word in words}
    if not names:
        raise BadRequest(problem="no target: name at least one host")
    unknown = sorted(name for name in names if name not in known)
    if unknown:
        raise UnknownHosts(names=_listed(unknown, known))
    return tuple(sorted(names))


def complete(word: str, default_domain: str = "") -> str:
    """``word`` in lower case, with the default domain if it has none."""
    name = word.strip().lower().removesuffix(".")
    domain = default_domain.strip(".").lower()
    return f"{name}.{domain}" if name and domain and "." not in name else name


def _listed(unknown: list[str], known: Collection[str]) -> str:
    shown = [
        _shown(name) + (_nearest(name, known) if n < MAX_CORRECTED else "")
        for n, name in enumerate(unknown[:MAX_NAMED])
    ]
    more = len(unknown) - MAX_NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    return f"'{name[:80]}…'" if len(name) > 80 else name or "''"


def _nearest(name: str, known: Collection[str]) -> str:
    host = name[:MAX_LABEL].split(".")[0]
    labels = {other.split(".")[0]: other for other in islice(_similar(host, known), MAX_COMPARED)}
    near = difflib.get_close_matches(host, labels, 1, 0.7)
    return f" (did you mean {labels[near[0]]}?)" if near else ""


def _similar(host: str, known: Collection[str]) -> Iterator[str]:
    """Names that are worth a closer look: their first label begins alike and is about as long."""
    for name in known:
        if name[:1] == host[:1] and abs(len(name.split(".")[0]) - len(host)) <= 1:
            yield name
