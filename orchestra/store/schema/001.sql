-- The conductor's store. Times are integer milliseconds of the store's clock, states are model.State.
-- Lock order everywhere: players, tasks, jobs, totals, each ascending.

CREATE TABLE meta (
    k TEXT NOT NULL PRIMARY KEY,
    v TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- How many tasks are pending, dispatched and held, so that nobody has to count a million of them.
CREATE TABLE totals (
    state INTEGER PRIMARY KEY,
    many  INTEGER NOT NULL
) STRICT;
INSERT INTO totals (state, many) VALUES (0, 0), (1, 0), (2, 0);

CREATE TABLE scores (
    score_id INTEGER PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE catalogues (
    digest TEXT NOT NULL PRIMARY KEY,
    scores INTEGER NOT NULL,            -- how many there are in body
    body   BLOB NOT NULL                -- msgpack of model.Catalogue
) STRICT;

-- What is not to be handed out: everything (name ''), a host, or a score. A handful of rows, read at every claim.
CREATE TABLE holds (
    kind      TEXT NOT NULL,                -- model.Held
    name      TEXT NOT NULL,
    reason    TEXT NOT NULL,
    at        INTEGER NOT NULL,
    owner     TEXT NOT NULL,
    uid       INTEGER NOT NULL,
    login_uid INTEGER,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- A row is never deleted and an id never used again: next_seq is a promise to the player's journal.
CREATE TABLE players (
    player_id   INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    epoch       INTEGER NOT NULL DEFAULT 0,
    owner       TEXT NOT NULL DEFAULT '',   -- the conductor that has its connection
    journal     TEXT NOT NULL DEFAULT '',
    next_seq    INTEGER NOT NULL DEFAULT 1,
    online_at   INTEGER,
    seen_at     INTEGER,
    disabled_at INTEGER,
    slots       INTEGER,
    version     TEXT NOT NULL DEFAULT '',
    address     TEXT NOT NULL DEFAULT '',
    note        TEXT NOT NULL DEFAULT '',
    catalogue   TEXT NOT NULL DEFAULT '',
    facts       TEXT NOT NULL DEFAULT ''    -- digest of its facts, "" while they are not known
) STRICT;
CREATE INDEX players_removed ON players (disabled_at) WHERE disabled_at IS NOT NULL;
CREATE INDEX players_by_catalogue ON players (catalogue);

-- Every journal id a player has come with; a retired one is refused.
CREATE TABLE journals (
    journal    TEXT NOT NULL,
    player_id  INTEGER NOT NULL,
    retired_at INTEGER,
    PRIMARY KEY (journal, player_id)
) STRICT, WITHOUT ROWID;

-- The row is small because it is rewritten with every batch of results; parameters live beside it.
CREATE TABLE jobs (
    job_id       INTEGER PRIMARY KEY AUTOINCREMENT,
    score_id     INTEGER NOT NULL,
    scope        TEXT NOT NULL,
    idempotent   INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    priority     INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    give_up_at   INTEGER,
    ended_at     INTEGER,
    last_event   INTEGER NOT NULL DEFAULT 0,
    held         INTEGER NOT NULL DEFAULT 0,
    pending      INTEGER NOT NULL DEFAULT 0,
    dispatched   INTEGER NOT NULL DEFAULT 0,
    ok           INTEGER NOT NULL DEFAULT 0,
    failed       INTEGER NOT NULL DEFAULT 0,
    killed       INTEGER NOT NULL DEFAULT 0,
    cancelled    INTEGER NOT NULL DEFAULT 0,
    expired      INTEGER NOT NULL DEFAULT 0,
    refused      INTEGER NOT NULL DEFAULT 0,
    lost         INTEGER NOT NULL DEFAULT 0,
    owner        TEXT NOT NULL,
    uid          INTEGER NOT NULL,
    login_uid    INTEGER,
    request_key  TEXT,
    dry_run      INTEGER NOT NULL DEFAULT 0,
    sealed       INTEGER NOT NULL DEFAULT 0,    -- whether secrets of it are kept, until it ends
    gated        INTEGER NOT NULL DEFAULT 0,    -- 1: it has a row in gates
    shut         INTEGER NOT NULL DEFAULT 0,    -- 1: nothing of it is handed out; what is found pending becomes held
    rerun_of     INTEGER
) STRICT;
CREATE INDEX jobs_rerun ON jobs (rerun_of) WHERE rerun_of IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (job_id) WHERE ended_at IS NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, job_id);
-- Their conditions name nothing that changes with every result, so that counting does not touch them.
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE ended_at IS NULL;
CREATE INDEX jobs_given_up ON jobs (give_up_at) WHERE ended_at IS NULL;

CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;

-- Jobs whose row was pruned, and of which other rows are left.
CREATE TABLE pruning (
    job_id INTEGER PRIMARY KEY
) STRICT;

-- Job ids that were passed over when this store was put back from a backup: somebody may have been told of them.
CREATE TABLE skipped (
    first   INTEGER PRIMARY KEY,
    last    INTEGER NOT NULL,
    at      INTEGER NOT NULL
) STRICT;

CREATE TABLE job_params (
    job_id INTEGER PRIMARY KEY,
    body   BLOB NOT NULL,                   -- JSON object
    secret BLOB,                            -- JSON array: the names of secret parameters
    sealed BLOB,                            -- their values, sealed; gone when the job has ended
    digest TEXT NOT NULL DEFAULT ''         -- of the only score that may run, if the job is pinned to one
) STRICT;

-- Outlives the job it points to.
CREATE TABLE request_keys (
    owner       TEXT NOT NULL,
    request_key TEXT NOT NULL,
    job_id      INTEGER NOT NULL,
    tasks       INTEGER NOT NULL,
    body_sha    BLOB NOT NULL,
    drop_at     INTEGER,
    PRIMARY KEY (owner, request_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_keys_dropped ON request_keys (drop_at) WHERE drop_at IS NOT NULL;

-- rank is minus the priority: what comes first is smallest. player_id is NULL while a one-of has no player; seq is 0
-- unless a player has the task or had it to the end. A statement that wants one task writes state+0 so that no
-- statistics can lure it away from the primary key.
CREATE TABLE tasks (
    job_id        INTEGER NOT NULL,
    n             INTEGER NOT NULL,
    player_id     INTEGER,
    score_id      INTEGER NOT NULL,
    rank          INTEGER NOT NULL,
    state         INTEGER NOT NULL DEFAULT 0,
    attempt       INTEGER NOT NULL DEFAULT 0,
    losses        INTEGER NOT NULL DEFAULT 0,
    seq           INTEGER NOT NULL DEFAULT 0,
    cancel        INTEGER NOT NULL DEFAULT 0,
    maybe_ran     INTEGER NOT NULL DEFAULT 0,
    dispatched_at INTEGER,
    changed_at    INTEGER,
    reason        TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, n)
) STRICT, WITHOUT ROWID;
-- state ends the key so that a scan need not look at the table to see what the index says anyway
CREATE INDEX tasks_pending ON tasks (player_id, rank, score_id, job_id, n, state) WHERE state = 0;
CREATE INDEX tasks_open ON tasks (player_id, seq, state) WHERE state = 1;
CREATE INDEX tasks_held ON tasks (player_id, job_id, n, state) WHERE state = 2;

-- Who may claim a one-of task: rows are there exactly while it is pending.
CREATE TABLE candidates (
    player_id INTEGER NOT NULL,
    rank      INTEGER NOT NULL,
    score_id  INTEGER NOT NULL,
    job_id    INTEGER NOT NULL,
    n         INTEGER NOT NULL,
    PRIMARY KEY (player_id, rank, score_id, job_id, n)
) STRICT, WITHOUT ROWID;

-- Its candidates that have not been struck, whatever its state.
CREATE TABLE choices (
    job_id  INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    players BLOB NOT NULL,                  -- msgpack of ascending player ids
    PRIMARY KEY (job_id, n)
) STRICT;

-- Insert only, and only when the task's compare-and-set hit.
CREATE TABLE results (
    job_id    INTEGER NOT NULL,
    n         INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    player_id INTEGER NOT NULL,
    told      TEXT NOT NULL,
    body      BLOB NOT NULL,                -- msgpack of model.Report
    PRIMARY KEY (job_id, n, attempt)
) STRICT;

CREATE TABLE outputs (
    job_id   INTEGER NOT NULL,
    n        INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    stream   INTEGER NOT NULL,
    position INTEGER NOT NULL,
    data     BLOB NOT NULL,
    PRIMARY KEY (job_id, n, attempt, stream, position)
) STRICT;

-- Insert only, numbered from 1 without a gap in each job.
CREATE TABLE events (
    job_id    INTEGER NOT NULL,
    n         INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    actor     TEXT NOT NULL,
    task      INTEGER,
    player_id INTEGER,
    detail    TEXT NOT NULL,
    seq       INTEGER NOT NULL,             -- its place among those of all jobs
    PRIMARY KEY (job_id, n)
) STRICT, WITHOUT ROWID;

-- Jobs that are not handed out whole and at once: they roll, begin later, or are paused. Tasks with n below opened may
-- be handed out, the others are held. due_at is when the sweep has to do with it: to open more, or to cancel more of
-- what was stopped. Everything of model.Waves is here.
CREATE TABLE gates (
    job_id       INTEGER PRIMARY KEY,
    tasks        INTEGER NOT NULL,
    batch        INTEGER NOT NULL,
    canary       INTEGER NOT NULL,
    max_failures INTEGER,
    pause        INTEGER NOT NULL,
    not_before   INTEGER,
    wave         INTEGER NOT NULL,
    opened       INTEGER NOT NULL,
    due_at       INTEGER,
    stopped      TEXT NOT NULL DEFAULT '',
    stopped_by   TEXT NOT NULL DEFAULT '',
    paused_at    INTEGER,
    paused_by    TEXT,
    paused_uid   INTEGER,
    paused_login INTEGER
) STRICT;
CREATE INDEX gates_due ON gates (due_at) WHERE due_at IS NOT NULL AND paused_at IS NULL;

-- What each transaction has written of each job: events first to last, by the seq of the last one. The newest row is
-- never deleted, so no seq is given twice.
CREATE TABLE changes (
    seq    INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL
) STRICT;

-- What is known of machines, as catalogues are: players of which the same is known share one.
CREATE TABLE facts (
    digest TEXT NOT NULL PRIMARY KEY,
    body   BLOB NOT NULL                    -- msgpack of model.Facts
) STRICT;
CREATE INDEX players_by_facts ON players (facts);
