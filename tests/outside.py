"""A script's view of a conductor, for tests: ``BlockingOrchestra`` in a process of its own.

The tests' own process has a reactor that belongs to the test runner; a script has none, and the library starts one.
"""

import multiprocessing
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from orchestra import errors
from orchestra.errors import OrchestraError


class OutsideOrchestra:
    """Every method of ``BlockingOrchestra``; what iterates there is a list here."""

    def __init__(self, socket: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(socket, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        self._process.join(20)
        assert self._process.exitcode == 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self._ours.send((name, args, more))
            kind, value = self._ours.recv()
            if kind == "error":
                known, sentence = value
                raise type(known, (getattr(errors, known),), {"sentence": sentence})
            return value

        return call


def _serve(socket: str, connection: Any) -> None:
    from orchestra.audience.client import BlockingOrchestra

    with BlockingOrchestra(socket) as orchestra:
        while True:
            try:
                name, args, more = connection.recv()
            except EOFError:
                return
            connection.send(_answer(orchestra, name, args, more))


def _answer(orchestra: Any, name: str, args: Any, more: Any) -> tuple[str, Any]:
    try:
        result = getattr(orchestra, name)(*args, **more)
        return "ok", list(result) if isinstance(result, Iterator) else result
    except OrchestraError as error:
        return "error", (type(error).__name__, error.sentence)
