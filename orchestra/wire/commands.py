"""What conductor and player say to each other. Change this drawing first.

AMP over TLS 1.3, both certificates verified, one connection per player, opened by the player. **The AMP answer is
the acknowledgement**: it leaves when the effect is on disk, and carries nothing. What was not answered is settled
at the next Welcome; nothing is queued for retry elsewhere. ::

    player                                              conductor
      Hello                                        ->     the player's row: epoch + 1, owner = me
                                                   <-     Welcome(epoch, next_seq, spread, open runs, wanted)
      settles its journal against them; answers    ->     before this answer nothing is claimed for this player
      Announce(catalogue)                          ->     only when wanted, and again when it changes
      Report([unacknowledged outcomes])            ->     compare-and-set, committed; the answer is "forget them"
                                                   <-     Perform(epoch, [runs])
      accepted, on disk; answers                   ->
      Output([piece])                              ->     kept output over 8 kB goes ahead of its Report
      Report([outcome])                            ->     committed; answers
      Progress([started])                          ->     best effort, no answer
                                                   <-     Cancel([seq]); the answer is "settled, or being killed"
      Beat(epoch) every 30 s                       ->     who misses three is left
                                                   <-     Beat(0), when a Hello has a new journal: is anybody there?
                                                   <-     Dismiss(reason, retry_after)

A command's payload is one msgpack value, in the field ``d`` (at most 48 kB); a longer one is several boxes with
``more`` set on all but the last, joined by the receiver, at most 1 MiB. The one declared error is ``NOT_SAVED``:
the sender keeps what it said and says it again later. Anything else is a bug or an enemy, and ends the connection.
"""

from typing import Any, Final

from msgspec import Struct

from orchestra import model


class Dismissal(Struct, frozen=True, array_like=True):
    """Why the conductor will not talk on, and after how many seconds to try again."""

    reason: str
    retry_after: float


class Command(Struct, frozen=True):
    """A word of the protocol: its name on the wire, and the type of its payload."""

    name: bytes
    payload: Any
    answered: bool = True


HELLO: Final = Command(b"hello", model.Hello)
WELCOME: Final = Command(b"welcome", model.Welcome)
ANNOUNCE: Final = Command(b"announce", model.Announce)
PERFORM: Final = Command(b"perform", model.Perform)
OUTPUT: Final = Command(b"output", list[model.Piece])
REPORT: Final = Command(b"report", list[model.Report])
PROGRESS: Final = Command(b"progress", list[model.Started], answered=False)
CANCEL: Final = Command(b"cancel", list[int])
BEAT: Final = Command(b"beat", int)
DISMISS: Final = Command(b"dismiss", Dismissal, answered=False)

TO_CONDUCTOR: Final = (HELLO, ANNOUNCE, OUTPUT, REPORT, PROGRESS, BEAT)
TO_PLAYER: Final = (WELCOME, PERFORM, CANCEL, BEAT, DISMISS)

NOT_SAVED: Final = b"NOT_SAVED"
"""The declared error: the receiver could not save it (its disk is full, say) and has done nothing."""
