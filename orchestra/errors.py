"""One small class per thing that can go wrong; its docstring is the sentence the user reads.

Standard library only: the stage imports this file too. A class names its ``code`` (stable, for programs)
and the exit ``status`` a command ends with. Errors that only one room raises live in that room's section.
"""

import re
from typing import ClassVar

EX_USAGE, EX_UNAVAILABLE, EX_SOFTWARE, EX_TEMPFAIL, EX_NOPERM, EX_CONFIG = 64, 69, 70, 75, 77, 78


class OrchestraError(Exception):
    """Something went wrong that has no better name."""

    status: ClassVar[int] = EX_SOFTWARE

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        super().__init__(self.sentence)

    @property
    def sentence(self) -> str:
        """What is wrong, where, and what to do: the docstring with the fields filled in."""
        text = " ".join((type(self).__doc__ or type(self).__name__).split())
        return text.format_map(self.fields)

    @property
    def code(self) -> str:
        """The class name in the form programs compare, ``NO_SUCH_JOB``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).upper()

    def __str__(self) -> str:
        return self.sentence


class UsageError(OrchestraError):
    """{problem}"""

    status = EX_USAGE


# Configuration


class ConfigError(OrchestraError):
    """{file}, line {line}: {key}: {problem}"""

    status = EX_CONFIG

    @property
    def sentence(self) -> str:
        """As ever, but a default or a command line option (line 0) stands on no line."""
        return super().sentence.replace(", line 0: ", ": ", 1)


class FileProblem(OrchestraError):
    """{file}: {problem}"""

    status = EX_CONFIG


# Settings


class LineProblem(OrchestraError):
    """{file}, line {line}: {problem}"""

    status = EX_CONFIG


# What the audience asks for


class BadRequest(OrchestraError):
    """{problem}"""

    status = EX_USAGE


class Unfit(BadRequest):
    """{problem}"""


class SecretInTheOpen(BadRequest):
    """Parameter '{name}' is secret, and a command line can be read by others: leave it out and be asked for it, or
    give it by '--params FILE'."""


class SecretsWanted(BadRequest):
    """Parameter {names} is secret and required: 'submitjob' asks for it at a terminal, or give it by
    '--params FILE'."""


class SecretsNotKept(SecretsWanted):
    """Parameter {names} of job {job} is secret, and its value was not kept: 'orchestra rerun' asks for it at a
    terminal, or give it by '--secrets FILE'."""


class SecretsUnknown(BadRequest):
    """No player has told of a score '{score}' yet, so nobody can say which of its parameters are secret; give those
    that are not as KEY=VALUE."""


class NoSuchJob(OrchestraError):
    """There is no job {job}; 'orchestra jobs' lists the ones that are kept."""

    status = EX_USAGE


class UnknownHosts(OrchestraError):
    """Not in the players file: {names}. Check the spelling with 'orchestra players', or add them to the
    players file and run 'orchestra reload'."""

    status = EX_USAGE


class UnknownGroup(OrchestraError):
    """There is no group '@{name}'; {hint} Groups are named in the conductor's groups file."""

    status = EX_USAGE


class NoTargetLeft(OrchestraError):
    """No target is left: {why}. Nothing was asked for."""

    status = EX_USAGE


class BadWhere(OrchestraError):
    """--where cannot be understood: {problem}."""

    status = EX_USAGE


class Undecided(OrchestraError):
    """Nobody can know of {many} of {all} targets whether --where is true: {who}. Nothing is matched by not knowing;
    --exclude leaves them out, and 'orchestra players HOST' shows what is known of one.{hint}"""

    status = EX_USAGE


class PlanChanged(OrchestraError):
    """This is not what was planned: {what}. Look at it again with --plan; nothing was asked for."""

    status = EX_USAGE


class UnknownScore(OrchestraError):
    """None of the targets has a score named '{score}'; 'orchestra scores' lists what they have."""

    status = EX_USAGE


class ScoreNotRun(OrchestraError):
    """None of the targets runs the score '{score}'; {player} says why: {reason}"""

    status = EX_USAGE


class NotPinned(OrchestraError):
    """'{score}' cannot be pinned, for not all targets are known to have one and the same: {who}. Bring them to one
    version, choose other targets, or leave the pin out."""

    status = EX_USAGE


class NoSuchScoreAnywhere(OrchestraError):
    """No player has a score named '{score}'; 'orchestra scores' lists what they have."""

    status = EX_USAGE


class JobPruned(NoSuchJob):
    """Job {job} has ended, and was pruned: ended jobs stay for as long as 'keep', and while the store is not larger
    than 'keep_size', in conductor.conf."""


class JobSkipped(NoSuchJob):
    """There is no job {job} in this store, which was put back from a backup on {day}; jobs that were accepted after
    that backup was made are not known any more."""


class JobOver(OrchestraError):
    """Job {job} {problem}; there is nothing to pause or to resume."""

    status = EX_USAGE


class NoSuchEvent(OrchestraError):
    """Event {seq} is not known here, the newest is {last}: was the conductor's store put back to an earlier state?"""

    status = EX_USAGE


class NothingToRerun(OrchestraError):
    """Nothing of job {job} has ended as {only}: it has {counts}."""

    status = EX_USAGE


class TooManyRemoved(OrchestraError):
    """{file} would remove {many} of {all} players ({some}), and {limit}. Mend the file; or if that is meant, run
    'orchestra reload --accept-removals {many}'."""

    status = EX_CONFIG


class RequestKeyConflict(OrchestraError):
    """The request key '{key}' was already used for job {job}, which asked for something else; choose
    another key for a new request."""

    status = EX_USAGE


class Denied(OrchestraError):
    """{who} may not use this conductor; ask its operator for membership in the group {group}."""

    status = EX_NOPERM


class OwnerOnly(OrchestraError):
    """{who} may not do that: only root and the {daemon}'s own user may."""

    status = EX_NOPERM


class NoConductor(OrchestraError):
    """No conductor answers at {socket}: {problem}. Is it running? 'systemctl status orchestra-conductor'
    or its log file tells."""

    status = EX_UNAVAILABLE


class NotSaved(OrchestraError):
    """It could not be saved and was not done: {problem}. Try again when that is mended."""

    status = EX_TEMPFAIL


class DiskNearlyFull(OrchestraError):
    """The conductor accepts nothing new for now: {problem}. Try again then."""

    status = EX_TEMPFAIL


class InternalError(OrchestraError):
    """This is a bug in Orchestra; the daemon's log has it under the number {number}."""

    status = EX_SOFTWARE


# Daemons


class AlreadyRunning(OrchestraError):
    """Another {what} is already using {path}; stop it first, or give this one its own directory."""

    status = EX_CONFIG


class Superseded(OrchestraError):
    """The session of {player} with epoch {epoch} is not the newest one."""


class StoreFailed(OrchestraError):
    """The disk under {path} failed: {problem}. The daemon stops, so that nothing is said that is not saved."""


# Scores


class UnfitScore(OrchestraError):
    """{path}: {reason}"""

    status = EX_CONFIG


class NoSuchScore(UnfitScore):
    """This player has no score named '{score}'."""

    status = EX_USAGE


# Security


class WrongCertificate(OrchestraError):
    """The certificate of {whose} cannot be used: {problem}"""

    status = EX_CONFIG


class BadCredentials(FileProblem):
    """{file} (configuration key '{key}'): {problem}"""


class AuthorityExists(OrchestraError):
    """{directory} already holds a certificate authority, '{name}'; a new one would make every certificate that
    it issued worthless. Give the new one its own --dir, or keep using this one."""

    status = EX_USAGE


class NoAuthority(OrchestraError):
    """There is no certificate authority in {directory}: {problem}. 'orchestra ca init --dir {directory}' makes one."""

    status = EX_CONFIG


class DamagedLedger(OrchestraError):
    """{file}, line {line}: {problem}. Mend that line by hand or bring the file back from a backup; nothing was
    issued or revoked."""

    status = EX_CONFIG


class NotIssued(OrchestraError):
    """No certificate for '{name}' that could be revoked; 'orchestra ca show' lists what was issued."""

    status = EX_USAGE


# Audience: the seats, the client and the command line


class Refusal(OrchestraError):
    """{sentence}"""

    @property
    def code(self) -> str:
        return str(self.fields["code"])


class Unanswered(OrchestraError):
    """The conductor went away before it answered {what}, which may or may not have been done; look with
    'orchestra jobs', or ask again: with the same request key nothing is done twice."""

    status = EX_TEMPFAIL


class NoPlayer(OrchestraError):
    """No player answers at {socket}: {problem}. Is it running? 'systemctl status orchestra-player' or its log
    file tells."""

    status = EX_UNAVAILABLE


class NotAsked(OrchestraError):
    """This would cancel {what}. Without a terminal nobody can be asked: say --yes if that is meant; nothing was
    cancelled."""

    status = EX_USAGE


class PlayerAway(OrchestraError):
    """No player answers at {socket}: {problem}. But its stage at {stage} is up: what runs there goes on, its timeouts
    are kept, and its outcomes are told when the player is back. Start the player ('systemctl start orchestra-player'),
    or end all that runs here with 'systemctl stop orchestra-stage'."""

    status = EX_UNAVAILABLE


class NoSuchRun(OrchestraError):
    """Run {seq} is not running here, {problem}; 'orchestra player status' lists what is."""

    status = EX_USAGE


class Unreadable(OrchestraError):
    """The conductor's answer to {what} cannot be read, {problem}; conductor and command are of different releases."""


class TooMany(OrchestraError):
    """{who} has {limit} {what} open, which is the limit; close some and try again."""

    status = EX_TEMPFAIL


class GaveUpWaiting(OrchestraError):
    """Job {job} has not ended yet and goes on; 'getstatus {job}' shows where it stands, 'orchestra wait {job}'
    waits again."""

    status = 13


# Store


class NotAPlayer(OrchestraError):
    """{player} is not, or no longer, in the conductor's players file."""


class RetiredJournal(OrchestraError):
    """{player} has come with another journal since: a second player has this name and certificate, or its state
    directory was lost or put back. This one, journal {journal}, is turned away. If it is the right one, stop the other
    and run 'orchestra player forgive {player}' on the conductor."""


class Unconfirmed(OrchestraError):
    """{player} came with a new journal, and has yet to show that it is there."""


class SchemaTooNew(OrchestraError):
    """{path} was written by a newer Orchestra (its schema is {found}, this one knows up to {known}); install that
    version again, or put back the backup that its upgrade left beside it."""

    status = EX_CONFIG


class StoreUnreadable(OrchestraError):
    """{path} cannot be used: {problem}."""

    status = EX_CONFIG


class BackupExists(OrchestraError):
    """{file} exists already, and a backup overwrites nothing; choose another name."""

    status = EX_USAGE


class BackupFailed(OrchestraError):
    """No backup was made at {file}: {problem}."""

    status = EX_TEMPFAIL


class BackupUnusable(OrchestraError):
    """{file} cannot be restored: {problem}. The store is as it was."""

    status = EX_CONFIG


class StoreDamaged(StoreUnreadable):
    """{path} is damaged: {problem}. It was not touched. See what is wrong with the disk; then 'orchestra restore
    BACKUP' puts a backup in its place, and keeps this one aside."""


class DiskRefuses(StoreUnreadable):
    """{path} cannot be used now: {problem}. Make room on that disk, or mend it, and start again; nothing is lost."""

    status = EX_TEMPFAIL


# Stage


class NoStage(OrchestraError):
    """No stage answers at {socket}: {problem}."""

    status = EX_UNAVAILABLE


class StageNotStarted(OrchestraError):
    """The stage did not start: {problem}"""

    status = EX_CONFIG


class ScoreUserMissing(OrchestraError):
    """The stage runs as root and nobody has said as whom scores are to run; write score_user in player.conf, be it
    root."""

    status = EX_CONFIG


class NotStarted(OrchestraError):
    """{reason}"""


class OutputGone(OrchestraError):
    """The stage does not have that part of the output of run {seq}."""


# Measuring


class BenchFailed(OrchestraError):
    """The benchmark's case '{case}' has failed, so its figures are worth nothing: {problem}"""
