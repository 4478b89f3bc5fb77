"""What is held, kept where it can be asked often. Pure; the store's own record decides what is handed out."""

from collections.abc import Iterable

from orchestra.model import Held, Hold


class Brake:
    """The holds in force."""

    def __init__(self, holds: Iterable[Hold] = ()) -> None:
        self._holds = {(one.kind, one.name): one for one in holds}

    @property
    def holds(self) -> tuple[Hold, ...]:
        return tuple(self._holds.values())

    def of_host(self, name: str) -> Hold | None:
        """Why a host is given nothing at all."""
        return self._holds.get((Held.EVERYTHING, "")) or self._holds.get((Held.HOST, name))

    def of_score(self, name: str) -> Hold | None:
        """Why a score is given to nobody."""
        return self._holds.get((Held.EVERYTHING, "")) or self._holds.get((Held.SCORE, name))

    def of(self, host: str, score: str) -> Hold | None:
        """Why this score is not given to this host."""
        return self.of_host(host) or self.of_score(score)

    def all_of(self, host: str, score: str) -> tuple[Hold, ...]:
        """Every hold that keeps this score from this host: each has to be released."""
        marks = (Held.EVERYTHING, ""), (Held.HOST, host), (Held.SCORE, score)
        return tuple(self._holds[mark] for mark in marks if mark in self._holds)

    @property
    def some_hosts(self) -> bool:
        """Whether hosts are held one by one."""
        return any(kind is Held.HOST for kind, _ in self._holds)
