//! Commit latency, printed; the budgets only catch what is grossly wrong.

use crate::cluster::{Server, nic, settings};
use crate::postgres;
use std::time::{Duration, Instant};
use store::{Location, Store};

#[test]
fn commits_are_quick() {
    let dir = tempfile::tempdir().unwrap();
    measure("SQLite", Location::Sqlite(dir.path().join("vpc.db")));
    let server = postgres::Server::start();
    measure("PostgreSQL", server.database("speed"));
}

fn measure(engine: &str, location: Location) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::init(&location, &settings()).await.unwrap();
        let mut server = Server::start(&store, 1).await;
        let (subnet, host) = server.furnish().await;
        let mut times = Vec::new();
        for n in 0..300 {
            let decision = server.decide(nic(subnet, host, &format!("n{n}")));
            let start = Instant::now();
            store.commit(&decision).await.unwrap();
            times.push(start.elapsed());
            server.intent.apply(&decision);
        }
        times.sort();
        let batch: Vec<_> = (0..100)
            .map(|n| {
                let decision = server.decide(nic(subnet, host, &format!("b{n}")));
                server.intent.apply(&decision);
                decision
            })
            .collect();
        let start = Instant::now();
        store.commit_all(&batch).await.unwrap();
        let batch = start.elapsed();
        let start = Instant::now();
        store.load().await.unwrap();
        let load = start.elapsed();
        println!(
            "{engine}: commit p50 {:?} p99 {:?}, a batch of 100 {batch:?}, load of 400 NICs {load:?}",
            times[150], times[297]
        );
        assert!(times[150] < Duration::from_millis(100), "commits take {:?}", times[150]);
        store.close().await;
    });
}
