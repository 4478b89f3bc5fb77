"""The scores a player has on disk: what it announces, and what it may start.

How one score is read and checked is the business of :mod:`orchestra.player.scorefile`. A bad score is left out with
its reason and the rest stay.
"""

import os
from collections.abc import Collection
from typing import NamedTuple

from orchestra.errors import NoSuchScore, UnfitScore
from orchestra.model import Catalogue, ParamEntry, RefusedScore, ScoreEntry
from orchestra.player.rules import unfit
from orchestra.player.scorefile import (
    ScoreFile,
    candidates,
    current,
    fit_directory,
    is_name,
    load,
    no_such_score,
)


class _Survey(NamedTuple):
    """What is on disk. A directory that may not be used is refused as a whole, by its own path."""

    scores: dict[str, ScoreFile]
    refused: dict[str, str]

    @property
    def catalogue(self) -> Catalogue:
        scores = tuple(map(_entry, self.scores.values()))
        refused = tuple(RefusedScore(name, reason) for name, reason in self.refused.items())
        return Catalogue.of(scores, refused)


class Repertoire:
    """The scores in ``directory``. What it announces changes with :meth:`reload` only; what it starts is always
    what the disk has now."""

    def __init__(self, directory: str, trusted_uids: Collection[int]) -> None:
        self.directory = directory
        self._trusted = frozenset(trusted_uids)
        self._announced = _Survey({}, {})
        self._newest: dict[str, ScoreFile] = {}
        self._catalogue = self._announced.catalogue

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue as of the last :meth:`reload`; equal directories give equal digests."""
        return self._catalogue

    def reload(self) -> tuple[str, ...]:
        """Read the directory again: a line for each change, then one for each score that is refused."""
        before, self._announced = self._announced, self._survey()
        self._catalogue = self._announced.catalogue
        return _changes(before, self._announced)

    def find(self, name: str) -> ScoreFile:
        """The score as it is on disk now; :class:`NoSuchScore` or :class:`UnfitScore` says why it may not start."""
        if not is_name(name):
            raise no_such_score(self.directory, name)
        return self._look(name)

    def changed_on_disk(self) -> bool:
        """Whether :meth:`reload` would change the catalogue. Reads only the files that have changed or are refused."""
        return self._survey().catalogue.digest != self._catalogue.digest

    def _look(self, name: str) -> ScoreFile:
        known = self._newest.pop(name, None)
        if known is None:
            score = load(self.directory, name, self._trusted)
        else:
            score = current(known, self.directory, self._trusted)
        self._newest[name] = score
        return score

    def _survey(self) -> _Survey:
        found = _Survey({}, {})
        try:
            fit_directory(self.directory, self._trusted)
            names = _list(self.directory)
        except UnfitScore as refusal:
            found.refused[self.directory] = refusal.sentence
            return found
        for name in names:
            try:
                found.scores[name] = self._look(name)
            except NoSuchScore:
                continue  # gone since the directory was listed
            except UnfitScore as refusal:
                found.refused[name] = refusal.sentence
        self._newest = dict(found.scores)
        return found


def _list(directory: str) -> list[str]:
    try:
        return candidates(directory)
    except OSError as problem:
        raise unfit(directory, f"cannot be listed: {os.strerror(problem.errno or 0)}") from None


def _entry(score: ScoreFile) -> ScoreEntry:
    rules = score.rules
    return ScoreEntry(
        name=score.name,
        digest=score.digest,
        description=rules.description,
        interface=rules.interface,
        timeout=rules.timeout,
        kill_grace=rules.kill_grace,
        concurrency=rules.concurrency,
        idempotent=rules.idempotent,
        max_attempts=rules.max_attempts,
        params=tuple(ParamEntry(*one) for one in rules.params),
        lock=rules.lock,
        hidden=rules.hidden,
        dry_run=rules.dry_run,
    )


def _changes(before: _Survey, now: _Survey) -> tuple[str, ...]:
    gone = (before.scores.keys() | before.refused.keys()) - now.scores.keys() - now.refused.keys()
    added = now.scores.keys() - before.scores.keys()
    changed = {
        name
        for name in now.scores.keys() & before.scores.keys()
        if now.scores[name].digest != before.scores[name].digest
    }
    said = {name: f"score '{name}' added" for name in added}
    said |= {name: f"score '{name}' changed" for name in changed}
    said |= {name: f"score '{name}' removed" for name in gone if is_name(name)}  # the directory is no score
    refused = (f"'{name}' refused: {reason}" for name, reason in sorted(now.refused.items()))
    return (*(said[name] for name in sorted(said)), *refused)
