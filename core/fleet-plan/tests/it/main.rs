//! Commands on a whole intent, by way of a small script language (`script.rs`).

mod golden;
mod invariants;
mod refusals;
mod script;
mod speed;
