//! Where a store is.

use sqlx::postgres::PgConnectOptions;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A file, or a database server.
#[derive(Debug, Clone)]
pub enum Location {
    /// A SQLite file: `/var/lib/vpc/vpc.db` or `sqlite:/var/lib/vpc/vpc.db`.
    Sqlite(PathBuf),
    /// PostgreSQL or CockroachDB: `postgres://user:password@host/database`.
    Postgres(Box<PgConnectOptions>),
}

/// Text that is no location.
#[derive(Debug, thiserror::Error)]
pub enum BadLocation {
    /// Nothing.
    #[error("the database location is empty: give a file name or postgres://USER@HOST/DATABASE")]
    Empty,
    /// A URL of another kind.
    #[error(
        "database scheme {0:?} is not known: give a file name or postgres://USER@HOST/DATABASE"
    )]
    Scheme(String),
    /// Not a PostgreSQL URL. The text is not repeated: it may hold a password.
    #[error("reading the database URL; write postgres://USER:PASSWORD@HOST/DATABASE")]
    Postgres(#[source] sqlx::Error),
}

impl FromStr for Location {
    type Err = BadLocation;
    fn from_str(text: &str) -> Result<Self, BadLocation> {
        if text.is_empty() {
            return Err(BadLocation::Empty);
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options = text.parse().map_err(BadLocation::Postgres)?;
            return Ok(Self::Postgres(Box::new(options)));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(BadLocation::Scheme(scheme.to_owned()));
        }
        Ok(Self::Sqlite(
            text.strip_prefix("sqlite:").unwrap_or(text).into(),
        ))
    }
}

/// Without the password.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(options) => {
                write!(f, "PostgreSQL database ")?;
                match options.get_database() {
                    Some(database) => write!(f, "{database}")?,
                    None => write!(f, "{}", options.get_username())?,
                }
                match options.get_socket() {
                    Some(socket) => write!(f, " at {}", socket.display()),
                    None => write!(f, " at {}:{}", options.get_host(), options.get_port()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_told_apart_and_hide_passwords() {
        let check = |text: &str, expected: &str| {
            let shown = match text.parse::<Location>() {
                Ok(location) => location.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{text}");
        };
        check("/var/lib/vpc.db", "/var/lib/vpc.db");
        check("sqlite:vpc.db", "vpc.db");
        check(
            "postgres://vpc:geheim@db1:5433/prod",
            "PostgreSQL database prod at db1:5433",
        );
        check(
            "mysql://x",
            "database scheme \"mysql\" is not known: give a file name or postgres://USER@HOST/DATABASE",
        );
        check(
            "",
            "the database location is empty: give a file name or postgres://USER@HOST/DATABASE",
        );
        check(
            "postgres://a:geheim@[bad/x",
            "reading the database URL; write postgres://USER:PASSWORD@HOST/DATABASE",
        );
    }
}
