//! The only SQL: intent, changes, tokens and host status in SQLite or PostgreSQL.
//!
//! The SQL text is the same for both engines; `engine.rs` is the one place that tells them apart.
//! Whatever was acknowledged is durable (SQLite: WAL with `synchronous=FULL`).
//!
//! Several servers may share one database. Each keeps the whole intent in memory; a commit names
//! the revision that it was decided on, and of two that name the same one only the first is
//! taken. The other server reads what it missed ([`Store::catch_up`]) and decides again:
//!
//! ```text
//! loop {
//!     let decision = intent.decide(command.clone(), &context)?;
//!     match store.commit(&decision).await {
//!         Ok(()) => { intent.apply(&decision); break decision.object }
//!         Err(StoreError::Conflict { .. }) => store.catch_up(&mut intent).await?,
//!         Err(error) => return Err(error),      // nothing was applied; catch up before the next
//!     }
//! }
//! ```

mod checksum;
mod engine;
mod error;
mod location;
mod migrate;
mod ops;
mod quiet;
mod rows;
mod store;

pub use error::StoreError;
pub use location::{BadLocation, Location};
pub use store::{CHANGES_KEPT, History, Store};
