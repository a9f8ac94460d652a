//! How fast NICs are made. Prints figures; fails only when something is badly wrong.

use crate::cluster::{Cluster, Place, admin, nic};
use std::time::{Duration, Instant};

pub(crate) async fn a_thousand_nics_are_made_quickly(place: Place) {
    const CLIENTS: usize = 25;
    const EACH: usize = 40;
    let engine = if place.database.is_some() {
        "postgres"
    } else {
        "sqlite"
    };
    let cluster = Cluster::start(place).await;
    cluster.furnish().await;
    let agent = cluster.join("c1", 11).await;
    let obeying = agent.obey().await;

    let mut single = Vec::new();
    for number in 0..100 {
        let start = Instant::now();
        cluster.nic(&format!("one-{number}"), "c1").await;
        single.push(start.elapsed());
    }
    single.sort();
    let start = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let credential = cluster.credential();
            tokio::spawn(async move {
                let mut admin = admin(&credential).await;
                for number in 0..EACH {
                    let name = format!("n-{client}-{number}");
                    admin
                        .create_nic(nic("blue/web", &name, "c1"))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = start.elapsed();
    println!(
        "{engine}: one create p50 {:?}, p99 {:?}; {} by {CLIENTS} clients in {took:?}, {:.0}/s",
        single[50],
        single[98],
        CLIENTS * EACH,
        (CLIENTS * EACH) as f64 / took.as_secs_f64()
    );
    assert!(took < Duration::from_secs(60), "{took:?}");
    obeying.abort();
}
