"""Everything the conductor's store can be asked to do, each a function of a cursor, gathered under one name."""

from orchestra.store.claims import claim
from orchestra.store.players import (
    announce,
    catalogue,
    catalogues_in_use,
    everybody_left,
    forgive,
    goodbye,
    hello,
    player_catalogues,
    players,
    roster,
    seen,
    sync_players,
)
from orchestra.store.prune import give_back, prune, size
from orchestra.store.reports import save_pieces, settle
from orchestra.store.submits import cancel, submit
from orchestra.store.sweeps import expire, give_up, next_expiry, sweep_removed
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
    "announce",
    "cancel",
    "catalogue",
    "catalogues_in_use",
    "claim",
    "ended",
    "events",
    "everybody_left",
    "expire",
    "forgive",
    "give_back",
    "give_up",
    "goodbye",
    "hello",
    "job_view",
    "job_views",
    "news",
    "next_expiry",
    "output_pieces",
    "player_catalogues",
    "player_rows",
    "players",
    "prune",
    "roster",
    "save_pieces",
    "seen",
    "settle",
    "size",
    "submit",
    "sweep_removed",
    "sync_players",
    "task_views",
    "totals",
]
