-- A postgresql store as services made it before there were migrations, with a row or two in most tables.
CREATE TABLE audit (
    id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    event VARCHAR NOT NULL,
    details JSON,
    PRIMARY KEY (id)
);
CREATE INDEX ix_audit_created_at ON audit (created_at);
CREATE INDEX ix_audit_owner ON audit (owner);
CREATE TABLE checkpoints (
    path VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    base_model VARCHAR NOT NULL,
    rank INTEGER NOT NULL,
    alpha FLOAT NOT NULL,
    train_attn BOOLEAN NOT NULL,
    train_mlp BOOLEAN NOT NULL,
    train_unembed BOOLEAN NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    public BOOLEAN NOT NULL,
    user_metadata JSON,
    PRIMARY KEY (path)
);
CREATE INDEX ix_checkpoints_created_at ON checkpoints (created_at);
CREATE INDEX ix_checkpoints_expires_at ON checkpoints (expires_at);
CREATE INDEX ix_checkpoints_owner ON checkpoints (owner);
CREATE INDEX ix_checkpoints_run_id ON checkpoints (run_id);
CREATE TABLE completion_queues (
    name VARCHAR NOT NULL,
    last_event BIGINT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE completions (
    request_id VARCHAR NOT NULL,
    queue VARCHAR NOT NULL,
    event BIGINT NOT NULL,
    owner VARCHAR NOT NULL,
    payload_bytes INTEGER,
    PRIMARY KEY (request_id)
);
CREATE INDEX completions_in_order ON completions (queue, event);
CREATE TABLE copies (
    id VARCHAR NOT NULL,
    source_path VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE custom_losses (
    id VARCHAR NOT NULL,
    session_id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    definition JSON,
    PRIMARY KEY (id)
);
CREATE INDEX ix_custom_losses_session_id ON custom_losses (session_id);
CREATE TABLE promises (
    request_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    service VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    request BYTEA,
    request_in_blob BOOLEAN NOT NULL,
    payload BYTEA,
    payload_in_blob BOOLEAN NOT NULL,
    media_type VARCHAR,
    error VARCHAR,
    category VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (request_id)
);
CREATE INDEX ix_promises_finished_at ON promises (finished_at);
CREATE INDEX ix_promises_state ON promises (state);
CREATE TABLE sampling_clones (
    sampling_session_id VARCHAR NOT NULL,
    clones INTEGER NOT NULL,
    PRIMARY KEY (sampling_session_id)
);
CREATE TABLE sampling_sessions (
    id VARCHAR NOT NULL,
    session_id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    base_model VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    model_path VARCHAR,
    weights_key VARCHAR,
    PRIMARY KEY (id)
);
CREATE INDEX ix_sampling_sessions_session_id ON sampling_sessions (session_id);
CREATE TABLE sessions (
    id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    tags JSON,
    user_metadata JSON,
    display_name VARCHAR,
    project_id VARCHAR,
    sdk_version VARCHAR,
    finish_reason VARCHAR,
    finish_detail VARCHAR,
    closed_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);
CREATE INDEX ix_sessions_created_at ON sessions (created_at);
CREATE INDEX ix_sessions_owner ON sessions (owner);
CREATE TABLE training_runs (
    id VARCHAR NOT NULL,
    session_id VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    base_model VARCHAR NOT NULL,
    rank INTEGER NOT NULL,
    alpha FLOAT NOT NULL,
    train_attn BOOLEAN NOT NULL,
    train_mlp BOOLEAN NOT NULL,
    train_unembed BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_request_at TIMESTAMP WITH TIME ZONE NOT NULL,
    user_metadata JSON,
    corrupted BOOLEAN NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_training_runs_created_at ON training_runs (created_at);
CREATE INDEX ix_training_runs_owner ON training_runs (owner);
CREATE INDEX ix_training_runs_session_id ON training_runs (session_id);

INSERT INTO sessions (id, owner, created_at, last_seen_at, tags, user_metadata, display_name, project_id)
VALUES ('s', 'local', '2026-01-01 00:00:00+00:00', '2026-01-01 01:00:00+00:00', '["a"]', '{"k": "v"}', 'first', 'apples');
INSERT INTO training_runs (id, session_id, owner, base_model, rank, alpha, train_attn, train_mlp, train_unembed,
    created_at, last_request_at, user_metadata, corrupted)
VALUES ('s:train:0', 's', 'local', 'base', 8, 32.0, true, true, false,
        '2026-01-01 00:00:00+00:00', '2026-01-01 01:00:00+00:00', '{"renderer_name": "qwen3"}', false),
       ('s:train:1', 's', 'local', 'base', 8, 32.0, true, true, false,
        '2026-01-01 00:30:00+00:00', '2026-01-01 00:30:00+00:00', NULL, false);
INSERT INTO copies (id, source_path, created_at)
VALUES ('s:train:1', 'tinker://s:train:0/weights/one', '2026-01-01 00:30:00+00:00');
INSERT INTO checkpoints (path, run_id, owner, kind, name, key, size_bytes, created_at, base_model, rank, alpha,
    train_attn, train_mlp, train_unembed, public)
VALUES ('tinker://s:train:0/weights/one', 's:train:0', 'local', 'weights', 'one', 's:train:0/weights/one', 7,
        '2026-01-01 00:10:00+00:00', 'base', 8, 32.0, true, true, false, true);
INSERT INTO promises (request_id, kind, service, owner, state, request_in_blob, payload, payload_in_blob, media_type,
    created_at, finished_at)
VALUES ('s:train:0:1', 'OptimStep', 'train', 'local', 'done', false, 'result', false, 'application/json',
        '2026-01-01 00:05:00+00:00', '2026-01-01 00:05:01+00:00');
INSERT INTO audit (id, owner, created_at, event, details)
VALUES ('a', 'local', '2026-01-01 00:10:00+00:00', 'checkpoint_create', '{"session_id": "s"}');
