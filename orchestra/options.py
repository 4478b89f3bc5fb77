"""The command lines of ``twistd conductor`` and ``twistd player``: every key is an option, and what is wrong is said.

A daemon that cannot start for a reason its operator can mend says the sentence on stderr and exits with that
error's status (78 for configuration, which systemd's RestartPreventExitStatus= knows).
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from twisted.python import usage

from orchestra import logs, settings
from orchestra.config import COMMAND_LINE, Key
from orchestra.errors import ConfigError, FileProblem, OrchestraError


def refuse(problem: OrchestraError) -> NoReturn:
    """Say why the daemon does not start, and exit."""
    print(problem.sentence, file=sys.__stderr__)
    raise SystemExit(problem.status)


def stop_failing(reactor: Any, status: int) -> None:
    """Stop the daemon in good order, and let its supervisor know that it failed."""
    # past twistd's own exit, which knows no status; a pidfile that stays behind names no living process
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, status)
    reactor.stop()


class DaemonOptions(usage.Options):
    """``--config DIR``, ``-help`` for older hands, and a log that twistd bounds as the settings say."""

    file: ClassVar[str]
    declared: ClassVar[Sequence[Key]]
    optParameters: ClassVar[list[Any]] = [["config", None, settings.CONFIG_DIR, "The configuration directory."]]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        words = settings.arguments(sys.argv[1:] if options is None else options, self.declared)
        try:
            super().parseOptions(words)  # type: ignore[no-untyped-call]  # Twisted's
        except usage.UsageError as problem:
            refuse(FileProblem(file=COMMAND_LINE, problem=f"{problem} (--help lists what is)"))

    def parseArgs(self, *extra: str) -> None:
        if extra:
            raise usage.UsageError(f"'{extra[0]}' is not understood here; a setting is written --KEY=VALUE")

    def postOptions(self) -> None:
        self["config"] = os.path.abspath(self["config"])  # before twistd goes to another directory
        try:
            chosen = self.read()
        except OrchestraError as problem:
            refuse(problem)
        if self.parent is not None:
            logs.install(self.parent, chosen.log_format, chosen.log_size, chosen.log_files)

    def read(self) -> Any:
        """The settings as they stand on disk now, with this command line; an OrchestraError says what is wrong."""
        raise NotImplementedError

    def wrong(self, key: str, problem: str) -> ConfigError:
        """What this machine has against a setting, with the place where it was made."""
        if key in settings.overrides(self, self.declared):
            return ConfigError(file=COMMAND_LINE, line=0, key=key, problem=problem)
        return settings.misfit(self["config"], self.file, key, problem)


class ConductorOptions(DaemonOptions):
    """The command line of ``twistd conductor``."""

    file = "conductor.conf"
    declared = settings.CONDUCTOR
    optParameters = settings.usage_options(declared)

    def read(self) -> settings.ConductorSettings:
        return settings.conductor(self["config"], settings.overrides(self, self.declared))


class PlayerOptions(DaemonOptions):
    """The command line of ``twistd player``."""

    file = "player.conf"
    declared = settings.PLAYER
    optParameters = settings.usage_options(declared)

    def read(self) -> settings.PlayerSettings:
        return settings.player(self["config"], settings.overrides(self, self.declared))
