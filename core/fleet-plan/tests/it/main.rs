//! Commands on a whole intent, by way of a small script language (`script.rs`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::print_stdout, reason = "figures for whoever runs the test")]

mod distributed;
mod golden;
mod invariants;
mod lookups;
mod refusals;
mod refused_routing;
mod routing;
mod script;
mod speed;
mod volumes;
mod vpc_names;
mod zones;
