"""Everything the conductor's store can be asked to do, each a function of a cursor, gathered under one name."""

from orchestra.store.cancels import cancel, cancel_chosen, choose
from orchestra.store.claims import claim
from orchestra.store.facts import announce_facts, facts_of
from orchestra.store.history import last as last_event
from orchestra.store.history import of_all as all_events
from orchestra.store.holds import hold, holds, release
from orchestra.store.pauses import pause, resume
from orchestra.store.players import (
    announce,
    catalogue,
    catalogues_in_use,
    everybody_left,
    forgive,
    goodbye,
    hello,
    holders,
    player_catalogues,
    players,
    roster,
    seen,
    sync_players,
)
from orchestra.store.prune import give_back, prune, size
from orchestra.store.reports import alarm, save_pieces, settle, settle_all
from orchestra.store.reruns import again
from orchestra.store.standing import last_seen, open_runs, seen_players, waiting
from orchestra.store.submits import made_before, submit
from orchestra.store.sweeps import expire, give_up, next_expiry, open_due, strike_removed, sweep_removed
from orchestra.store.views import (
    ended,
    events,
    job_view,
    job_views,
    news,
    output_pieces,
    player_rows,
    task_views,
    totals,
)

__all__ = [
    "again",
    "alarm",
    "all_events",
    "announce",
    "announce_facts",
    "cancel",
    "cancel_chosen",
    "catalogue",
    "catalogues_in_use",
    "choose",
    "claim",
    "ended",
    "events",
    "everybody_left",
    "expire",
    "facts_of",
    "forgive",
    "give_back",
    "give_up",
    "goodbye",
    "hello",
    "hold",
    "holders",
    "holds",
    "job_view",
    "job_views",
    "last_event",
    "last_seen",
    "made_before",
    "news",
    "next_expiry",
    "open_due",
    "open_runs",
    "output_pieces",
    "pause",
    "player_catalogues",
    "player_rows",
    "players",
    "prune",
    "release",
    "resume",
    "roster",
    "save_pieces",
    "seen",
    "seen_players",
    "settle",
    "settle_all",
    "size",
    "strike_removed",
    "submit",
    "sweep_removed",
    "sync_players",
    "task_views",
    "totals",
    "waiting",
]
