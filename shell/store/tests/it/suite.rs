//! What must hold on every engine. Each case gets a fresh place for a store.

use crate::cluster::{NOW, Server, account, delete, host, name, nic, settings};
use fleet_plan::{
    Decision, Delta, Digest, Intent, IssuedRow, JoinToken, Rollout, TokenRefusal, TokenSecret,
};
use model::{Generation, HostId, HostStatus, Object, ObjectId, Revision, Role, UnixMillis};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use store::{Location, Store, StoreError};

type Case = fn(Location) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const CASES: &[(&str, Case)] =
            &[$((stringify!($name), |location| Box::pin($name(location)))),+];
    };
}

cases! {
    a_store_gives_back_what_it_was_given,
    routers_outlive_a_restart,
    an_older_schema_is_brought_up_to_date,
    a_store_is_set_up_once,
    opening_makes_nothing,
    a_stale_decision_is_refused_whole,
    two_servers_never_hand_out_the_same_thing,
    a_batch_is_committed_whole_or_not_at_all,
    catching_up_is_the_same_as_loading,
    a_watch_resumes_without_a_gap,
    compacted_history_is_said_to_be_so,
    a_store_from_a_backup_is_behind_its_readers,
    requests_are_answered_once_across_servers,
    holds_outlive_a_restart_and_end,
    a_token_is_spent_once,
    a_refused_enrolment_costs_no_token,
    tokens_are_listed_withdrawn_and_purged,
    reports_are_kept_newest_first,
    generations_outlive_a_restart,
    another_servers_generation_wins_if_higher,
    a_newer_schema_is_left_alone,
    altered_rows_are_found,
    every_table_is_checked,
    the_schema_is_the_sum_of_its_migrations,
}

/// Runs all cases; one that fails does not keep the others from running.
pub(crate) fn run_all<G>(cases: &[(&str, Case)], mut place: impl FnMut(&str) -> (Location, G)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let only = std::env::var("CASE").ok();
    let mut failed = Vec::new();
    for (name, case) in cases {
        if only.as_deref().is_some_and(|only| only != *name) {
            continue;
        }
        let (location, _guard) = place(name);
        let work = AssertUnwindSafe(|| runtime.block_on(case(location)));
        match std::panic::catch_unwind(work) {
            Ok(()) => println!("case {name} ... ok"),
            Err(_) => failed.push(*name),
        }
    }
    assert!(failed.is_empty(), "failed cases: {failed:?}");
}

async fn fresh(location: &Location) -> Store {
    Store::init(location, &settings()).await.unwrap()
}

async fn reopen(store: Store, location: &Location) -> Store {
    store.close().await;
    Store::open(location).await.unwrap()
}

async fn a_store_gives_back_what_it_was_given(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    for n in 0..10 {
        let made = server
            .run_as(
                nic(subnet, host, &format!("n{n}")),
                Some(&format!("request-{n}")),
            )
            .await
            .unwrap();
        if n % 3 == 0 {
            server.run(delete(made.id())).await.unwrap();
        }
    }
    let intent = server.intent;
    assert_eq!(intent.revision(), Revision(18));
    let store = reopen(store, &location).await;
    assert_eq!(store.load().await.unwrap(), intent);
    assert_eq!(store.revision().await.unwrap(), intent.revision());
    store.close().await;
}

async fn routers_outlive_a_restart(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, _) = server.furnish().await;
    let mut behind = store.load().await.unwrap();
    server.furnish_routing(subnet).await;
    let intent = server.intent;
    let router = intent.router_of_subnet(subnet).unwrap();
    assert_eq!(router.uplink.as_ref().unwrap().addresses.len(), 1);
    store.catch_up(&mut behind).await.unwrap();
    assert_eq!(behind, intent);
    let store = reopen(store, &location).await;
    assert_eq!(store.load().await.unwrap(), intent);
    store.close().await;
}

async fn an_older_schema_is_brought_up_to_date(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    server.furnish().await;
    let intent = server.intent;
    store.close().await;
    let raw = Raw::open(&location).await;
    let schema = raw.schema().await;
    raw.run("DELETE FROM schema_version WHERE version > 1")
        .await;
    let store = Store::open(&location).await.unwrap();
    assert_eq!(store.load().await.unwrap(), intent);
    store.close().await;
    assert_eq!(raw.schema().await, schema);
}

async fn a_store_is_set_up_once(location: Location) {
    let store = fresh(&location).await;
    Server::start(&store, 1)
        .await
        .run(account("a"))
        .await
        .unwrap();
    store.close().await;
    let other = model::Cluster {
        id: "other".to_owned(),
        ..settings()
    };
    let error = Store::init(&location, &other).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the store {location} holds cluster lab already: it is left as it is; choose another \
             place, or move it away first"
        )
    );
    let store = Store::open(&location).await.unwrap();
    let intent = store.load().await.unwrap();
    assert_eq!(intent.cluster(), &settings());
    assert_eq!(intent.revision(), Revision(1));
    store.close().await;
}

async fn opening_makes_nothing(location: Location) {
    if let Location::Sqlite(path) = &location {
        // As `vpc server init` leaves it that was killed before it was done.
        let empty = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true);
        let pool = sqlx::SqlitePool::connect_with(empty).await.unwrap();
        sqlx::query("CREATE TABLE unrelated (x BIGINT)")
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;
    }
    let raw = Raw::open(&location).await;
    let before = raw.schema().await;
    let error = Store::open(&location).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the store {location} belongs to no cluster yet: run `vpc server init`")
    );
    assert_eq!(raw.schema().await, before);
}

async fn a_stale_decision_is_refused_whole(location: Location) {
    let store = fresh(&location).await;
    let mut one = Server::start(&store, 1).await;
    let mut two = Server::start(&store, 100).await;
    let stale = two.decide(account("two"));
    one.run(account("one")).await.unwrap();
    match store.commit(&stale).await {
        Err(StoreError::Conflict { base }) => assert_eq!(base, Revision(0)),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.load().await.unwrap(), one.intent);
    store.close().await;
}

async fn two_servers_never_hand_out_the_same_thing(location: Location) {
    const EACH: usize = 20;
    let store = Arc::new(fresh(&location).await);
    let (subnet, host) = Server::start(&store, 1).await.furnish().await;
    let tasks: Vec<_> = (0..3_u64)
        .map(|n| {
            let (store, location) = (Arc::clone(&store), location.clone());
            tokio::spawn(async move {
                // The first shares the setup's connections, the others are servers of their own.
                let own = match n {
                    0 => None,
                    _ => Some(Store::open(&location).await.unwrap()),
                };
                let mut server = Server::start(own.as_ref().unwrap_or(&store), n << 32).await;
                for i in 0..EACH {
                    server
                        .run(nic(subnet, host, &format!("n{n}-{i}")))
                        .await
                        .unwrap();
                }
                if let Some(own) = &own {
                    own.close().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Loading refuses rows that share anything.
    let intent = store.load().await.unwrap();
    assert_eq!(intent.nics_of_host(host).count(), 3 * EACH);
    assert_eq!(intent.revision(), Revision(4 + 3 * EACH as u64));
    store.close().await;
}

async fn a_batch_is_committed_whole_or_not_at_all(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let mut batch = Vec::new();
    let before = server.intent.clone();
    for n in 0..5 {
        let decision = server.decide(account(&format!("a{n}")));
        server.intent.apply(&decision);
        batch.push(decision);
    }
    // The last one is based on what nobody committed.
    let broken = [batch[0].clone(), batch[1].clone(), batch[3].clone()];
    assert!(matches!(
        store.commit_all(&broken).await,
        Err(StoreError::Conflict { .. })
    ));
    assert_eq!(store.load().await.unwrap(), before);
    store.commit_all(&batch).await.unwrap();
    assert_eq!(store.load().await.unwrap(), server.intent);
    store.close().await;
}

async fn catching_up_is_the_same_as_loading(location: Location) {
    let store = fresh(&location).await.with_changes_kept(8);
    let mut behind = store.load().await.unwrap();
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    for n in 0..30_u64 {
        let text = format!("n{n}");
        let made = server
            .run_as(nic(subnet, host, &text), Some(&text))
            .await
            .unwrap();
        server.now.0 += 7_000;
        if n % 2 == 0 {
            server.run(delete(made.id())).await.unwrap();
        }
        // Sometimes a few changes behind, sometimes more than are kept.
        if n % 5 == 0 || n > 25 {
            store.catch_up(&mut behind).await.unwrap();
            assert_eq!(behind, server.intent, "after {n}");
        }
    }
    let current = behind.clone();
    store.catch_up(&mut behind).await.unwrap();
    assert_eq!(behind, current);
    store.close().await;
}

async fn a_watch_resumes_without_a_gap(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let made = server.run(nic(subnet, host, "a")).await.unwrap();
    server.run(delete(made.id())).await.unwrap();
    let mut seen = Vec::new();
    let mut at = Revision(0);
    loop {
        let history = store.changes_since(at, 4).await.unwrap();
        assert_eq!(history.head, Revision(6));
        assert!(history.changes.len() <= 4);
        let Some(last) = history.changes.last() else {
            break;
        };
        at = last.revision;
        seen.extend(history.changes);
    }
    let revisions: Vec<u64> = seen.iter().map(|change| change.revision.0).collect();
    assert_eq!(revisions, [1, 2, 3, 4, 5, 6]);
    let last = seen.pop().unwrap();
    assert!(last.deleted);
    assert_eq!(last.object.id(), made.id());
    store.close().await;
}

async fn compacted_history_is_said_to_be_so(location: Location) {
    let store = fresh(&location).await.with_changes_kept(10);
    let mut server = Server::start(&store, 1).await;
    for n in 0..25 {
        server.run(account(&format!("a{n}"))).await.unwrap();
    }
    let error = store.changes_since(Revision(14), 100).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "changes since revision 14 are no longer kept, only those after 15: list the objects \
         again and watch from there"
    );
    let history = store.changes_since(Revision(15), 100).await.unwrap();
    assert_eq!(history.changes.len(), 10);
    // Who is behind the horizon gets everything instead.
    assert_eq!(store.load().await.unwrap(), server.intent);
    let mut behind = Intent::new(settings());
    store.catch_up(&mut behind).await.unwrap();
    assert_eq!(behind, server.intent);
    store.close().await;
}

async fn a_store_from_a_backup_is_behind_its_readers(location: Location) {
    let store = fresh(&location).await;
    let error = store.changes_since(Revision(7), 100).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "revision 7 is in the future, the store is at 0: it was restored from a backup; list the \
         objects again and watch from there"
    );
    store.close().await;
}

async fn requests_are_answered_once_across_servers(location: Location) {
    let store = fresh(&location).await;
    let mut one = Server::start(&store, 1).await;
    let mut two = Server::start(&store, 100).await;
    let first = one.run_as(account("a"), Some("r1")).await.unwrap();
    // It is behind, loses the race, and finds the answer when it caught up.
    let again = two.run_as(account("a"), Some("r1")).await.unwrap();
    assert_eq!(first, again);
    // And after a restart.
    let mut three = Server::start(&store, 200).await;
    assert_eq!(three.run_as(account("a"), Some("r1")).await.unwrap(), first);
    assert_eq!(store.revision().await.unwrap(), Revision(1));
    store.close().await;
}

async fn holds_outlive_a_restart_and_end(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let made = server.run(nic(subnet, host, "a")).await.unwrap();
    server.run(delete(made.id())).await.unwrap();
    let address = |object: &Object| match object {
        Object::Nic(nic) => nic.addresses[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(address(&made), "10.4.0.2");
    let mut server = Server::start(&store, 2).await;
    let next = server.run(nic(subnet, host, "b")).await.unwrap();
    assert_eq!(address(&next), "10.4.0.3");
    let mut server = Server::start(&store, 3).await;
    server.now.0 += settings().hold_millis;
    server.run(account("tick")).await.unwrap();
    // What ended is forgotten on disk as well.
    assert_eq!(store.load().await.unwrap(), server.intent);
    let next = server.run(nic(subnet, host, "c")).await.unwrap();
    assert_eq!(address(&next), "10.4.0.2");
    store.close().await;
}

fn token(number: u64) -> (TokenSecret, JoinToken) {
    let secret = TokenSecret::mint(number, [number as u8; 32]);
    let token = JoinToken {
        id: secret.id,
        secret_sha256: secret.sha256(),
        roles: BTreeSet::from([Role::Compute]),
        name: Some(name("c1")),
        zone: None,
        created: NOW,
        expires: UnixMillis(NOW.0 + 1_000),
        used: None,
    };
    (secret, token)
}

async fn a_token_is_spent_once(location: Location) {
    const RIVALS: usize = 8;
    let store = Arc::new(fresh(&location).await);
    // Many rounds, with all connections open after the first, so that some rivals do read the
    // token before any of them has written it.
    for round in 1..30 {
        let (secret, token) = token(round);
        store.create_token(&token).await.unwrap();
        assert_eq!(store.token(token.id).await.unwrap(), Some(token.clone()));
        let start = Arc::new(tokio::sync::Barrier::new(RIVALS));
        let tasks: Vec<_> = (0..RIVALS as u64)
            .map(|n| {
                let (store, start, secret) =
                    (Arc::clone(&store), Arc::clone(&start), secret.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    store
                        .consume_token(&secret, HostId::from_random(n), NOW)
                        .await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(spent) => winners.push(spent),
                Err(StoreError::Token(TokenRefusal::Used { id })) => assert_eq!(id, token.id),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert!(winners[0].used.is_some());
        assert_eq!(store.token(token.id).await.unwrap(), winners.pop());
    }
    store.close().await;
}

async fn a_refused_enrolment_costs_no_token(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (secret, good) = token(7);
    store.create_token(&good).await.unwrap();
    let stale = server.decide(host("c1", 1));
    server.run(account("meanwhile")).await.unwrap();
    let conflict = store.commit_join(&stale, &secret, NOW).await;
    assert!(
        matches!(conflict, Err(StoreError::Conflict { .. })),
        "{conflict:?}"
    );
    assert_eq!(store.token(good.id).await.unwrap().unwrap().used, None);

    let decision = server.decide(host("c1", 1));
    let wrong = TokenSecret::mint(7, [9; 32]);
    for (secret, now, expected) in [
        (&wrong, NOW, TokenRefusal::Unknown),
        (&token(8).0, NOW, TokenRefusal::Unknown),
        (&secret, good.expires, TokenRefusal::Expired { id: good.id }),
    ] {
        match store.commit_join(&decision, secret, now).await {
            Err(StoreError::Token(refusal)) => assert_eq!(refusal, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            store.revision().await.unwrap(),
            Revision(1),
            "nobody was enrolled"
        );
    }
    store.commit_join(&decision, &secret, NOW).await.unwrap();
    server.intent.apply(&decision);
    assert_eq!(store.load().await.unwrap(), server.intent);
    // A repeated join finds its host again, with its own token only.
    let again = Decision {
        delta: Delta::default(),
        ..decision.clone()
    };
    store.commit_join(&again, &secret, NOW).await.unwrap();
    for (secret, expected) in [
        (&wrong, TokenRefusal::Unknown),
        (&token(8).0, TokenRefusal::Unknown),
    ] {
        match store.commit_join(&again, secret, NOW).await {
            Err(StoreError::Token(refusal)) => assert_eq!(refusal, expected),
            other => panic!("{other:?}"),
        }
    }
    let second = server.decide(host("c2", 2));
    match store.commit_join(&second, &secret, NOW).await {
        Err(StoreError::Token(TokenRefusal::Used { .. })) => {}
        other => panic!("{other:?}"),
    }
    store.close().await;
}

async fn tokens_are_listed_withdrawn_and_purged(location: Location) {
    let store = fresh(&location).await;
    let (_, first) = token(1);
    let (_, second) = token(2);
    let late = JoinToken {
        expires: UnixMillis(NOW.0 + 9_000),
        ..token(3).1
    };
    for token in [&first, &second, &late] {
        store.create_token(token).await.unwrap();
    }
    assert!(
        store.create_token(&first).await.is_err(),
        "ids are not taken twice"
    );
    assert_eq!(
        store.tokens().await.unwrap(),
        [first.clone(), second.clone(), late.clone()]
    );
    assert!(store.delete_token(first.id).await.unwrap());
    assert!(!store.delete_token(first.id).await.unwrap());
    assert_eq!(
        store.purge_tokens(UnixMillis(NOW.0 + 1_001)).await.unwrap(),
        1
    );
    assert_eq!(store.tokens().await.unwrap(), [late]);
    store.close().await;
}

async fn reports_are_kept_newest_first(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let Object::Host(c1) = server.run(host("c1", 1)).await.unwrap() else {
        panic!("no host")
    };
    let report = |at: u64, version: &str| HostStatus {
        last_checkin: UnixMillis(at),
        agent_version: version.to_owned(),
        ..HostStatus::default()
    };
    let stranger = HostId::from_random(99);
    store
        .save_statuses(&[(c1.id, report(5, "new")), (stranger, report(5, "x"))])
        .await
        .unwrap();
    store
        .save_statuses(&[(c1.id, report(4, "late"))])
        .await
        .unwrap();
    let kept = store.statuses().await.unwrap();
    assert_eq!(
        kept.into_iter().collect::<Vec<_>>(),
        [(c1.id, report(5, "new"))]
    );
    store
        .save_statuses(&[(c1.id, report(6, "newer"))])
        .await
        .unwrap();
    assert_eq!(
        store.statuses().await.unwrap()[&c1.id].agent_version,
        "newer"
    );
    server.run(delete(ObjectId::Host(c1.id))).await.unwrap();
    assert!(store.statuses().await.unwrap().is_empty());
    store.close().await;
}

async fn generations_outlive_a_restart(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let mut rollout = Rollout::new(store.issued().await.unwrap(), &server.intent, vec![]);
    for n in 0..3 {
        server
            .run(nic(subnet, host, &format!("n{n}")))
            .await
            .unwrap();
        rollout.note_all(&server.intent);
        let rows: Vec<_> = rollout
            .poll(&server.intent)
            .into_iter()
            .map(|i| i.row)
            .collect();
        assert_eq!(store.save_issued(&rows).await.unwrap(), []);
    }
    let intent = server.intent;
    let store = reopen(store, &location).await;
    let mut rollout = Rollout::new(store.issued().await.unwrap(), &intent, vec![]);
    assert!(rollout.poll(&intent).is_empty(), "nothing changed");
    assert_eq!(rollout.config(host).unwrap().generation, Generation(3));
    store.close().await;
}

async fn another_servers_generation_wins_if_higher(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let Object::Host(c1) = server.run(host("c1", 1)).await.unwrap() else {
        panic!("no host")
    };
    let row = |generation, digest: &str| IssuedRow {
        host: c1.id,
        generation: Generation(generation),
        digest: Digest(digest.to_owned()),
    };
    let save = async |row: IssuedRow| store.save_issued(&[row]).await.unwrap();
    assert_eq!(save(row(5, "a")).await, []);
    assert_eq!(save(row(5, "a")).await, [], "the same again is no loss");
    assert_eq!(save(row(5, "b")).await, [row(5, "a")]);
    assert_eq!(save(row(4, "b")).await, [row(5, "a")]);
    assert_eq!(save(row(6, "b")).await, []);
    assert_eq!(store.issued().await.unwrap(), [row(6, "b")]);
    server.run(delete(ObjectId::Host(c1.id))).await.unwrap();
    assert_eq!(
        save(row(7, "c")).await,
        [],
        "the host is gone, so is its row"
    );
    assert_eq!(store.issued().await.unwrap(), []);
    store.close().await;
}

async fn a_newer_schema_is_left_alone(location: Location) {
    let store = fresh(&location).await;
    store.close().await;
    Raw::open(&location)
        .await
        .run("INSERT INTO schema_version (version) VALUES (99)")
        .await;
    let error = Store::open(&location).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the store {location} has schema 99, this program knows up to 2: run the newer version \
             of vpc that wrote it"
        )
    );
}

async fn altered_rows_are_found(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let made = server.run(nic(subnet, host, "a")).await.unwrap();
    let raw = Raw::open(&location).await;
    // Still an address, still a NIC.
    raw.run("UPDATE objects SET body = REPLACE(body, '10.4.0.2', '10.4.0.3') WHERE kind = 'nic'")
        .await;
    let ObjectId::Nic(id) = made.id() else {
        panic!("no NIC")
    };
    let error = store.load().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the store {location} is damaged: nic {id} does not match its checksum. Nothing was \
             changed in it; stop the server, keep the file and its -wal aside, and put the newest \
             backup in its place"
        )
    );
    store.close().await;
}

async fn every_table_is_checked(location: Location) {
    let store = fresh(&location).await;
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let made = server
        .run_as(nic(subnet, host, "a"), Some("r1"))
        .await
        .unwrap();
    server.run(delete(made.id())).await.unwrap();
    let (secret, token) = token(7);
    store.create_token(&token).await.unwrap();
    let digest = Digest("d".to_owned());
    let row = IssuedRow {
        host,
        generation: Generation(3),
        digest,
    };
    store.save_issued(&[row]).await.unwrap();
    let raw = Raw::open(&location).await;
    for (damage, repair, expected) in [
        (
            "UPDATE head SET revision = 7",
            "UPDATE head SET revision = 6",
            "from revision 0 to 7",
        ),
        (
            "UPDATE head SET revision = 5",
            "UPDATE head SET revision = 6",
            "from revision 0 to 5",
        ),
        (
            "UPDATE head SET horizon = 1",
            "UPDATE head SET horizon = 0",
            "from revision 1 to 6",
        ),
        (
            "UPDATE head SET cluster = REPLACE(cluster, '60000', '60001')",
            "UPDATE head SET cluster = REPLACE(cluster, '60001', '60000')",
            "the cluster does not match its checksum",
        ),
        (
            "UPDATE objects SET revision = revision + 1 WHERE kind = 'vpc'",
            "UPDATE objects SET revision = revision - 1 WHERE kind = 'vpc'",
            "does not match its checksum",
        ),
        (
            "UPDATE changes SET body = REPLACE(body, 'blue', 'blub') WHERE revision = 2",
            "UPDATE changes SET body = REPLACE(body, 'blub', 'blue') WHERE revision = 2",
            "change 2 does not match its checksum",
        ),
        (
            "UPDATE holds SET ends = ends - 1",
            "UPDATE holds SET ends = ends + 1",
            "a hold does not match its checksum",
        ),
        (
            "UPDATE requests SET body = REPLACE(body, '\"a\"', '\"b\"')",
            "UPDATE requests SET body = REPLACE(body, '\"b\"', '\"a\"')",
            "request r1 does not match its checksum",
        ),
        (
            "UPDATE tokens SET body = REPLACE(body, 'compute', 'storage')",
            "UPDATE tokens SET body = REPLACE(body, 'storage', 'compute')",
            "join token 0000000007 does not match its checksum",
        ),
        (
            "UPDATE tokens SET used = 1",
            "UPDATE tokens SET used = 0",
            "join token 0000000007 is used and unused",
        ),
        (
            "UPDATE issued SET generation = generation - 1",
            "UPDATE issued SET generation = generation + 1",
            "does not match its checksum",
        ),
        (
            "ALTER TABLE issued RENAME COLUMN digest TO digesu",
            "ALTER TABLE issued RENAME COLUMN digesu TO digest",
            "digest",
        ),
    ] {
        read_all(&store, &secret).await.unwrap();
        raw.run(damage).await;
        match read_all(&store, &secret).await {
            Err(StoreError::Corrupt { what, .. }) => {
                assert!(what.contains(expected), "{damage}: {what}");
            }
            other => panic!("{damage}: {other:?}"),
        }
        raw.run(repair).await;
    }
    raw.run("DELETE FROM objects WHERE kind = 'vpc'").await;
    assert!(
        matches!(store.load().await, Err(StoreError::Corrupt { .. })),
        "an orphan"
    );
    raw.run("DELETE FROM changes WHERE revision = 2").await;
    let error = store.changes_since(Revision(0), 9).await.unwrap_err();
    assert!(error.to_string().contains("change 2 is missing"), "{error}");
    store.close().await;
}

async fn read_all(store: &Store, token: &TokenSecret) -> Result<(), StoreError> {
    store.load().await?;
    store.changes_since(Revision(0), 100).await?;
    store.token(token.id).await?;
    store.tokens().await?;
    store.issued().await?;
    Ok(())
}

async fn the_schema_is_the_sum_of_its_migrations(location: Location) {
    let store = fresh(&location).await;
    store.close().await;
    let raw = Raw::open(&location).await;
    let migrated = raw.schema().await;
    assert!(migrated.len() > 8, "{migrated:?}");
    for table in [
        "schema_version",
        "head",
        "objects",
        "changes",
        "holds",
        "requests",
        "tokens",
        "statuses",
        "issued",
    ] {
        raw.run_owned(format!("DROP TABLE {table}")).await;
    }
    raw.run(include_str!("../../schema.sql")).await;
    assert_eq!(raw.schema().await, migrated);
}

/// The database without the store in front of it.
enum Raw {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

impl Raw {
    async fn open(location: &Location) -> Self {
        match location {
            Location::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                // One connection: another would not see at once that a column was renamed.
                let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
                Self::Sqlite(pool.connect_with(options).await.unwrap())
            }
            Location::Postgres(options) => {
                let options = options.as_ref().clone();
                Self::Postgres(sqlx::PgPool::connect_with(options).await.unwrap())
            }
        }
    }

    async fn run(&self, sql: &'static str) {
        self.run_owned(sql.to_owned()).await;
    }

    async fn run_owned(&self, sql: String) {
        let sql = sqlx::AssertSqlSafe(sql);
        match self {
            Self::Sqlite(pool) => drop(sqlx::raw_sql(sql).execute(pool).await.unwrap()),
            Self::Postgres(pool) => drop(sqlx::raw_sql(sql).execute(pool).await.unwrap()),
        }
    }

    /// Tables, columns and indexes, as the engine describes them.
    async fn schema(&self) -> Vec<String> {
        let mut lines: Vec<String> = match self {
            Self::Sqlite(pool) => sqlx::query_scalar(
                "SELECT m.type || ' ' || m.name || ': ' || COALESCE(c.name, '') || ' ' || \
                 COALESCE(c.type, '') || ' ' || COALESCE(c.\"notnull\", '') || ' ' || \
                 COALESCE(c.pk, '') || ' ' || CASE m.type WHEN 'index' THEN COALESCE(m.sql, '') \
                 ELSE '' END FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c",
            )
            .fetch_all(pool)
            .await
            .unwrap(),
            Self::Postgres(pool) => sqlx::query_scalar(
                "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable \
                 FROM information_schema.columns WHERE table_schema = 'public' \
                 UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
            )
            .fetch_all(pool)
            .await
            .unwrap(),
        };
        lines.sort();
        lines
    }
}

/// Handlers run on a multi-threaded runtime.
#[test]
fn futures_can_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    async fn everything(store: Store) {
        let mut intent = store.load().await.unwrap();
        store.catch_up(&mut intent).await.unwrap();
        store.commit_all(&[]).await.unwrap();
        store.save_statuses(&[]).await.unwrap();
        store.save_issued(&[]).await.unwrap();
        store.changes_since(Revision(0), 1).await.unwrap();
        store.tokens().await.unwrap();
        store.close().await;
    }
    is_send(everything);
    let _unused = |store: Store| is_send(everything(store));
}
