//! `vpc agent leases`.

use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::Outcome;
use crate::options::Global;
use crate::output::{Format, ago, json, print, table, time};
use crate::views::{short, some};
use api::v1;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
struct Leases {
    leases: Vec<Lease>,
    events: BTreeMap<String, u64>,
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct Lease {
    nic_id: String,
    nic: String,
    address: String,
    since: String,
    renewed: String,
    until: String,
    released: Option<String>,
    declined: Option<String>,
    #[serde(skip)]
    renewed_ago: String,
}

impl From<v1::Lease> for Lease {
    fn from(lease: v1::Lease) -> Self {
        let unless_never = |unix_ms| (unix_ms > 0).then(|| time(unix_ms));
        Self {
            nic_id: lease.nic_id,
            nic: lease.nic_name,
            address: lease.address,
            since: time(lease.since_unix_ms),
            renewed: time(lease.renewed_unix_ms),
            until: time(lease.until_unix_ms),
            released: unless_never(lease.released_unix_ms),
            declined: unless_never(lease.declined_unix_ms),
            renewed_ago: ago(lease.renewed_unix_ms),
        }
    }
}

/// Asks this host's agent.
pub(crate) fn run(global: &Global, agent: &AgentAccess) -> Outcome {
    let told = block_on(async {
        let mut client = agent.agent().await?;
        let leases = client.leases(v1::LeasesRequest {}).await;
        leases.map_err(|status| refused("asking the agent for leases", &status))
    })?
    .into_inner();
    let leases = Leases {
        leases: told.leases.into_iter().map(Into::into).collect(),
        events: told.events.into_iter().collect(),
        trouble: some(told.trouble),
    };
    if global.output == Format::Json {
        return json(&leases);
    }
    let row = |lease: &Lease| {
        let state = match (&lease.released, &lease.declined) {
            (Some(_), _) => "released",
            (None, Some(_)) => "declined",
            (None, None) => "taken",
        };
        let nic = short(&lease.nic).to_owned();
        let (address, until) = (lease.address.clone(), lease.until.clone());
        vec![
            nic,
            address,
            state.to_owned(),
            lease.renewed_ago.clone(),
            until,
        ]
    };
    let columns = ["nic", "address", "state", "asked", "until"];
    print(&table(&columns, leases.leases.iter().map(row)))?;
    let events = leases.events.iter();
    let events: Vec<_> = events
        .map(|(event, count)| format!("{event} {count}"))
        .collect();
    if !events.is_empty() {
        print(&format!(
            "\nsince the agent started: {}\n",
            events.join(", ")
        ))?;
    }
    match leases.trouble {
        Some(trouble) => print(&format!("\nnot well: {trouble}\n")),
        None => Ok(()),
    }
}
