"""Many stories told side by side, a process for each core: wherever a story is told, it is the same."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Final

from twisted.logger import globalLogBeginner

from simulation.run import Story, tell

AHEAD: Final = 2  # chunks for each process that are told before somebody asks for them


def quiet() -> None:
    """What daemons log is in the trace, and need not be said here as well."""
    globalLogBeginner.beginLoggingTo((), redirectStandardIO=False)


def tell_some(seeds: Sequence[int], favour: Sequence[str] = ()) -> list[Story]:
    """Tell stories one after another."""
    return [tell(seed, favour=favour) for seed in seeds]


class Tellers:
    """Tells chunks of seeds, the next ones while somebody looks at the one before."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, chunks: Sequence[range], favour: Sequence[str]) -> None:
        self._pool = pool
        self._ahead = AHEAD * jobs
        self._chunks = chunks
        self._favour = favour
        self._under_way: dict[range, Future[list[Story]]] = {}

    def told(self, chunk: range) -> list[Story]:
        """The stories of a chunk."""
        first = self._chunks.index(chunk)
        for one in self._chunks[first : first + self._ahead]:
            if one not in self._under_way:
                self._under_way[one] = self._pool.submit(tell_some, one, self._favour)
        return self._under_way[chunk].result()


@contextmanager
def tellers(chunks: Sequence[range], favour: Sequence[str] = (), jobs: int | None = None) -> Iterator[Tellers]:
    """Processes that are gone when it is over. They are begun from nothing: a reactor cannot be forked."""
    jobs = jobs or os.cpu_count() or 1
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=quiet) as pool:
        try:
            yield Tellers(pool, jobs, chunks, favour)
        finally:
            pool.shutdown(cancel_futures=True)
