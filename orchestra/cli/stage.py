"""``orchestra stage``: becomes the stage that this machine's player.conf describes. Made for its systemd unit."""

import os
import pwd
import sys

import click

from orchestra import settings
from orchestra.cli.session import CONFIG_DIR, SETTINGS
from orchestra.errors import UsageError


@click.command(context_settings=SETTINGS)
@click.option(
    "--config", "config_dir", metavar="DIR", default=CONFIG_DIR, show_default=True, help="Where player.conf is."
)
@click.option("--dir", "directory", metavar="DIR", help="Where outcomes are kept.  [default: player.conf's stage_dir]")
@click.option(
    "--player-user", metavar="NAME", help="The player's user, the only one heard beside root.  [default: ours]"
)
def stage(config_dir: str, directory: str | None, player_user: str | None) -> None:
    """Be the stage: run scores for the player, as player.conf says. It stays in the foreground and logs to stderr."""
    from orchestra.player.backstage import stage_command
    from orchestra.player.launch import is_user

    chosen = settings.player(config_dir)
    if chosen.score_user and not is_user(chosen.score_user):
        problem = f"this machine has no user '{chosen.score_user}'"
        raise settings.misfit(config_dir, "player.conf", "score_user", problem)
    chosen = chosen._replace(stage_dir=os.path.abspath(directory)) if directory else chosen
    command = stage_command(sys.executable, chosen, _uid(player_user) if player_user else os.geteuid())
    os.execv(command[0], command)


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(problem=f"--player-user: this machine has no user '{name}'") from None
