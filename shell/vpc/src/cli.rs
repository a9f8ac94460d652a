//! The tree of commands. What each does is in `commands`.

use crate::commands::{
    account, agent, capture, completion, datapath, doctor, evpn, external, host, l2, nic,
    public_ip, route, router, server, storage, subnet, volume, vpc, watch,
};
use crate::failure::Outcome;
use crate::lab;
use crate::options::Global;
use clap::{Parser, Subcommand};

/// Private networks for plain Linux hosts
#[derive(Debug, Parser)]
#[command(
    name = "vpc",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  vpc lab demo                                   a whole cluster on this machine
  vpc create blue --cidr 10.4.0.0/16             a VPC
  vpc subnet create blue/web --cidr 10.4.1.0/24
  vpc nic create blue/web/a1 --host c1 --attach netns:a1 --wait
  vpc router create blue/gw --subnet web --uplink --nat
  vpc show blue
  vpc host list -o json"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The management server
    #[command(subcommand)]
    Server(server::Server),
    /// The agent of this host
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Hosts of the cluster
    #[command(subcommand)]
    Host(host::Host),
    /// Accounts (tenants)
    #[command(subcommand)]
    Account(account::Account),
    /// Create a VPC
    Create(vpc::Create),
    /// List VPCs
    List(vpc::List),
    /// Show a VPC with its subnets and NICs
    Show(vpc::Show),
    /// Delete a VPC
    Delete(vpc::Delete),
    /// Subnets
    #[command(subcommand)]
    Subnet(subnet::Subnet),
    /// Network interfaces of workloads
    #[command(subcommand)]
    Nic(nic::Nic),
    /// Virtual routers
    #[command(subcommand)]
    Router(router::Router),
    /// Static routes of routers
    #[command(subcommand)]
    Route(route::Route),
    /// Address translation of routers
    #[command(subcommand)]
    Nat(route::Nat),
    /// Public addresses
    #[command(subcommand, name = "publicip")]
    PublicIp(public_ip::PublicIp),
    /// Replicated disks
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Networks outside of the cluster
    #[command(subcommand)]
    External(external::External),
    /// Changes as they happen
    Watch(watch::Watch),
    /// EVPN sessions and routes of this host's agent
    #[command(subcommand)]
    Evpn(evpn::Evpn),
    /// The userspace transport of this host
    #[command(subcommand)]
    Datapath(datapath::Datapath),
    /// The replicas and attached volumes of this host
    #[command(subcommand)]
    Storage(storage::Storage),
    /// Frames of NICs of this host, as they pass
    Capture(capture::Capture),
    /// What this host can do, what is missing and the remedy
    Doctor(doctor::Doctor),
    /// A whole cluster on this machine, each host its own set of namespaces
    #[command(subcommand)]
    Lab(lab::cli::Lab),
    /// VPCs on this host, by its agent's own API
    #[command(subcommand, hide = true)]
    Stack(l2::Stack),
    /// NICs on this host, by its agent's own API
    #[command(subcommand, hide = true)]
    Port(l2::Port),
    /// Words for the shell to complete
    Completion(completion::Completion),
}

impl Cli {
    /// Does it.
    pub(crate) fn run(self) -> Outcome {
        let global = self.global;
        match self.command {
            Command::Server(command) => command.run(&global),
            Command::Agent(command) => command.run(&global),
            Command::Host(command) => command.run(&global),
            Command::Account(command) => command.run(&global),
            Command::Create(command) => command.run(&global),
            Command::List(command) => command.run(&global),
            Command::Show(command) => command.run(&global),
            Command::Delete(command) => command.run(&global),
            Command::Subnet(command) => command.run(&global),
            Command::Nic(command) => command.run(&global),
            Command::Router(command) => command.run(&global),
            Command::Route(command) => command.run(&global),
            Command::Nat(command) => command.run(&global),
            Command::PublicIp(command) => command.run(&global),
            Command::Volume(command) => command.run(&global),
            Command::External(command) => command.run(&global),
            Command::Watch(command) => command.run(&global),
            Command::Evpn(command) => command.run(&global),
            Command::Datapath(command) => command.run(&global),
            Command::Storage(command) => command.run(&global),
            Command::Capture(command) => command.run(&global),
            Command::Doctor(command) => command.run(&global),
            Command::Lab(command) => command.run(&global),
            Command::Stack(command) => command.run(&global),
            Command::Port(command) => command.run(&global),
            Command::Completion(command) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_sound_and_every_command_has_an_example() {
        let mut root = Cli::command();
        root.build();
        root.clone().debug_assert();
        let mut without = Vec::new();
        visit(&root, "vpc", &mut without);
        assert_eq!(without, Vec::<String>::new());
    }

    fn visit(command: &clap::Command, path: &str, without: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            if sub.get_name() == "help" {
                continue;
            }
            let example = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            if !sub.has_subcommands() && !example.contains("vpc ") {
                without.push(path.clone());
            }
            visit(sub, &path, without);
        }
    }
}
