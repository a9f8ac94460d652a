//! The two engines behind one small face: statements with `$1` placeholders, integers and text.

use crate::Location;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Postgres, Row as _, Sqlite};
use std::path::Path;
use std::time::Duration;

/// How long a statement waits for another process's lock on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a connection, at the start and in between.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// With so many pages in SQLite's log a writer folds it into the file itself, and whoever waits for it waits
/// for that. It does not come to this where [`Engine::fold_log`] is called every so often.
const LOG_PAGES_AT_MOST: &str = "16384";

#[derive(Debug)]
pub(crate) enum Engine {
    /// SQLite knows one writer: a pool of one connection queues them without busy errors. Its log is folded
    /// by another, which no writer waits for.
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
        folder: SqlitePool,
    },
    Postgres(PgPool),
}

/// A transaction. Dropped, it is rolled back.
pub(crate) enum Tx {
    /// Begun and ended by hand. SQLite itself rolls back when the disk is full, and the library's
    /// transactions then lose count of what is open: the connection would be unusable.
    Sqlite(PoolConnection<Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// One value of a statement.
#[derive(Debug, Clone)]
pub(crate) enum Arg {
    Int(i64),
    Text(String),
}

/// One row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Engine {
    /// Opens what is there: the file must exist.
    pub(crate) async fn open(location: &Location) -> Result<Self, sqlx::Error> {
        match location {
            Location::Sqlite(path) => Self::open_sqlite(path).await,
            Location::Postgres(options) => {
                let pool = PgPoolOptions::new()
                    .max_connections(8)
                    .acquire_timeout(ACQUIRE_TIMEOUT)
                    .connect_with(options.as_ref().clone())
                    .await?;
                Ok(Self::Postgres(pool))
            }
        }
    }

    async fn open_sqlite(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // Cells are checked as they are read, not only at start.
            .pragma("cell_size_check", "ON");
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .after_release(|connection, _| Box::pin(roll_back_leftovers(connection)))
        };
        let writer = pool()
            .max_connections(1)
            // An idle writer keeps its page cache and prepared statements.
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(
                options
                    .clone()
                    .pragma("wal_autocheckpoint", LOG_PAGES_AT_MOST),
            )
            .await?;
        let folder = pool().max_connections(1).connect_lazy_with(options.clone());
        let readers = pool()
            .max_connections(4)
            .connect_lazy_with(options.read_only(true));
        Ok(Self::Sqlite {
            writer,
            readers,
            folder,
        })
    }

    /// A transaction that will write.
    pub(crate) async fn write(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            // Taking the lock at once: upgrading a read lock later can fail without waiting.
            Self::Sqlite { writer, .. } => Tx::begin_sqlite(writer, "BEGIN IMMEDIATE").await?,
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }

    /// A transaction that sees one state of the database throughout.
    pub(crate) async fn read(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Self::Sqlite { readers, .. } => Tx::begin_sqlite(readers, "BEGIN").await?,
            Self::Postgres(pool) => Tx::Postgres(
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    .await?,
            ),
        })
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite {
                writer,
                readers,
                folder,
            } => {
                folder.close().await;
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }

    /// Takes what is in SQLite's log into the file, as far as nobody reads it there. PostgreSQL does that by
    /// itself.
    pub(crate) async fn fold_log(&self) -> Result<(), sqlx::Error> {
        if let Self::Sqlite { folder, .. } = self {
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
                .execute(folder)
                .await?;
        }
        Ok(())
    }
}

/// What is wrong with the structure of a SQLite file; empty if nothing is. Only reads: whatever it
/// finds is left for the operator as it was.
pub(crate) async fn find_damage(path: &Path) -> Result<Vec<String>, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .connect()
        .await?;
    // Not quick_check: that leaves indexes out, and by a damaged one a delete misses its row.
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(3)")
        .fetch_all(&mut connection)
        .await?;
    connection.close().await?;
    Ok(if found == ["ok"] { Vec::new() } else { found })
}

/// Ends the transaction of a connection whose [`Tx`] was dropped, if one is open still.
async fn roll_back_leftovers(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => Ok(true),
        // SQLITE_ERROR: there was none. After anything else a fresh connection is better.
        Err(sqlx::Error::Database(error)) => Ok(error.code().as_deref() == Some("1")),
        Err(error) => Err(error),
    }
}

impl Tx {
    async fn begin_sqlite(pool: &SqlitePool, begin: &'static str) -> Result<Self, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        sqlx::query(begin).execute(&mut *connection).await?;
        Ok(Self::Sqlite(connection))
    }

    /// Runs a statement; returns the number of rows that it changed.
    pub(crate) async fn execute(
        &mut self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<u64, sqlx::Error> {
        match self {
            Self::Sqlite(tx) => {
                let mut query = sqlx::query::<Sqlite>(sql);
                for arg in args {
                    query = match arg {
                        Arg::Int(number) => query.bind(number),
                        Arg::Text(text) => query.bind(text),
                    };
                }
                Ok(query.execute(&mut **tx).await?.rows_affected())
            }
            Self::Postgres(tx) => {
                let mut query = sqlx::query::<Postgres>(sql);
                for arg in args {
                    query = match arg {
                        Arg::Int(number) => query.bind(number),
                        Arg::Text(text) => query.bind(text),
                    };
                }
                Ok(query.execute(&mut **tx).await?.rows_affected())
            }
        }
    }

    /// Runs a query; returns all its rows.
    pub(crate) async fn query(
        &mut self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Self::Sqlite(tx) => {
                let mut query = sqlx::query::<Sqlite>(sql);
                for arg in args {
                    query = match arg {
                        Arg::Int(number) => query.bind(number),
                        Arg::Text(text) => query.bind(text),
                    };
                }
                let rows = query.fetch_all(&mut **tx).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Self::Postgres(tx) => {
                let mut query = sqlx::query::<Postgres>(sql);
                for arg in args {
                    query = match arg {
                        Arg::Int(number) => query.bind(number),
                        Arg::Text(text) => query.bind(text),
                    };
                }
                let rows = query.fetch_all(&mut **tx).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    /// Runs several statements without values: a migration.
    pub(crate) async fn script(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(tx) => sqlx::raw_sql(sql).execute(&mut **tx).await.map(|_| ()),
            Self::Postgres(tx) => sqlx::raw_sql(sql).execute(&mut **tx).await.map(|_| ()),
        }
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(mut tx) => sqlx::query("COMMIT").execute(&mut *tx).await.map(|_| ()),
            Self::Postgres(tx) => tx.commit().await,
        }
    }

    /// Rolls back now instead of when the connection is used next.
    pub(crate) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(mut tx) => sqlx::query("ROLLBACK").execute(&mut *tx).await.map(|_| ()),
            Self::Postgres(tx) => tx.rollback().await,
        }
    }
}

impl Row {
    pub(crate) fn int(&self, column: usize) -> Result<i64, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    pub(crate) fn text(&self, column: usize) -> Result<String, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u64> for Arg {
    /// Revisions, generations and milliseconds stay below 2^63 for 290 million years.
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
