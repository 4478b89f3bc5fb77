"""How much is measured: all of it, or quickly; and where."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from msgspec import Struct

from orchestra.bench.hall import Hall, OpenHouse, opened


class Sizes(Struct, frozen=True, kw_only=True):
    """How many of what, and how often."""

    repeats: int = 5
    floor_times: int = 300
    latency_jobs: int = 500
    run_jobs: int = 1000
    run_players: int = 4
    dispatch_players: int = 1000
    dispatch_jobs: int = 10
    fans: tuple[int, ...] = (100, 1000, 10_000)
    fleet: int = 10_000
    idle_seconds: float = 60.0  # two beats of everybody, whenever they came
    depths: tuple[int, ...] = (0, 100_000, 1_000_000)
    absent: int = 1000
    depth_jobs: int = 200
    outputs: int = 1000
    commands: int = 20
    library_players: int = 10_000
    library_scores: int = 200
    library_disks: int = 20
    library_groups: int = 500
    store_tasks: int = 50_000


QUICK: Final = Sizes(
    repeats=2,
    floor_times=50,
    latency_jobs=50,
    run_jobs=100,
    run_players=2,
    dispatch_players=100,
    dispatch_jobs=5,
    fans=(20, 100),
    fleet=200,
    idle_seconds=1.0,
    depths=(0, 5000),
    absent=100,
    depth_jobs=30,
    outputs=20,
    commands=3,
    library_players=200,
    library_scores=20,
    library_disks=5,
    library_groups=20,
    store_tasks=2000,
)
"""Under a minute in all."""


class Setting:
    """What a case is given: its sizes, and a way to open halls."""

    def __init__(self, sizes: Sizes, home: Path, open_house: OpenHouse) -> None:
        """``home``: an empty directory, on the disk that is to be measured."""
        self.sizes = sizes
        self.home = home
        self._open_house = open_house
        self._halls = 0

    def hall(self, real: Sequence[str] = (), emulated: int = 0, absent: int = 0) -> AbstractContextManager[Hall]:
        """A hall, built but not started."""
        self._halls += 1
        return opened(self._open_house, self.home / str(self._halls), real, emulated, absent)
