//! What `make bench` prints: our figures beside baselines measured in the same run.
//!
//! `bench [--quick] [latency|many|path|reflect|fdb|move|router|scale|dhcp|transport|storage]...` as root. Everything happens in labs of its own. Parts of
//! it run inside lab hosts: there this binary is started again as `bench inside`.
#![expect(clippy::print_stdout, reason = "it prints its figures")]

mod fdb;
mod figures;
mod inside;
mod latency;
mod leases;
mod many;
mod moving;
mod path;
mod reflect;
mod remote;
mod routers;
mod storage;
mod transport;
mod wire;

use figures::Table;
use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// NICs created one after the other.
    creates: usize,
    /// NICs at once.
    nics: usize,
    /// Times that are made, deleted and restarted over.
    rounds: usize,
    /// Pairs of runs of the data path.
    pairs: usize,
    /// Seconds of each.
    seconds: u64,
    /// Moves of a NIC.
    moves: usize,
}

const FULL: Effort = Effort {
    creates: 150,
    nics: 1000,
    rounds: 3,
    pairs: 7,
    seconds: 3,
    moves: 50,
};
const QUICK: Effort = Effort {
    creates: 20,
    nics: 100,
    rounds: 1,
    pairs: 2,
    seconds: 1,
    // Fewer have no p99.
    moves: 50,
};

const PARTS: [&str; 11] = [
    "latency",
    "many",
    "path",
    "reflect",
    "fdb",
    "move",
    "router",
    "scale",
    "dhcp",
    "transport",
    "storage",
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "inside") {
        inside::serve();
        return ExitCode::SUCCESS;
    }
    if let [first, plan] = arguments.as_slice()
        && first == "reflect-load"
    {
        reflect::serve(plan);
        return ExitCode::SUCCESS;
    }
    let own = env::current_exe().expect("a program knows its own path");
    if env::var_os("VPC_BIN").is_none() {
        // The labs run the `vpc` that was built together with this.
        let error = Command::new(&own)
            .args(&arguments)
            .env("VPC_BIN", own.with_file_name("vpc"))
            .exec();
        panic!("starting {} again: {error}", own.display());
    }
    let mut effort = FULL;
    let mut parts = Vec::new();
    for argument in &arguments {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            part if PARTS.contains(&part) => parts.push(part),
            other => {
                println!(
                    "{other:?}: bench [--quick] [latency|many|path|reflect|fdb|move|router|scale|dhcp|transport|storage]..."
                );
                return ExitCode::from(2);
            }
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);

    figures::machine();
    let mut table = Table::default();
    if wanted("latency") || wanted("many") {
        let mut cluster = many::Cluster::up(effort, &mut table);
        if wanted("latency") {
            latency::measure(&mut cluster, effort, &mut table);
        }
        if wanted("many") {
            many::measure(&mut cluster, effort, &mut table);
        }
    }
    if wanted("path") {
        path::measure(effort, &mut table);
    }
    if wanted("reflect") {
        reflect::measure(effort.creates < FULL.creates, effort.rounds, &mut table);
    }
    if wanted("fdb") {
        fdb::measure(effort, &mut table);
    }
    if wanted("move") {
        moving::measure(effort, &mut table);
    }
    if wanted("router") {
        routers::measure(effort, &mut table);
    }
    if wanted("scale") {
        routers::measure_many(effort, &mut table);
    }
    if wanted("dhcp") {
        leases::measure(effort, &mut table);
    }
    if wanted("transport") {
        transport::measure(effort, &mut table);
    }
    if wanted("storage") {
        storage::measure(effort, effort.creates < FULL.creates, &mut table);
    }
    figures::machine();
    table.print();
    ExitCode::SUCCESS
}
