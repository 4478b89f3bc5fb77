"""Whether a request fits the scores it is for, as the targets have announced them; which of it is to be sealed.

Players with one disk share one entry, so what is checked is checked once for all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from orchestra.errors import BadRequest, SecretInTheOpen, SecretsUnknown, SecretsWanted, Unfit
from orchestra.model import Ask, Scope, ScoreEntry
from orchestra.parameters.declared import no_dry_run, refusal

MOST_NAMED: Final = 3


class Vetted(Struct, frozen=True):
    """The parameters, told apart, and who will refuse them all the same."""

    params: dict[str, str]
    secrets: dict[str, str]
    warnings: tuple[str, ...] = ()


def vetted(
    ask: Ask, scores: Mapping[str, ScoreEntry | None], elsewhere: Iterable[ScoreEntry], unseen: int = 0
) -> Vetted:
    """What ``ask`` comes to, given the score of every target that is known, and those of ``elsewhere``; ``unseen``: how
    many targets are not.

    All of the targets have to take it; of a job for one or some it is enough that so many do.
    """
    known = _distinct(scores.values())
    if not (ask.private or ask.dry_run or any(entry.params for entry in known)):
        return Vetted(ask.params, {})
    telling = known or _distinct(elsewhere)
    if ask.private and not telling:
        raise SecretsUnknown(score=ask.score[:80])
    result, missing = _told_apart(ask, telling), wanted(ask, telling)
    refused = {id(entry): why for entry in known if (why := _refusal(entry, ask, result, missing))}
    hosts = _by_reason(scores, refused)
    refusing = sum(map(len, hosts.values()))
    enough = {
        Scope.ONE: len(refused) < len(known),
        Scope.SOME: len(scores) + unseen - refusing >= ask.count,
    }.get(ask.scope or Scope.ALL, False)
    if hosts and not enough:
        everybody = len(refused) == len(known) and len(hosts) == 1
        raise Unfit(problem="; ".join(why if everybody else f"{_named(names)}: {why}" for why, names in hosts.items()))
    if missing:  # last: nobody is asked for a secret in vain
        raise SecretsWanted(names=" and ".join(f"'{name}'" for name in missing))
    warnings = tuple(f"{_named(names)} will refuse: {why}" for why, names in hosts.items())
    return Vetted(result.params, result.secrets, warnings)


def misfits(ask: Ask, scores: Mapping[str, ScoreEntry | None]) -> dict[str, str]:
    """Who would refuse the request for its parameters, and why; secrets that are still to be asked for are no
    reason."""
    known = _distinct(scores.values())
    result, missing = _told_apart(ask, known), wanted(ask, known)
    refused = {id(entry): why for entry in known if (why := _refusal(entry, ask, result, missing))}
    return {name: refused[id(entry)] for name, entry in scores.items() if entry is not None and id(entry) in refused}


def wanted(ask: Ask, entries: Iterable[ScoreEntry]) -> tuple[str, ...]:
    """The secret parameters that are required and not given."""
    given = ask.private.keys()
    return tuple(
        dict.fromkeys(
            one.name
            for entry in _distinct(entries)
            for one in entry.params
            if one.secret and one.required and one.name not in given
        )
    )


def _told_apart(ask: Ask, entries: Sequence[ScoreEntry]) -> Vetted:
    secret = {one.name for entry in entries for one in entry.params if one.secret}
    for key in ask.params:
        if key in secret:
            raise SecretInTheOpen(name=key)
        if key in ask.private:
            raise BadRequest(problem=f"the parameter '{key}' is given twice")
    secrets = {key: value for key, value in ask.private.items() if key in secret}
    return Vetted(ask.params | {key: value for key, value in ask.private.items() if key not in secret}, secrets)


def _refusal(entry: ScoreEntry, ask: Ask, result: Vetted, missing: Sequence[str]) -> str | None:
    if ask.dry_run and not entry.dry_run:
        return no_dry_run(entry.name)
    asked_later = [replace(one, required=False) if one.name in missing else one for one in entry.params]
    return refusal(asked_later, result.params, result.secrets)


def _distinct(entries: Iterable[ScoreEntry | None]) -> list[ScoreEntry]:
    return list({id(entry): entry for entry in entries if entry is not None}.values())


def _by_reason(scores: Mapping[str, ScoreEntry | None], refused: Mapping[int, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, entry in scores.items() if refused else ():
        if entry is not None and (why := refused.get(id(entry))):
            found.setdefault(why, []).append(name)
    return found


def _named(names: Sequence[str]) -> str:
    first, more = ", ".join(sorted(names)[:MOST_NAMED]), len(names) - MOST_NAMED
    return f"{first} and {more} more" if more > 0 else first
