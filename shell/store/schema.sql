-- The schema of a fresh store: what the migrations add up to. A test compares the two.
CREATE TABLE schema_version (
    version BIGINT NOT NULL PRIMARY KEY
);

-- One row: the cluster, and where its history stands.
-- Changes up to and including `horizon` were compacted away.
CREATE TABLE head (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    revision BIGINT NOT NULL,
    horizon BIGINT NOT NULL,
    cluster TEXT NOT NULL,
    checksum BIGINT NOT NULL
);

-- Accounts, hosts, external networks, VPCs, subnets, NICs, routers and public addresses as they are
-- now, as JSON.
CREATE TABLE objects (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL,
    checksum BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);

-- How they came to be so: what a watch delivers.
CREATE TABLE changes (
    revision BIGINT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL,
    checksum BIGINT NOT NULL
);

-- Freed resources that are not to be handed out before `ends`.
CREATE TABLE holds (
    resource TEXT NOT NULL PRIMARY KEY,
    ends BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    checksum BIGINT NOT NULL
);
CREATE INDEX holds_by_end ON holds (ends);

-- Requests that were answered, so that each is carried out once.
CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    ends BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL,
    checksum BIGINT NOT NULL
);
CREATE INDEX requests_by_end ON requests (ends);

-- Join tokens; `used` is 0 or 1.
CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    used BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    body TEXT NOT NULL,
    checksum BIGINT NOT NULL
);

-- What hosts reported last.
CREATE TABLE statuses (
    host TEXT NOT NULL PRIMARY KEY,
    checkin BIGINT NOT NULL,
    body TEXT NOT NULL
);

-- The newest configuration that each host was issued.
CREATE TABLE issued (
    host TEXT NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    digest TEXT NOT NULL,
    checksum BIGINT NOT NULL
);
