//! What can go wrong with a store, for the operator.

use fleet_plan::TokenRefusal;
use model::Revision;
use std::path::PathBuf;

/// Something that a store could not do. Nothing was half done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such file.
    #[error(
        "there is no store at {location}: `vpc server init` makes one; if there was one, restore its backup"
    )]
    Missing {
        /// Where it was looked for.
        location: String,
    },
    /// A store without a cluster in it.
    #[error("the store {location} belongs to no cluster yet: run `vpc server init`")]
    NotInitialised {
        /// Which.
        location: String,
    },
    /// A store with a cluster in it.
    #[error(
        "the store {location} holds cluster {cluster} already: it is left as it is; choose another place, or move it away first"
    )]
    AlreadyInitialised {
        /// Which.
        location: String,
        /// The cluster in it.
        cluster: String,
    },
    /// Written by a later version.
    #[error(
        "the store {location} has schema {found}, this program knows up to {known}: run the newer version of vpc that wrote it"
    )]
    NewerSchema {
        /// Which.
        location: String,
        /// Its schema's version.
        found: i64,
        /// The latest known here.
        known: i64,
    },
    /// Not what was written.
    #[error(
        "the store {location} is damaged: {what}. Nothing was changed in it; stop the server, keep the file and its -wal aside, and put the newest backup in its place"
    )]
    Corrupt {
        /// Which.
        location: String,
        /// What was found.
        what: String,
    },
    /// Another server was faster.
    #[error("another server changed the store since revision {base}: catch up and decide again")]
    Conflict {
        /// What the decision was based on.
        base: Revision,
    },
    /// History was compacted.
    #[error(
        "changes since revision {asked} are no longer kept, only those after {horizon}: list the objects again and watch from there"
    )]
    TooOld {
        /// Where the reader stands.
        asked: Revision,
        /// Where history begins.
        horizon: Revision,
    },
    /// History is shorter than the reader thinks.
    #[error(
        "revision {asked} is in the future, the store is at {head}: it was restored from a backup; list the objects again and watch from there"
    )]
    Ahead {
        /// Where the reader stands.
        asked: Revision,
        /// Where history ends.
        head: Revision,
    },
    /// A join token that does not open the door.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// No space left.
    #[error(
        "{action} in the store {location}: no space left on its disk; nothing was changed, free some space and try again"
    )]
    Full {
        /// Which store.
        location: String,
        /// What was being done.
        action: &'static str,
        /// As the engine says it.
        #[source]
        source: sqlx::Error,
    },
    /// The engine failed.
    #[error("{action} in the store {location}; {remedy}")]
    Engine {
        /// Which store.
        location: String,
        /// What was being done.
        action: &'static str,
        /// What to do.
        remedy: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// A file could not be made or read.
    #[error("{action} {}: check that its directory exists and belongs to the server's user", .path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file is there already.
    #[error("the backup {} exists already: it is left as it is; choose another name", .path.display())]
    BackupExists {
        /// Which.
        path: PathBuf,
    },
    /// The engine has tools of its own.
    #[error("{location} is not backed up by this server: use pg_dump, which knows how to")]
    BackupElsewhere {
        /// Which store.
        location: String,
    },
}

impl StoreError {
    /// What the engine said, as an error of the store.
    pub(crate) fn engine(location: &str, action: &'static str, source: sqlx::Error) -> Self {
        let location = location.to_owned();
        match Cause::of(&source) {
            Cause::Damaged => Self::Corrupt {
                location,
                what: format!("{action} failed: {source}"),
            },
            Cause::Full => Self::Full {
                location,
                action,
                source,
            },
            Cause::Busy => Self::Engine {
                location,
                action,
                remedy: "another process keeps it locked: find and stop it",
                source,
            },
            Cause::Unreachable => Self::Engine {
                location,
                action,
                remedy: "check that the database server runs and can be reached, then try again",
                source,
            },
            Cause::Other => Self::Engine {
                location,
                action,
                remedy: "the cause below says what to mend; nothing was changed",
                source,
            },
        }
    }
}

/// What a failure of the engine means to the operator.
enum Cause {
    Damaged,
    Full,
    Busy,
    Unreachable,
    Other,
}

impl Cause {
    fn of(error: &sqlx::Error) -> Self {
        let code = match error {
            sqlx::Error::Database(error) if error.message().starts_with("no such ") => {
                return Self::Damaged;
            }
            sqlx::Error::Database(error) => error.code().map(|code| code.into_owned()),
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => {
                return Self::Unreachable;
            }
            _ => None,
        };
        let Some(code) = code else {
            return Self::Other;
        };
        // PostgreSQL's SQLSTATE has five characters; SQLite's extended result codes have fewer
        // digits, their low byte is the primary code.
        if code.len() == 5 {
            return match code.as_str() {
                "53100" => Self::Full,
                "57P01" | "57P02" | "57P03" => Self::Unreachable,
                code if code.starts_with("08") => Self::Unreachable,
                "XX001" | "XX002" => Self::Damaged,
                // Our statements do not change: a table or column that is missing was taken away.
                "42P01" | "42703" => Self::Damaged,
                _ => Self::Other,
            };
        }
        match code.parse::<i32>().map(|code| code & 0xff) {
            Ok(5 | 6) => Self::Busy,
            Ok(11 | 26) => Self::Damaged,
            Ok(13) => Self::Full,
            _ => Self::Other,
        }
    }
}

/// True if a table is missing.
pub(crate) fn no_such_table(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            error.code().as_deref() == Some("42P01") || error.message().starts_with("no such table")
        }
        _ => false,
    }
}

/// True if the transaction lost against another one and may simply be run again
/// (SQLSTATE 40001 serialization_failure, 40P01 deadlock_detected).
pub(crate) fn worth_repeating(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("40001" | "40P01"))
        }
        _ => false,
    }
}
