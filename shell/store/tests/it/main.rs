//! The store on both engines, and what only a file can suffer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::print_stdout, reason = "figures for whoever runs the test")]

mod cluster;
mod damage;
mod postgres;
mod speed;
mod suite;

use suite::CASES;

#[test]
fn the_suite_on_sqlite() {
    suite::run_all(CASES, |_| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let location = store::Location::Sqlite(dir.path().join("vpc.db"));
        (location, Some(dir))
    });
}

#[test]
fn the_suite_on_postgres() {
    let server = postgres::Server::start();
    suite::run_all(CASES, |name| (server.database(name), ()));
}

/// As CockroachDB has it always: transactions fail with 40001 and are run again.
#[test]
fn the_suite_on_serializable_postgres() {
    let server = postgres::Server::start();
    suite::run_all(CASES, |name| (server.serializable_database(name), ()));
}
