"""Who a job is to be run on once more: the hosts on which it ended in a certain way."""

from collections.abc import Sequence
from sqlite3 import Cursor
from typing import Final

from orchestra.model import Scope, State
from orchestra.store import moves, pools
from orchestra.store.values import Again
from orchestra.store.views import job_view

_ALL: Final = (
    "SELECT p.name FROM tasks t JOIN players p ON p.player_id = t.player_id "
    "WHERE t.job_id = ? AND t.state + 0 IN ({marks}) ORDER BY t.n"
)
_REFUSED: Final = "SELECT player_id FROM results WHERE job_id = ? AND n = ? AND told = 'refused'"


def again(cur: Cursor, job: int, states: Sequence[State]) -> Again:
    """A job, and the hosts of those tasks of it that ended so. Of a job for one or some of its targets, all that could
    have been given those tasks: who was not struck and has no other task of it, and who refused one of these."""
    view = job_view(cur, job)
    marks = ", ".join("?" * len(states))
    if view.scope == Scope.ALL:
        names = [name for (name,) in cur.execute(_ALL.format(marks=marks), (job, *states))]
        return Again(view, tuple(names))
    chosen = moves.rows(cur, f"job_id = ? AND state + 0 IN ({marks}) ORDER BY n", (job, *states))
    others = moves.rows(cur, f"job_id = ? AND state + 0 NOT IN ({marks})", (job, *states))
    players = set(pools.members(cur, job) if chosen else ()).difference(task.player for task in others)
    for task in chosen:
        players.update(player for (player,) in cur.execute(_REFUSED, (job, task.n)))
    return Again(view, tuple(sorted(_name(cur, player) for player in players)), len(chosen))


def _name(cur: Cursor, player: int) -> str:
    return str(cur.execute("SELECT name FROM players WHERE player_id = ?", (player,)).fetchone()[0])
