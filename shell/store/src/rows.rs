//! Between the domain's types and the columns of tables.

use crate::checksum::checksum;
use crate::engine::Row;
use model::{Kind, ObjectId};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A row that is not as it was written.
#[derive(Debug)]
pub(crate) enum Unreadable {
    Engine(sqlx::Error),
    Damaged(String),
}

impl From<sqlx::Error> for Unreadable {
    fn from(error: sqlx::Error) -> Self {
        match error {
            // A column of another type or not UTF-8: nobody but us writes these tables.
            sqlx::Error::ColumnDecode { index, source } => {
                Self::Damaged(format!("column {index}: {source}"))
            }
            error => Self::Engine(error),
        }
    }
}

/// The JSON that goes into a `body` column.
pub(crate) fn body<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("rows have string keys only, so they have a JSON form")
}

/// What a `body` column holds.
pub(crate) fn parse<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Unreadable> {
    serde_json::from_str(text).map_err(|error| Unreadable::Damaged(format!("{what}: {error}")))
}

/// Reads a body whose checksum, in column `checksum_at`, covers `parts` and the body.
pub(crate) fn checked<T: DeserializeOwned>(
    what: &str,
    parts: &[&str],
    text: &str,
    written: i64,
) -> Result<T, Unreadable> {
    let mut all = parts.to_vec();
    all.push(text);
    verify(what, &all, written)?;
    parse(what, text)
}

/// That `parts` are what was written.
pub(crate) fn verify(what: &str, parts: &[&str], written: i64) -> Result<(), Unreadable> {
    if checksum(parts) == written {
        return Ok(());
    }
    Err(Unreadable::Damaged(format!(
        "{what} does not match its checksum"
    )))
}

pub(crate) fn unsigned(row: &Row, column: usize) -> Result<u64, Unreadable> {
    u64::try_from(row.int(column)?)
        .map_err(|_| Unreadable::Damaged(format!("column {column} is negative")))
}

/// The `kind` and `id` columns of an object.
pub(crate) fn key(id: ObjectId) -> (String, String) {
    (Kind::to_string(&id.kind()), id.id_text())
}
