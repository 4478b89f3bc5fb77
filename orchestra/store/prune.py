"""What goes when it is old or the store is large: ended jobs, the oldest first, a bounded number of rows at a time.

A job's own row goes first, so that nobody sees half of one, and ``pruning`` remembers that the rest is to follow.
What has not ended is never touched. A request key outlives its job.
"""

from sqlite3 import Cursor
from typing import Final

from orchestra.store.values import Pruned

ROWS: Final = 2_000  # in one transaction
LONGER: Final = 10  # times as long as others a row of output is, at least
PAGES: Final = 1_000  # given back to the disk in one transaction
SLACK: Final = 256  # pages that are kept: the next job needs some
KEYS_OUTLIVE: Final = 30 * 86_400_000  # milliseconds from a job's pruning to its request key's

_PARTS: Final = (
    "DELETE FROM outputs WHERE rowid IN (SELECT rowid FROM outputs WHERE job_id = ? LIMIT ?)",
    "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results WHERE job_id = ? LIMIT ?)",
    "DELETE FROM choices WHERE rowid IN (SELECT rowid FROM choices WHERE job_id = ? LIMIT ?)",
    "DELETE FROM tasks WHERE job_id = ?1 AND n IN (SELECT n FROM tasks WHERE job_id = ?1 LIMIT ?2)",
    # by way of the events that go next: these have no index on the job
    (
        "DELETE FROM changes WHERE seq IN (SELECT seq FROM events WHERE job_id = ?1 ORDER BY n LIMIT ?2) "
        "AND seq < (SELECT max(seq) FROM changes)"
    ),
    "DELETE FROM events WHERE job_id = ?1 AND n IN (SELECT n FROM events WHERE job_id = ?1 ORDER BY n LIMIT ?2)",
)
_OLDEST: Final = "SELECT job_id FROM jobs WHERE ended_at IS NOT NULL AND ended_at <= ? ORDER BY ended_at LIMIT 1"
_NEXT_WITH_OUTPUT: Final = (
    "SELECT o.job_id, (SELECT ended_at FROM jobs WHERE jobs.job_id = o.job_id) FROM outputs o "
    "WHERE o.job_id > ? ORDER BY o.job_id LIMIT 1"
)
_EVER: Final = (1 << 62) - 1
_SIZES: Final = ("page_count", "freelist_count", "page_size")


def prune(cur: Cursor, now: int, keep: int | None, keep_size: int, rows: int = ROWS) -> Pruned:
    """One step: finish what was begun; then what ended more than ``keep`` milliseconds ago; then, if the store is still
    larger than ``keep_size``, the output of its oldest ended job that has any, or else the oldest ended job."""
    keys = _drop_keys(cur, now, rows)
    left, jobs, outputs = _finish(cur, rows), 0, 0
    if keep is not None:
        left, jobs = _jobs(cur, now, now - keep, left)
    if left == rows and size(cur) > keep_size:
        outputs = _outputs(cur, max(rows // LONGER, 1))
        left -= outputs
        oldest = None if outputs else _ended_before(cur, _EVER)
        if oldest is not None:  # one at a time: each may have been the one too many
            _begin(cur, oldest, now)
            left, jobs = _finish(cur, left - 1), 1
    return Pruned(jobs=jobs, outputs=outputs, more=left < rows or keys == rows)


def size(cur: Cursor) -> int:
    """The bytes that hold something."""
    pages, unused, each = (cur.execute(f"PRAGMA {what}").fetchone()[0] for what in _SIZES)
    return int((pages - unused) * each)


def give_back(cur: Cursor, pages: int = PAGES) -> bool:
    """Let the disk have some of the pages that hold nothing; whether there are more."""
    unused: int = cur.execute("PRAGMA freelist_count").fetchone()[0]
    if unused <= SLACK:
        return False
    for _ in range(min(pages, unused - SLACK)):
        cur.execute("PRAGMA incremental_vacuum(1)")  # Python's module steps such a statement once, so to a page
    return unused - pages > SLACK


def _drop_keys(cur: Cursor, now: int, rows: int) -> int:
    return cur.execute(
        "DELETE FROM request_keys WHERE (owner, request_key) IN "
        "(SELECT owner, request_key FROM request_keys WHERE drop_at <= ? LIMIT ?)",
        (now, rows),
    ).rowcount


def _jobs(cur: Cursor, now: int, before: int, left: int) -> tuple[int, int]:
    """Prune jobs while ``left`` rows may go; how many rows still may, and how many jobs went."""
    jobs = 0
    while left > 0 and (job := _ended_before(cur, before)) is not None:
        _begin(cur, job, now)
        left, jobs = _finish(cur, left - 1), jobs + 1
    return left, jobs


def _ended_before(cur: Cursor, at: int) -> int | None:
    row = cur.execute(_OLDEST, (at,)).fetchone()
    return None if row is None else int(row[0])


def _begin(cur: Cursor, job: int, now: int) -> None:
    owner, key = cur.execute("SELECT owner, request_key FROM jobs WHERE job_id = ?", (job,)).fetchone()
    if key is not None:
        where = (now + KEYS_OUTLIVE, owner, key, job)
        cur.execute("UPDATE request_keys SET drop_at = ? WHERE owner = ? AND request_key = ? AND job_id = ?", where)
    cur.execute("DELETE FROM jobs WHERE job_id = ?", (job,))
    cur.execute("DELETE FROM job_params WHERE job_id = ?", (job,))
    cur.execute("DELETE FROM gates WHERE job_id = ?", (job,))
    cur.execute("INSERT INTO pruning (job_id) VALUES (?)", (job,))


def _finish(cur: Cursor, left: int) -> int:
    """Remove what is left of jobs whose row is gone, ``left`` rows at most; how many more may go."""
    for (job,) in cur.execute("SELECT job_id FROM pruning ORDER BY job_id").fetchall():
        for part in _PARTS:
            if left <= 0:
                return 0
            left -= cur.execute(part, (job, left)).rowcount
        if left <= 0:
            return 0
        cur.execute("DELETE FROM pruning WHERE job_id = ?", (job,))
    return left


def _outputs(cur: Cursor, rows: int) -> int:
    """Remove the output of the oldest ended job that has any; how many rows went."""
    job = 0
    while (row := cur.execute(_NEXT_WITH_OUTPUT, (job,)).fetchone()) is not None:
        job, ended_at = row
        if ended_at is not None:
            return cur.execute(_PARTS[0], (job, rows)).rowcount
    return 0
