//! The server as its clients meet it: real TLS on loopback, on both engines.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is how a test fails, and figures are printed"
)]

mod bad_input;
mod cluster;
mod enrolment;
mod hosts;
mod killed;
mod objects;
#[expect(
    dead_code,
    reason = "the helper of the store's own tests, which use more of it"
)]
#[path = "../../../store/tests/it/postgres.rs"]
mod postgres;
mod routing;
mod servers;
mod speed;
mod volumes;
mod watches;

use cluster::Place;
use std::pin::Pin;
use std::time::Duration;
use tokio::task::JoinSet;

type Case = fn(Place) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($module:ident: $($name:ident),+);+ $(;)?) => {
        const CASES: &[(&str, Case)] =
            &[$($((stringify!($name), |place| Box::pin($module::$name(place)))),+),+];
    };
}

cases! {
    objects: objects_live_their_lives, what_is_stood_on_stays, creates_are_idempotent,
        lists_come_in_pages, lists_are_filtered, stale_versions_are_refused;
    bad_input: bad_fields_are_named, garbage_harms_nobody, large_messages_are_refused;
    watches: a_watch_has_no_gap_under_writes, a_watch_is_filtered, a_watch_of_the_future_is_refused,
        a_snapshot_comes_first;
    enrolment: a_token_works_once, a_lost_answer_can_be_asked_for_again, tokens_expire_and_are_revoked,
        a_token_of_another_cluster_never_leaves_the_host, foreign_certificates_are_refused,
        roles_are_kept_apart, a_removed_host_is_shut_out, certificates_renew_themselves;
    hosts: a_host_gets_its_configuration_and_reports, a_slow_host_gets_the_newest_only, a_change_is_told_not_everything,
        a_silent_host_is_down_within_ten_seconds, waiting_tells_who_is_late,
        a_host_ahead_of_the_store_is_overtaken, a_newer_stream_replaces_the_older,
        frr_is_refused_where_taps_carry;
    servers: a_restart_keeps_everything, reflection_and_health_answer, a_second_cluster_is_not_made_over_the_first;
    killed: a_killed_server_keeps_what_it_answered;
    routing: routers_live_their_lives, a_router_is_followed_to_its_host,
        a_router_goes_where_a_host_is_heard_of, bad_requests_about_routers_are_named;
    volumes: a_replica_that_is_away_gives_way_and_what_is_deleted_goes;
    speed: a_thousand_nics_are_made_quickly;
}

const SHARED: &[(&str, Case)] = &[("two_servers_work_as_one", |place| {
    Box::pin(servers::two_servers_work_as_one(place))
})];

#[test]
fn the_suite_on_sqlite() {
    run_all(CASES, |_| Place::sqlite());
}

#[test]
fn the_suite_on_postgres() {
    let server = postgres::Server::start();
    let all: Vec<_> = CASES.iter().chain(SHARED).copied().collect();
    run_all(&all, |name| {
        let store::Location::Postgres(options) = server.database(name) else {
            panic!("it is PostgreSQL");
        };
        let directory = options.get_socket().expect("it listens on a unix socket");
        let directory = directory.display().to_string().replace('/', "%2F");
        Place::postgres(format!("postgres://vpc@{directory}/{name}"))
    });
}

/// Runs all cases, some at a time; one that fails does not keep the others from running. `CASE`
/// names one to run alone.
fn run_all(cases: &[(&'static str, Case)], place: impl Fn(&str) -> Place) {
    if killed::is_child() {
        return;
    }
    if std::env::var_os("LOG").is_some() {
        // Refused if the other engine's suite did it already.
        drop(
            tracing_subscriber::fmt()
                .with_env_filter("controller=debug,store=debug,audit=info")
                .with_test_writer()
                .try_init(),
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let only = std::env::var("CASE").ok();
    let chosen = cases
        .iter()
        .filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name));
    let failed: Vec<String> = runtime.block_on(async {
        let mut running = JoinSet::new();
        let mut failed = Vec::new();
        for &(name, case) in chosen {
            if running.len() >= 6 {
                failed.extend(finished(running.join_next().await));
            }
            let work = tokio::time::timeout(Duration::from_secs(120), case(place(name)));
            // A case's panic ends its own task only, and its name goes with the outcome.
            let work = tokio::spawn(work);
            running.spawn(async move {
                match work.await {
                    Ok(Ok(())) => Ok(name),
                    Ok(Err(_)) => Err(format!("{name}: not done in 120 s")),
                    Err(error) => Err(format!("{name}: {error}")),
                }
            });
        }
        while !running.is_empty() {
            failed.extend(finished(running.join_next().await));
        }
        failed
    });
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

fn finished(
    outcome: Option<Result<Result<&str, String>, tokio::task::JoinError>>,
) -> Option<String> {
    match outcome?.expect("the outcome of a case is no panic") {
        Ok(name) => {
            println!("case {name} ... ok");
            None
        }
        Err(failure) => {
            println!("case {failure}");
            Some(failure)
        }
    }
}
