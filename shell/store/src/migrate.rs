//! The schema, as the sum of its migrations.

use crate::engine::{Arg, Tx};

/// In order; the version is the place in the list, from 1. Never changed once released: a new
/// folder under `migrations/` is added instead, and `schema.sql` with it.
pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_start/up.sql"),
    include_str!("../migrations/0002_routers/up.sql"),
];

/// The version of the schema that this program reads and writes.
pub(crate) const KNOWN: i64 = MIGRATIONS.len() as i64;

/// The schema's version in the database; fails if there is none yet.
pub(crate) async fn version(tx: &mut Tx) -> Result<i64, sqlx::Error> {
    let rows = tx
        .query(
            "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM schema_version",
            vec![],
        )
        .await?;
    rows.first().map_or(Ok(0), |row| row.int(0))
}

/// Runs the migrations that the database has not seen.
pub(crate) async fn migrate(tx: &mut Tx) -> Result<(), sqlx::Error> {
    tx.script("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY)")
        .await?;
    let version = version(tx).await?;
    for (next, sql) in (1_i64..).zip(MIGRATIONS) {
        if next > version {
            tx.script(sql).await?;
            tx.execute(
                "INSERT INTO schema_version (version) VALUES ($1)",
                vec![Arg::Int(next)],
            )
            .await?;
        }
    }
    Ok(())
}
