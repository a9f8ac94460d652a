//! What happens inside a transaction. Each function takes the transaction and gives it back with
//! its answer; on an error it is dropped, and with it everything that was done.

mod hosts;
mod tokens;

pub(crate) use hosts::{issued, save_issued, save_statuses, statuses};
pub(crate) use tokens::{
    consume_token, create_token, delete_token, purge_tokens, token, tokens as all_tokens,
};

use crate::checksum::checksum;
use crate::engine::{Arg, Row, Tx};
use crate::error::no_such_table;
use crate::migrate;
use crate::rows::{Unreadable, body, checked, key, parse, unsigned, verify};
use crate::store::{History, enrolled};
use fleet_plan::{
    Decision, Delta, Hold, Intent, IssuedRow, RequestRecord, Resource, Rows, TokenRefusal,
    TokenSecret,
};
use model::{Change, Cluster, Object, ObjectId, Revision, UnixMillis};

/// Why a transaction was not committed.
#[derive(Debug)]
pub(crate) enum Fail {
    Engine(sqlx::Error),
    Damaged(String),
    NotInitialised,
    AlreadyInitialised(String),
    Conflict(Revision),
    TooOld { asked: Revision, horizon: Revision },
    Ahead { asked: Revision, head: Revision },
    Token(TokenRefusal),
}

impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        Unreadable::from(error).into()
    }
}

impl From<Unreadable> for Fail {
    fn from(error: Unreadable) -> Self {
        match error {
            Unreadable::Engine(error) => Self::Engine(error),
            Unreadable::Damaged(what) => Self::Damaged(what),
        }
    }
}

type Done<T> = Result<(Tx, T), Fail>;

/// The one row of `head`.
struct Head {
    cluster: Cluster,
    revision: Revision,
    horizon: Revision,
}

pub(crate) async fn schema_version(mut tx: Tx) -> Done<i64> {
    match migrate::version(&mut tx).await {
        Ok(version) => Ok((tx, version)),
        Err(error) if no_such_table(&error) => Err(Fail::NotInitialised),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn migrate(mut tx: Tx) -> Done<()> {
    migrate::migrate(&mut tx).await?;
    Ok((tx, ()))
}

pub(crate) async fn init(mut tx: Tx, cluster: &Cluster) -> Done<()> {
    match head(&mut tx).await {
        Ok(head) => return Err(Fail::AlreadyInitialised(head.cluster.id)),
        Err(Fail::NotInitialised) => {}
        Err(fail) => return Err(fail),
    }
    let cluster = body(cluster);
    let sum = checksum(&["cluster", &cluster]);
    tx.execute(
        "INSERT INTO head (one, revision, horizon, cluster, checksum) VALUES (1, 0, 0, $1, $2)",
        vec![cluster.into(), sum.into()],
    )
    .await?;
    Ok((tx, ()))
}

pub(crate) async fn revision(mut tx: Tx) -> Done<Revision> {
    let head = head(&mut tx).await?;
    Ok((tx, head.revision))
}

pub(crate) async fn load(mut tx: Tx) -> Done<Intent> {
    let head = head(&mut tx).await?;
    let objects = tx
        .query(
            "SELECT kind, id, revision, body, checksum FROM objects",
            vec![],
        )
        .await?
        .iter()
        .map(object)
        .collect::<Result<_, _>>()?;
    let holds = holds_after(&mut tx, Revision(0)).await?;
    let requests = requests_after(&mut tx, Revision(0)).await?;
    check_history(&mut tx, &head).await?;
    let intent = Intent::from_rows(Rows {
        cluster: head.cluster,
        revision: head.revision,
        objects,
        holds,
        requests,
    })
    .map_err(|error| Fail::Damaged(error.to_string()))?;
    Ok((tx, intent))
}

pub(crate) async fn commit(mut tx: Tx, decisions: &[Decision], kept: u64) -> Done<()> {
    for decision in decisions.iter().filter(|decision| !decision.is_noop()) {
        commit_one(&mut tx, decision).await?;
    }
    if let (Some(first), Some(last)) = (decisions.first(), decisions.last()) {
        compact(&mut tx, first.base, last.revision(), kept).await?;
    }
    Ok((tx, ()))
}

/// The same, and the generations that hosts get with them.
pub(crate) async fn commit_issued(
    tx: Tx,
    decisions: &[Decision],
    rows: &[IssuedRow],
    kept: u64,
) -> Done<Vec<IssuedRow>> {
    let (tx, ()) = commit(tx, decisions, kept).await?;
    save_issued(tx, rows).await
}

pub(crate) async fn commit_join(
    mut tx: Tx,
    decision: &Decision,
    token: &TokenSecret,
    now: UnixMillis,
    kept: u64,
) -> Done<()> {
    let host = enrolled(decision).expect("the caller decided on the creation of a host");
    if decision.is_noop() {
        tokens::check_spent(&mut tx, token, host, now).await?;
        return Ok((tx, ()));
    }
    tokens::spend(&mut tx, token, host, now).await?;
    commit(tx, std::slice::from_ref(decision), kept).await
}

/// What happened after `after`; none if nothing did.
pub(crate) async fn delta(mut tx: Tx, after: Revision) -> Done<Option<Delta>> {
    let head = head(&mut tx).await?;
    if head.revision == after {
        return Ok((tx, None));
    }
    check_reachable(&head, after)?;
    let changes = changes_after(&mut tx, after, i64::MAX).await?;
    let at = changes.iter().map(|change| change.at).max();
    let delta = Delta {
        at: at.unwrap_or_default(),
        changes,
        holds: holds_after(&mut tx, after).await?,
        requests: requests_after(&mut tx, after).await?,
    };
    Ok((tx, Some(delta)))
}

pub(crate) async fn history(mut tx: Tx, after: Revision, limit: usize) -> Done<History> {
    let head = head(&mut tx).await?;
    check_reachable(&head, after)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let changes = changes_after(&mut tx, after, limit).await?;
    let history = History {
        changes,
        head: head.revision,
    };
    Ok((tx, history))
}

async fn head(tx: &mut Tx) -> Result<Head, Fail> {
    let rows = tx
        .query(
            "SELECT cluster, checksum, revision, horizon FROM head",
            vec![],
        )
        .await?;
    let row = rows.first().ok_or(Fail::NotInitialised)?;
    Ok(Head {
        cluster: checked("the cluster", &["cluster"], &row.text(0)?, row.int(1)?)?,
        revision: Revision(unsigned(row, 2)?),
        horizon: Revision(unsigned(row, 3)?),
    })
}

/// A delta on top of its base. The row of `head` is taken first: whoever has it is the only writer
/// of all the other tables, and finds out at once that another server was faster.
async fn commit_one(tx: &mut Tx, decision: &Decision) -> Result<(), Fail> {
    let moved = tx
        .execute(
            "UPDATE head SET revision = $1 WHERE one = 1 AND revision = $2",
            vec![decision.revision().0.into(), decision.base.0.into()],
        )
        .await?;
    if moved == 0 {
        return Err(Fail::Conflict(decision.base));
    }
    let delta = &decision.delta;
    forget(tx, delta.at).await?;
    for change in &delta.changes {
        record(tx, change).await?;
    }
    for hold in &delta.holds {
        record_hold(tx, hold).await?;
    }
    for request in &delta.requests {
        record_request(tx, request).await?;
    }
    Ok(())
}

/// As [`Intent::apply_delta`] does: what ended is forgotten before the changes.
async fn forget(tx: &mut Tx, now: UnixMillis) -> Result<(), Fail> {
    let now = Arg::from(now.0);
    tx.execute("DELETE FROM holds WHERE ends <= $1", vec![now.clone()])
        .await?;
    tx.execute("DELETE FROM requests WHERE ends <= $1", vec![now])
        .await?;
    Ok(())
}

async fn record(tx: &mut Tx, change: &Change) -> Result<(), Fail> {
    let (kind, id) = key(change.object.id());
    let revision = change.revision.0.to_string();
    let text = body(change);
    let sum = checksum(&["change", &revision, &text]);
    tx.execute(
        "INSERT INTO changes (revision, body, checksum) VALUES ($1, $2, $3)",
        vec![change.revision.0.into(), text.into(), sum.into()],
    )
    .await?;
    if change.deleted {
        tx.execute(
            "DELETE FROM objects WHERE kind = $1 AND id = $2",
            vec![kind.into(), id.into()],
        )
        .await?;
        if let ObjectId::Host(host) = change.object.id() {
            hosts::forget_host(tx, host).await?;
        }
        return Ok(());
    }
    let text = body(&change.object);
    let sum = checksum(&[&kind, &id, &revision, &text]);
    tx.execute(
        "INSERT INTO objects (kind, id, revision, body, checksum) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (kind, id) DO UPDATE \
         SET revision = excluded.revision, body = excluded.body, checksum = excluded.checksum",
        vec![
            kind.into(),
            id.into(),
            change.revision.0.into(),
            text.into(),
            sum.into(),
        ],
    )
    .await?;
    Ok(())
}

async fn record_hold(tx: &mut Tx, hold: &Hold) -> Result<(), Fail> {
    let resource = body(&hold.resource);
    let (ends, revision) = (hold.until.0.to_string(), hold.revision.0.to_string());
    let sum = checksum(&["hold", &resource, &ends, &revision]);
    tx.execute(
        "INSERT INTO holds (resource, ends, revision, checksum) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (resource) DO UPDATE \
         SET ends = excluded.ends, revision = excluded.revision, checksum = excluded.checksum",
        vec![
            resource.into(),
            hold.until.0.into(),
            hold.revision.0.into(),
            sum.into(),
        ],
    )
    .await?;
    Ok(())
}

async fn record_request(tx: &mut Tx, request: &RequestRecord) -> Result<(), Fail> {
    let text = body(request);
    let sum = checksum(&["request", request.id.as_str(), &text]);
    tx.execute(
        "INSERT INTO requests (id, ends, revision, body, checksum) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET ends = excluded.ends, revision = excluded.revision, \
         body = excluded.body, checksum = excluded.checksum",
        vec![
            request.id.as_str().into(),
            request.until.0.into(),
            request.revision.0.into(),
            text.into(),
            sum.into(),
        ],
    )
    .await?;
    Ok(())
}

/// Drops the oldest changes, a hundredth of what is kept at a time.
async fn compact(tx: &mut Tx, base: Revision, now: Revision, kept: u64) -> Result<(), Fail> {
    let step = (kept / 100).max(1);
    if base.0 / step == now.0 / step {
        return Ok(());
    }
    let Some(horizon) = now.0.checked_sub(kept) else {
        return Ok(());
    };
    tx.execute(
        "DELETE FROM changes WHERE revision <= $1",
        vec![horizon.into()],
    )
    .await?;
    tx.execute(
        "UPDATE head SET horizon = $1 WHERE one = 1 AND horizon < $1",
        vec![horizon.into()],
    )
    .await?;
    Ok(())
}

fn check_reachable(head: &Head, after: Revision) -> Result<(), Fail> {
    if after < head.horizon {
        return Err(Fail::TooOld {
            asked: after,
            horizon: head.horizon,
        });
    }
    if after > head.revision {
        return Err(Fail::Ahead {
            asked: after,
            head: head.revision,
        });
    }
    Ok(())
}

/// That history begins and ends where `head` says.
async fn check_history(tx: &mut Tx, head: &Head) -> Result<(), Fail> {
    let rows = tx
        .query(
            "SELECT COUNT(*), COALESCE(MIN(revision), 0), COALESCE(MAX(revision), 0) FROM changes",
            vec![],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let (count, first, last) = (unsigned(row, 0)?, unsigned(row, 1)?, unsigned(row, 2)?);
    let expected = match head.revision.0.checked_sub(head.horizon.0) {
        Some(0) => (0, 0, 0),
        Some(count) => (count, head.horizon.0 + 1, head.revision.0),
        None => (u64::MAX, 0, 0),
    };
    if (count, first, last) == expected {
        return Ok(());
    }
    Err(Fail::Damaged(format!(
        "its history should lead from revision {} to {}, but it has {count} changes from {first} \
         to {last}",
        head.horizon, head.revision
    )))
}

async fn changes_after(tx: &mut Tx, after: Revision, limit: i64) -> Result<Vec<Change>, Fail> {
    let rows = tx
        .query(
            "SELECT revision, body, checksum FROM changes WHERE revision > $1 \
             ORDER BY revision LIMIT $2",
            vec![after.0.into(), limit.into()],
        )
        .await?;
    let mut expected = after.0;
    let mut changes = Vec::with_capacity(rows.len());
    for row in &rows {
        expected += 1;
        let revision = unsigned(row, 0)?;
        if revision != expected {
            return Err(Fail::Damaged(format!("change {expected} is missing")));
        }
        let what = format!("change {revision}");
        let parts = ["change", &revision.to_string()];
        changes.push(checked(&what, &parts, &row.text(1)?, row.int(2)?)?);
    }
    Ok(changes)
}

async fn holds_after(tx: &mut Tx, after: Revision) -> Result<Vec<Hold>, Fail> {
    let rows = tx
        .query(
            "SELECT resource, ends, revision, checksum FROM holds WHERE revision > $1 ORDER BY resource",
            vec![after.0.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (text, ends, revision) = (row.text(0)?, unsigned(row, 1)?, unsigned(row, 2)?);
            let parts = ["hold", &text, &ends.to_string(), &revision.to_string()];
            verify("a hold", &parts, row.int(3)?)?;
            let resource: Resource = parse("a hold", &text)?;
            Ok(Hold {
                resource,
                until: UnixMillis(ends),
                revision: Revision(revision),
            })
        })
        .collect()
}

async fn requests_after(tx: &mut Tx, after: Revision) -> Result<Vec<RequestRecord>, Fail> {
    let rows = tx
        .query(
            "SELECT id, body, checksum FROM requests WHERE revision > $1 ORDER BY id",
            vec![after.0.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let id = row.text(0)?;
            let what = format!("request {id}");
            Ok(checked(
                &what,
                &["request", &id],
                &row.text(1)?,
                row.int(2)?,
            )?)
        })
        .collect()
}

fn object(row: &Row) -> Result<Object, Fail> {
    let (kind, id, revision) = (row.text(0)?, row.text(1)?, row.int(2)?.to_string());
    let what = format!("{kind} {id}");
    let object: Object = checked(&what, &[&kind, &id, &revision], &row.text(3)?, row.int(4)?)?;
    Ok(object)
}
