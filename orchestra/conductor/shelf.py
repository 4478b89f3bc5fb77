"""What the fleet can play, asked of the store. A catalogue is decoded once, however many players have it and however
often they are asked for."""

from collections.abc import Collection, Mapping
from sqlite3 import Cursor

from orchestra.core import scorebook
from orchestra.core.scorebook import Disk, ScoreView
from orchestra.model import Catalogue
from orchestra.store import statements
from orchestra.store.saver import Loader


class Shelf:
    """The catalogues of all players that are not removed."""

    def __init__(self, reader: Loader) -> None:
        self._reader = reader
        self._decoded: Mapping[str, Catalogue] = {}
        self._last: tuple[Mapping[str, int], str] = {}, ""
        self._bound: list[ScoreView] = []  # of what was asked last: whoever reads page by page asks again and again

    async def disks(self, hosts: Collection[str] | None = None) -> list[Disk]:
        """Who has which catalogue, of these hosts or of all; by digest, players by name."""
        found = await self._reader.read(statements.holders)
        wanted = None if hosts is None else frozenset(hosts)
        rows = [(digest, tuple(n for n in names if wanted is None or n in wanted)) for digest, names in found.items()]
        return [Disk(digest, names) for digest, names in rows if names]

    async def scores(self, hosts: Collection[str] | None = None, name: str = "") -> list[ScoreView]:
        """Every score of these hosts, or of all, by name; or the one of this ``name``."""
        wanted = None if hosts is None else frozenset(hosts)

        def bound(cursor: Cursor) -> list[ScoreView]:
            holders = statements.holders(cursor)
            many = {
                digest: len(names) if wanted is None else sum(name in wanted for name in names)
                for digest, names in holders.items()
            }
            return self._bind(cursor, many, name)

        return await self._reader.read(bound)

    def _bind(self, cursor: Cursor, many: Mapping[str, int], name: str) -> list[ScoreView]:
        if self._last != (many, name):
            self._bound = scorebook.bind(self._read(cursor, many.keys()), many, name)
            self._last = many, name
        return self._bound

    def _read(self, cursor: Cursor, digests: Collection[str]) -> Collection[Catalogue]:
        """The catalogues with these digests; what nobody has any more is forgotten."""
        known = self._decoded
        found = {digest: known.get(digest) or statements.catalogue(cursor, digest) for digest in digests if digest}
        self._decoded = {digest: catalogue for digest, catalogue in found.items() if catalogue is not None}
        return self._decoded.values()
