//! What a host's data plane knows, whichever carries its frames: the kernel's tables, or what the
//! datapath says of its own.

use crate::Lab;
use serde_json::Value;
use std::collections::BTreeSet;

/// Who has an address, as a host answers for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The address.
    pub address: String,
    /// Its MAC.
    pub mac: String,
    /// Of this host: not learned from elsewhere.
    pub here: bool,
}

/// Of the hosts that the datapath of a line runs on; elsewhere nothing.
const DATAPATH: &str = "test -S /run/vpc/datapath.sock && vpc -o json datapath show || echo '{}'";

impl Lab {
    /// True if frames of the host's tenants leave it by TAPs.
    pub fn is_tap(&self, host: &str) -> bool {
        let socket = "test -S /run/vpc/datapath.sock";
        self.try_sh(host, socket).status.success()
    }

    /// True if a host answers for IPv6 addresses that are elsewhere: the kernel can where it filters
    /// VLANs, a datapath anywhere.
    pub fn knows_ipv6(&self, host: &str) -> bool {
        self.is_tap(host) || self.filters_vlans()
    }

    /// Rows of a VNI that lead elsewhere: MAC (zero for who gets what is for all) and VTEP.
    pub fn vtep_rows(&self, host: &str, vni: u64) -> BTreeSet<(String, String)> {
        let line = format!("bridge -j fdb show dev t-{vni} 2>/dev/null || echo '[]'");
        let pair = |row: &Value| {
            let dst = row["dst"].as_str()?;
            Some((row["mac"].as_str()?.to_owned(), dst.to_owned()))
        };
        let kernel = self.json(host, &line);
        let kernel = kernel.as_array().into_iter().flatten().filter_map(pair);
        let of_vni = |row: &Value| (row["vni"] == vni).then(|| row_of(row)).flatten();
        let told = self.json(host, DATAPATH);
        let told = all_rows(&told).filter_map(of_vni);
        kernel.chain(told).collect()
    }

    /// All rows of a host that lead elsewhere, of all VNIs.
    pub fn all_vtep_rows(&self, host: &str) -> Vec<(String, String)> {
        let kernel = self.json(host, "bridge -j fdb show");
        let pair = |row: &Value| {
            let dst = row["dst"].as_str()?;
            Some((row["mac"].as_str()?.to_owned(), dst.to_owned()))
        };
        let kernel = kernel.as_array().into_iter().flatten().filter_map(pair);
        let told = self.json(host, DATAPATH);
        kernel.chain(all_rows(&told).filter_map(row_of)).collect()
    }

    /// Addresses that a host answers for, or knows to be its own; the kernel's as far as they are the
    /// agent's.
    pub fn neighbours(&self, host: &str) -> BTreeSet<Neighbour> {
        let kernel = self.json(host, "ip -j neigh show nud permanent; true");
        let ours = |row: &&Value| row["protocol"].to_string().contains("118");
        let of_kernel = |row: &Value| {
            Some(Neighbour {
                address: row["dst"].as_str()?.to_owned(),
                mac: row["lladdr"].as_str()?.to_owned(),
                // A flag is a key without a value.
                here: row.get("extern_learn").is_none(),
            })
        };
        let told = self.json(host, DATAPATH);
        let of_datapath = |row: &Value| {
            Some(Neighbour {
                address: row["address"].as_str()?.to_owned(),
                mac: row["mac"].as_str()?.to_owned(),
                here: row["here"] == true,
            })
        };
        let kernel = kernel.as_array().into_iter().flatten().filter(ours);
        let told = told["neighbours"].as_array().into_iter().flatten();
        (kernel.filter_map(of_kernel))
            .chain(told.filter_map(of_datapath))
            .collect()
    }
}

fn all_rows(told: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&told["macs"], &told["flood"]].into_iter();
    lists.flat_map(|list| list.as_array().into_iter().flatten())
}

/// One without a MAC is of what is for all.
fn row_of(row: &Value) -> Option<(String, String)> {
    let mac = row["mac"].as_str().unwrap_or("00:00:00:00:00:00");
    Some((mac.to_owned(), row["vtep"].as_str()?.to_owned()))
}
