//! Figures of the daemons for Prometheus: pages of them, an endpoint over HTTP, those of a speaker.
//!
//! Nothing is counted here. A page is made when one is asked for, from what the daemon knows
//! anyway; [`serve`] keeps whoever asks too often, too slowly or nonsense from costing anything.

mod endpoint;
mod page;
mod speaker;

pub use endpoint::{Source, may_listen, serve};
pub use page::{Counted, Labels, Page};
pub use prometheus_client::metrics::histogram::Histogram;
pub use speaker::{Session, evpn, of_speaker, sessions};
