"""Many host names as one word, ``web[01-20].example.com``. Pure; the system's group files are never looked at."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from ClusterShell.RangeSet import RangeSet

FEW: Final = 100
"""Up to so many names are folded along every number in them, which takes the square of their number in time; more
than that along one number only."""

_NUMBER: Final = re.compile(r"[0-9]+")


def folded(names: Collection[str], few: int = FEW) -> str:
    """``names`` as short as may be; ClusterShell's tools read it."""
    if len(names) <= few:
        return str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP))
    patterns: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for name in dict.fromkeys(names):
        patterns[tuple(_NUMBER.split(name))].append(tuple(_NUMBER.findall(name)))
    return ",".join(word for pattern in sorted(patterns) for word in _words(pattern, patterns[pattern]))


def _words(pattern: Sequence[str], found: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if len(pattern) == 1:
        yield pattern[0]
        return
    axis = min(range(len(pattern) - 1), key=lambda n: len({numbers[:n] + numbers[n + 1 :] for numbers in found}))
    along: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for numbers in found:
        along[(*numbers[:axis], "", *numbers[axis + 1 :])].append(numbers[axis])
    for fixed in sorted(along):
        words = [*fixed[:axis], _range(along[fixed]), *fixed[axis + 1 :]]
        yield pattern[0] + "".join(number + text for number, text in zip(words, pattern[1:], strict=True))


def _range(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"[{RangeSet.fromlist(numbers)}]"
