"""Who is meant: the words of the audience, held against the players file, the groups and the facts."""

from collections.abc import Collection, Sequence
from sqlite3 import Cursor
from typing import Final

from msgspec.structs import replace

from orchestra import settings
from orchestra.conductor.dispatch import Dispatch
from orchestra.core import groups, targets, where
from orchestra.core.groups import Groups
from orchestra.errors import BadRequest
from orchestra.model import Ask, Facts, PlayerView, Scope, Selection
from orchestra.settings import ConductorSettings
from orchestra.store import statements
from orchestra.store.facts import facts_of
from orchestra.store.saver import Loader
from orchestra.store.values import PlayerRow

PAGE: Final = 500


def load_groups(chosen: ConductorSettings) -> Groups:
    """The groups as they are on disk now; none, if there is no such file."""
    return groups.parse(settings.groups_text(chosen.groups), chosen.groups, chosen.default_domain)


class Targeting:
    """Resolves the words of requests. ``groups`` is replaced by a reload."""

    def __init__(self, dispatch: Dispatch, reader: Loader, default_domain: str) -> None:
        self._dispatch = dispatch
        self._reader = reader
        self._default_domain = default_domain
        self.groups = Groups(default_domain=default_domain)

    def take_over(self, fresh: Groups) -> list[str]:
        """These are the groups from now on; what changed, in sentences."""
        before, self.groups = self.groups, fresh
        return [] if before == fresh else [f"groups read again, {len(fresh)} of them"]

    async def select(self, selection: Selection) -> tuple[str, ...]:
        """The players that are meant, by name."""
        names = self.hosts(selection.words)
        if selection.exclude:
            names = targets.without(names, self.hosts(selection.exclude))
        if selection.where:
            names = await self._those(selection.where, names)
        return targets.first(names, selection.limit)

    async def _those(self, text: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of whose facts an expression is true. It is read and applied where it keeps nobody waiting."""
        node = where.parse(text)

        def look(cursor: Cursor) -> tuple[str, ...]:
            known = {name: one.facts if one else where.NOTHING for name, one in facts_of(cursor, names).items()}
            return targets.matching(node, known)

        return await self._reader.read(look)

    def hosts(self, words: Collection[str]) -> tuple[str, ...]:
        """The players that ``words`` mean, by name; an error if one of them is none."""
        return targets.resolve(words, self._dispatch.ids, self._default_domain, self.groups)

    def ids(self, words: Collection[str]) -> list[int]:
        """The players that ``words`` mean, by their numbers."""
        return [self._dispatch.ids[name] for name in self.hosts(words)]

    def named(self, words: Collection[str]) -> tuple[str, ...]:
        """The full names that ``words`` mean, players or not, sorted."""
        return tuple(sorted(targets.hosts(words, self._dispatch.ids, self.groups)))

    async def rows(self, words: Sequence[str], after: str, limit: int) -> list[PlayerRow]:
        """What the store knows of the players that ``words`` mean, or of all; also of those that were removed."""
        if not words:
            return await self._reader.read(lambda cursor: statements.player_rows(cursor, after, limit))
        names = self.named(words)
        if not after:
            await self._check(words, names)
        some = [name for name in names if name > after][:limit]
        return (
            await self._reader.read(lambda cursor: statements.player_rows(cursor, after, limit, some)) if some else []
        )

    async def with_facts(self, views: Sequence[PlayerView]) -> list[PlayerView]:
        """Players with what is known of their machines."""
        known = await self._reader.read(lambda cursor: facts_of(cursor, [view.name for view in views]))
        return [_with(view, known[view.name]) for view in views]

    async def _check(self, words: Sequence[str], names: Collection[str]) -> None:
        """See that each is a player or was one: of those only the rows are left."""
        strange = [name for name in names if name not in self._dispatch.ids][:PAGE]
        rows = (
            await self._reader.read(lambda cursor: statements.player_rows(cursor, "", PAGE, strange)) if strange else ()
        )
        targets.resolve(
            words, {*self._dispatch.ids, *(row.view.name for row in rows)}, self._default_domain, self.groups
        )


def _with(view: PlayerView, known: Facts | None) -> PlayerView:
    return view if known is None else replace(view, facts=known.facts, problems=known.problems)


def scope_of(ask: Ask, targets: int) -> Scope:
    """The scope that is asked for; for more than one target it must be said."""
    if ask.scope is None and targets > 1:
        which = "--all to run it on every one, --one for any one of them, or --some N for so many"
        raise BadRequest(problem=f"{targets} targets: say {which}")
    if ask.scope is Scope.SOME and not 1 <= ask.count <= targets:
        raise BadRequest(problem=f"{ask.count} of {targets} targets cannot be had")
    return ask.scope or Scope.ALL


def wording(selection: Selection) -> Selection | None:
    """How the targets were named, if others could be meant by it at another time."""
    changing = selection.where or any("@" in word for word in (*selection.words, *selection.exclude))
    if not changing:
        return None
    return replace(selection, words=_in_order(selection.words), exclude=_in_order(selection.exclude))


def _in_order(words: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(set(words)))
