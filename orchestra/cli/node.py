"""``orchestra player``: what concerns one player; on its own node it needs neither network nor conductor."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import click

from orchestra.audience.node import Idle, Node, NodeRun, NodeStatus, Reach, StageSeen
from orchestra.cli.printing import lasted, print_json, safe, say, table, tell, when
from orchestra.cli.session import (
    CONFIG_DIR,
    SETTINGS,
    Whole,
    as_json,
    conductor_socket,
    player_socket,
    reaching,
    talk,
    talk_to_player,
)
from orchestra.errors import UsageError

AT_A_TIME = 20.0  # seconds that one question waits

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@click.group("player", context_settings=SETTINGS)
def player() -> None:
    """What concerns one player. All but forgive is for its own node, without conductor or network."""


def on_site(command: F) -> F:
    """The options that say where this machine's player is."""
    socket = click.option("--socket", metavar="PATH", help="The player's socket, if player.conf does not say.")
    directory = click.option(
        "--config",
        envvar="ORCHESTRA_CONFIG",
        metavar="DIR",
        default=CONFIG_DIR,
        help=f"Where player.conf is. [env: ORCHESTRA_CONFIG; {CONFIG_DIR}]",
    )
    return socket(directory(command))


def ask(socket: str | None, config: str, work: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
    """What ``work`` returns when given this machine's player."""
    return talk_to_player(player_socket(socket, config), config, lambda seat: work(Node(seat)))


@player.command("forgive", context_settings=SETTINGS)
@click.argument("name", metavar="HOST")
@reaching
def forgive(name: str, socket: str | None, config: str) -> int:
    """Accept HOST with a journal that a newer one had replaced. What was open with either stays lost."""
    many = talk(conductor_socket(socket, config), lambda conductor: conductor.forgive(name))
    say(f"{name}: {many} retired {'journal is' if many == 1 else 'journals are'} accepted again")
    if many:
        tell("the player is back at its next try, within five minutes, or at once when it is restarted")
    return 0


# ---- status


@player.command("status", context_settings=SETTINGS)
@as_json
@on_site
def status(as_json: bool, socket: str | None, config: str) -> int:
    """What runs here, what the conductor has yet to be told, and whom the player can reach."""
    found = ask(socket, config, lambda node: node.status())
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: NodeStatus) -> None:
    say(f"player {safe(found.name)} {safe(found.version)}, {found.slots} slots")
    say(f"conductor: {_reach(found.reach)}")
    say(f"stage: {_stage(found.stage)}")
    if found.drained is not None:
        because = f": {safe(found.drained.reason)}" if found.drained.reason else ""
        say(f"drained on {when(found.drained.at)} by {safe(found.drained.by)}{because}; 'undrain' takes work again")
    if found.trouble:
        say(f"takes no work: {safe(found.trouble)}")
    say(f"outcomes that the conductor has yet to take: {found.unacknowledged}")
    for one in found.outcomes:
        say(f"  run {one.seq}, job {one.job}: {one.told}{' - ' + safe(one.reason) if one.reason else ''}")
    if found.runs:
        table(("RUN", "JOB", "TASK", "SCORE", "STATE", "PID", "SINCE", "TIMEOUT IN"), [_row(run) for run in found.runs])
    else:
        say("nothing runs")
    for run in found.runs:
        if run.alarm:
            say(f"run {run.seq}: {safe(run.alarm)}")


def _reach(reach: Reach) -> str:
    if reach.since is not None:
        return f"{safe(reach.conductor)}, connected since {when(reach.since)}"
    again = "" if reach.next_try is None else f"; next try in {reach.next_try:.1f} s"
    return f"not connected to {safe(reach.conductor)}: {safe(reach.problem)}{again}"


def _stage(stage: StageSeen) -> str:
    if stage.problem:
        return f"not there: {safe(stage.problem)}"
    return f"{safe(stage.version)}, pid {stage.pid}, at {safe(stage.socket)}"


def _row(run: NodeRun) -> Sequence[str]:
    left = "" if run.left is None else lasted(run.left)
    pid = "" if run.pid is None else str(run.pid)
    return str(run.seq), str(run.job), str(run.task), run.score, run.state, pid, when(run.since), left


# ---- drain


@player.command("drain", context_settings=SETTINGS)
@click.option("--reason", default="", metavar="TEXT", help="Why, for 'orchestra players' on the conductor.")
@click.option("--wait", is_flag=True, help="Return when nothing runs any more.")
@as_json
@on_site
def drain(reason: str, wait: bool, as_json: bool, socket: str | None, config: str) -> int:
    """Have this machine's player take no more work, also after a restart, until 'undrain'.

    What runs goes on. What it had accepted and not started goes back to the conductor: work that any host may do goes
    to another one, the rest waits for this player.
    """
    if not reason.isprintable():
        raise UsageError(problem="--reason: one line, please")

    async def work(node: Node) -> Idle:
        found = await node.drain(reason)
        while wait and found.running:
            tell(f"{_runs(found.running)} still going on")
            found = await node.idle(AT_A_TIME)
        return found

    done = ask(socket, config, work)
    if as_json:
        print_json(done)
    else:
        say("drained; nothing runs" if not done.running else f"drained; {_runs(done.running)} still going on")
    return 0


@player.command("undrain", context_settings=SETTINGS)
@on_site
def undrain(socket: str | None, config: str) -> int:
    """Have this machine's player take work again."""
    was = ask(socket, config, lambda node: node.undrain())
    say("takes work again" if was else "it was not drained")
    return 0


# ---- kill


@player.command("kill", context_settings=SETTINGS)
@click.argument("seqs", nargs=-1, metavar="[RUN…]", type=Whole(1))
@click.option("--all", "everything", is_flag=True, help="All that runs.")
@as_json
@on_site
def kill(seqs: tuple[int, ...], everything: bool, as_json: bool, socket: str | None, config: str) -> int:
    """End RUNs on this machine now: SIGTERM, their grace, SIGKILL. 'orchestra player status' has their numbers.

    The conductor is told that they were killed, and by whom. What waits for a slot is not touched, and starts in their
    place unless the player is drained.
    """
    if bool(seqs) == everything:
        raise UsageError(problem="name runs by their numbers, or say --all")
    done = ask(socket, config, lambda node: node.kill(None if everything else seqs))
    if as_json:
        print_json(done)
        return 0
    say("nothing runs" if not done.seqs else f"being ended: {', '.join(map(str, done.seqs))}")
    if done.waiting:
        tell(f"{_runs(done.waiting)} waiting for a slot will start; 'orchestra player drain' sends them back")
    return 0


def _runs(many: int) -> str:
    return "1 run is" if many == 1 else f"{many} runs are"
