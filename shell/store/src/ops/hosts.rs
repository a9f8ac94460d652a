//! What is kept of hosts beside the intent: their reports, and what they were issued.

use super::{Done, Fail};
use crate::checksum::checksum;
use crate::engine::{Arg, Row, Tx};
use crate::rows::{body, parse, unsigned};
use fleet_plan::{Digest, IssuedRow};
use model::{Generation, HostId, HostStatus};
use std::collections::BTreeMap;

pub(crate) async fn save_statuses(mut tx: Tx, statuses: &[(HostId, HostStatus)]) -> Done<()> {
    // In one order everywhere, so that two servers cannot wait for each other's rows.
    let ordered: BTreeMap<HostId, &HostStatus> = statuses
        .iter()
        .map(|(host, status)| (*host, status))
        .collect();
    for (host, status) in ordered {
        tx.execute(
            "INSERT INTO statuses (host, checkin, body) \
             SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS TEXT) \
             WHERE EXISTS (SELECT 1 FROM objects WHERE kind = 'host' AND id = $1) \
             ON CONFLICT (host) DO UPDATE SET checkin = excluded.checkin, body = excluded.body \
             WHERE statuses.checkin <= excluded.checkin",
            vec![
                host.to_string().into(),
                status.last_checkin.0.into(),
                body(status).into(),
            ],
        )
        .await?;
    }
    Ok((tx, ()))
}

pub(crate) async fn statuses(mut tx: Tx) -> Done<BTreeMap<HostId, HostStatus>> {
    let statuses = tx
        .query("SELECT host, body FROM statuses", vec![])
        .await?
        .iter()
        .map(|row| {
            let host: HostId = id_of(&row.text(0)?)?;
            Ok((host, parse("a host report", &row.text(1)?)?))
        })
        .collect::<Result<_, Fail>>()?;
    Ok((tx, statuses))
}

pub(crate) async fn save_issued(mut tx: Tx, rows: &[IssuedRow]) -> Done<Vec<IssuedRow>> {
    let mut winners = Vec::new();
    let ordered: BTreeMap<HostId, &IssuedRow> = rows.iter().map(|row| (row.host, row)).collect();
    for (host, row) in ordered {
        let kept = tx
            .execute(
                "INSERT INTO issued (host, generation, digest, checksum) \
                 SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS TEXT), CAST($4 AS BIGINT) \
                 WHERE EXISTS (SELECT 1 FROM objects WHERE kind = 'host' AND id = $1) \
                 ON CONFLICT (host) DO UPDATE \
                 SET generation = excluded.generation, digest = excluded.digest, \
                 checksum = excluded.checksum \
                 WHERE issued.generation < excluded.generation",
                vec![
                    host.to_string().into(),
                    row.generation.0.into(),
                    row.digest.0.as_str().into(),
                    issued_checksum(row).into(),
                ],
            )
            .await?;
        if kept == 0 {
            let stored = tx
                .query(
                    "SELECT host, generation, digest, checksum FROM issued WHERE host = $1",
                    vec![host.to_string().into()],
                )
                .await?;
            for stored in stored.iter().map(issued_row) {
                let stored = stored?;
                if stored != *row {
                    winners.push(stored);
                }
            }
        }
    }
    Ok((tx, winners))
}

pub(crate) async fn issued(mut tx: Tx) -> Done<Vec<IssuedRow>> {
    let rows = tx
        .query(
            "SELECT host, generation, digest, checksum FROM issued ORDER BY host",
            vec![],
        )
        .await?
        .iter()
        .map(issued_row)
        .collect::<Result<_, _>>()?;
    Ok((tx, rows))
}

pub(super) async fn forget_host(tx: &mut Tx, host: HostId) -> Result<(), Fail> {
    let host = Arg::from(host.to_string());
    tx.execute("DELETE FROM statuses WHERE host = $1", vec![host.clone()])
        .await?;
    tx.execute("DELETE FROM issued WHERE host = $1", vec![host])
        .await?;
    Ok(())
}

fn issued_row(row: &Row) -> Result<IssuedRow, Fail> {
    let issued = IssuedRow {
        host: id_of(&row.text(0)?)?,
        generation: Generation(unsigned(row, 1)?),
        digest: Digest(row.text(2)?),
    };
    if issued_checksum(&issued) != row.int(3)? {
        return Err(Fail::Damaged(format!(
            "the generation of host {} does not match its checksum",
            issued.host
        )));
    }
    Ok(issued)
}

fn issued_checksum(row: &IssuedRow) -> i64 {
    let (host, generation) = (row.host.to_string(), row.generation.to_string());
    checksum(&["issued", &host, &generation, &row.digest.0])
}

fn id_of(text: &str) -> Result<HostId, Fail> {
    text.parse()
        .map_err(|error: model::BadId| Fail::Damaged(error.to_string()))
}
