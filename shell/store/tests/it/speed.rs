//! Commit latency.
