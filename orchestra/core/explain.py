"""Why a task has not started, or not ended: one line for a person. Pure."""

from datetime import UTC, datetime

from msgspec import Struct

from orchestra import rolling
from orchestra.model import Held, Hold, JobView, Paused, TaskView


class Presence(Struct, frozen=True, kw_only=True):
    """A player, as far as it decides what its tasks wait for."""

    name: str
    online: bool
    since: int | None  # online since, or last seen; None: never seen
    removed: bool = False
    held: str = ""  # what was said when it, the score or everything was held
    note: str = ""  # why it takes no work
    room: int = 0
    open_of_score: int = 0
    limit_of_score: int = 0


def moment(at: int) -> str:
    """Milliseconds since 1970 as a person reads them."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def until(expires_at: int | None) -> str:
    """When a wait ends by itself."""
    return "never expires" if expires_at is None else f"expires {moment(expires_at)}"


def held(hold: Hold) -> str:
    """A hold in one line: what, since when, by whom and why."""
    what = {Held.EVERYTHING: "everything", Held.HOST: hold.name, Held.SCORE: f"the score {hold.name}"}[hold.kind]
    return f"{what} is held since {moment(hold.at)} by {hold.owner}: {hold.reason}"


def paused(by: Paused) -> str:
    """A pause in one line: since when, and by whom."""
    return f"the job is paused since {moment(by.at)} by {by.owner}"


def why_not_let_go(job: JobView, task: TaskView) -> str:
    """What a task waits for that may go to nobody yet, whoever is there; "" if that is not so."""
    gate = paused(job.paused) if job.paused else _gate(job, task)
    return f"waits: {gate}, {until(job.expires_at)}" if gate else ""


def _gate(job: JobView, task: TaskView) -> str:
    course = job.course
    if course is None:
        return ""
    if course.stopped:
        return f"about to be cancelled, {course.stopped}"
    if task.task < course.opened:
        return ""
    if not course.wave and course.next_at is not None and course.waves.max_failures is None:
        return f"the job begins {moment(course.next_at)}"
    wave = rolling.wave_of(course.waves, task.task)
    following = course.next_at is not None and wave == course.wave + 1
    begins = f"begins {moment(course.next_at or 0)}" if following else "has not begun"
    return f"its wave, {wave} of {rolling.how_many(course.waves)}, {begins}"


def why_waiting(player: Presence, score: str, expires_at: int | None) -> str:
    """What a pending task of ``player`` waits for."""
    return f"waits: {blocker(player, score) or 'about to be handed over'}, {until(expires_at)}"


def blocker(player: Presence, score: str) -> str:
    """The first thing that keeps a score from ``player``, or ""."""
    if player.removed:
        return f"{player.name} was removed from the players file"
    away = "" if player.online else _away(player.since)
    if player.held:
        return f"{player.held}; {away}" if away else player.held
    if away:
        return away
    if player.note:
        return f"{player.name} takes no work: {player.note}"
    if player.room <= 0:
        return f"{player.name} has as many runs as it takes"
    if player.limit_of_score and player.open_of_score >= player.limit_of_score:
        return f"{player.open_of_score} runs of {score} are ahead of it on {player.name}"
    return ""


def _away(since: int | None) -> str:
    return "never seen yet" if since is None else f"offline since {moment(since)}"


def why_waiting_for_one(
    online: int, expires_at: int | None, hold: str = "", some_held: bool = False, others: bool = False
) -> str:
    """What a task of one or some waits for that nobody was given yet; ``online``: players that are connected at all,
    ``hold``: why it may go to none of them, ``some_held``: some of them are given nothing; ``others``: the job has
    other tasks, each of which takes a candidate."""
    wanted = "online, not held," if some_held else "online"
    wanted = f"{wanted}{'' if some_held else ','} has no other task of this job" if others else wanted
    blocker = f"until one of its candidates is {wanted} and has a free slot" if online else "no player is online"
    blocker = hold or blocker
    return f"waits: {blocker}, {until(expires_at)}"


def why_unfinished(task: TaskView, player: Presence | None, started_at: int | None) -> str:
    """What a dispatched task is doing, as far as the conductor knows."""
    if player is None or task.player is None:
        return "handed over"
    doing = f"running since {moment(started_at)}" if started_at else "handed over, not known to have ended"
    if task.cancelling:
        doing += ", being cancelled"
    if task.reason:
        doing += f"; {task.reason}"
    if not player.online:
        seen = f"offline since {moment(player.since)}" if player.since is not None else "offline"
        doing += f"; {player.name} is {seen}: its outcome is told when it is back"
    return doing
