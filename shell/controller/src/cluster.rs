//! What does not change while the server runs.

use api::pki::{Authority, Lifetimes};
use api::v1;
use std::sync::Arc;
use store::Store;

pub(crate) struct ClusterContext {
    pub(crate) id: String,
    pub(crate) authority: Arc<Authority>,
    pub(crate) store: Arc<Store>,
    /// "sqlite" or "postgres".
    pub(crate) store_kind: &'static str,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) settings: v1::ClusterSettings,
}
