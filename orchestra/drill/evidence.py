"""What the checker is given: everything that was seen of a drill, by those who asked, by the scores, by the machine."""

from msgspec import Struct

from orchestra.drill.ledger import DrillScore, Line
from orchestra.model import Ask, Event, JobView, TaskView


class Answer(Struct, frozen=True):
    """What a submit was answered."""

    job: int
    created: bool


class Request(Struct, frozen=True, kw_only=True):
    """A request for work, and what its asker was told. ``cancelled``: the asker tried to cancel it."""

    ask: Ask
    answers: tuple[Answer, ...] = ()
    unanswered: int = 0  # submits that were sent and never answered
    refusals: tuple[str, ...] = ()  # codes
    conflicts: tuple[str, ...] = ()  # codes of the refusals of other work under the same key; "" if it was accepted
    cancelled: bool = False


class Glance(Struct, frozen=True):
    """An outcome that was seen while the drill went on."""

    job: int
    task: int
    state: str


class Seen(Struct, frozen=True, kw_only=True):
    """All that the conductor says of a job. ``output``: by task, what is kept of its standard output."""

    job: JobView
    tasks: tuple[TaskView, ...]
    events: tuple[Event, ...]
    output: dict[int, bytes] = {}


class StageKill(Struct, frozen=True):
    """A stage was killed at some moment from ``at`` to ``by``, in milliseconds since 1970."""

    player: str
    at: int
    by: int


class Vitals(Struct, frozen=True, kw_only=True):
    """A process at one moment: kilobytes of memory, open descriptors, age in seconds."""

    role: str
    pid: int
    rss: int
    descriptors: int
    age: float


class Remains(Struct, frozen=True, kw_only=True):
    """What was still there when everything had ended, and what the daemons had grown to."""

    runs: tuple[str, ...] = ()  # processes of scores whose tasks all had their outcomes
    processes: tuple[str, ...] = ()  # processes of the drill after it had stopped everything
    files: tuple[str, ...] = ()
    own_ends: tuple[str, ...] = ()  # daemons that ended though nobody had ended them
    before: tuple[Vitals, ...] = ()
    third: tuple[Vitals, ...] = ()
    end: tuple[Vitals, ...] = ()


class Evidence(Struct, frozen=True, kw_only=True):
    """All of it. ``booted_at``: when the machine's uptime was 0, in milliseconds since 1970."""

    scores: dict[str, DrillScore]
    requests: tuple[Request, ...]
    ledger: tuple[Line, ...]
    glances: tuple[Glance, ...]
    looks: tuple[dict[int, Seen], ...]  # the last looks at every job; the conductor was restarted between them
    stage_kills: tuple[StageKill, ...] = ()
    complaints: tuple[str, ...] = ()  # of askers who got an answer that is none
    booted_at: int = 0
    troubled_disks: bool = False  # a full disk was among the faults: a run may be refused for that
    remains: Remains = Remains()
