//! The only SQL: intent, changes, tokens and host status in SQLite or PostgreSQL.
