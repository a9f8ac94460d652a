//! `vpc lab`.

use super::control::{self, Request};
use super::spec::UnderlayKind;
use super::state::{LabDir, LabState};
use super::up::Wanted;
use super::{DEFAULT_NAME, cluster, demo, down, enter, holder, probe, sniff, status, told, up};
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::remark;
use crate::settings::ReflectorKind;
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

/// A whole cluster on this machine.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Bring a lab up and wait until all of it works
    #[command(after_help = "Examples:
  vpc lab up
  vpc lab up --hosts 4 --mtu 9000
  vpc lab up --hosts m1,c1,c2,c3,r1
  vpc lab up --speaker c1=frr             FRR as the EVPN client of c1
  vpc lab up --transport tap              the userspace transport on all hosts
  vpc lab up --transport c2=tap           on one, beside the kernel's on the others
  vpc lab up --reflector frr              FRR as the route reflector; external: GoBGP
  vpc lab up --name second --hosts 1      beside the first

Hosts: m1 (management), c1 and c2 (compute), r1 (route), ext (on the outside network, no agent).
Underlay: 100.64.0.0/24, m1 is .1. Outside: 198.51.100.0/24 and 2001:db8:64::/64, ext is .1;
route hosts have a bridge to it, br-ext, which is external network \"ext\".")]
    Up {
        #[command(flatten)]
        name: NameArg,
        #[command(flatten)]
        shape: Shape,
        /// Hosts and cables only: no server, no agents
        #[arg(long)]
        bare: bool,
    },
    /// Bring a lab up, or take the one that is up; build VPCs; show what reaches what
    #[command(after_help = "Examples:
  vpc lab demo
  vpc lab demo --transport tap
  vpc lab demo --down      and take it down afterwards

Exit status 1 if one line is not as it should be.")]
    Demo {
        #[command(flatten)]
        name: NameArg,
        #[command(flatten)]
        shape: Shape,
        /// Leave the lab up at the end, as is the default
        #[arg(long, conflicts_with = "down")]
        keep: bool,
        /// Take the lab down at the end
        #[arg(long)]
        down: bool,
    },
    /// Run a command on a lab host
    #[command(after_help = "Examples:
  vpc lab exec m1 -- vpc host list
  vpc lab exec c1 -- bridge fdb
  vpc lab exec c1/a1 -- ping -c1 10.4.1.3      in the namespace a1 on c1
  vpc lab exec c1 -- bash

The exit status is the command's.")]
    Exec {
        #[command(flatten)]
        name: NameArg,
        /// HOST, or HOST/NAMESPACE for a workload's namespace on it
        place: String,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Take a lab down, whatever state it is in; nothing is left behind
    #[command(after_help = "Examples:\n  vpc lab down\n  vpc lab down --all")]
    Down {
        #[command(flatten)]
        name: NameArg,
        /// All labs on this machine
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// What is up, and where the logs are
    #[command(after_help = "Examples:\n  vpc lab status\n  vpc lab status -o json")]
    Status {
        #[command(flatten)]
        name: NameArg,
    },
    /// Kill a daemon of a lab host, as a crash would
    #[command(hide = true, after_help = "Examples:\n  vpc lab kill c1 agent")]
    Kill {
        #[command(flatten)]
        name: NameArg,
        /// HOST
        host: String,
        /// Which daemon
        daemon: DaemonKind,
        /// The signal's number: 9 is KILL, 15 is TERM, 19 is STOP
        #[arg(long, default_value_t = 9)]
        signal: i32,
    },
    /// Start a daemon of a lab host
    #[command(hide = true, after_help = "Examples:\n  vpc lab start c1 agent")]
    Start {
        #[command(flatten)]
        name: NameArg,
        /// HOST
        host: String,
        /// Which daemon
        daemon: DaemonKind,
        /// More arguments for it
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// The process that is a lab host
    #[command(hide = true)]
    Holder {
        #[command(flatten)]
        name: NameArg,
        host: String,
        #[arg(long)]
        inside: bool,
    },
    /// The second half of `exec`
    #[command(hide = true)]
    Inside {
        #[command(flatten)]
        name: NameArg,
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        parent: Option<i32>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Answer everyone who asks with a name
    #[command(hide = true)]
    Answer {
        identity: String,
        /// Say also who asked
        #[arg(long)]
        source: bool,
    },
    /// Ask who is at addresses, ping them, and ask everyone on the link
    #[command(hide = true)]
    Ask {
        #[arg(long)]
        broadcast: Ipv4Addr,
        #[arg(long, default_value = "eth0")]
        device: String,
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Ask a router for a name's address and for oneself
    #[command(hide = true)]
    Told {
        #[arg(long)]
        resolver: IpAddr,
        name: String,
    },
    /// Count what comes in at interfaces until standard input ends
    #[command(hide = true)]
    Sniff {
        #[arg(required = true)]
        interfaces: Vec<String>,
    },
}

/// Which lab.
#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Which lab, where several are up
    #[arg(long, env = "VPC_LAB", default_value = DEFAULT_NAME, hide_default_value = true)]
    name: String,
}

/// What a lab is like.
#[derive(Debug, Args)]
pub(crate) struct Shape {
    /// A number of compute hosts, or names: m1, c1, r1 by what they are, or NAME:ROLE+ROLE
    #[arg(long)]
    hosts: Option<String>,
    /// What the underlay speaks
    #[arg(long, value_enum, default_value = "ipv4")]
    underlay: UnderlayKind,
    /// What the underlay carries
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1330..=65535))]
    mtu: u32,
    /// Who speaks EVPN on the hosts, builtin or frr (but for m1, where the reflector is); or on one of
    /// them, as in c1=frr; may be given several times
    #[arg(long, value_delimiter = ',', value_name = "[HOST=]SPEAKER")]
    speaker: Vec<String>,
    /// What reflects routes; external is GoBGP
    #[arg(long, value_enum, default_value = "builtin")]
    reflector: ReflectorKind,
    /// What carries frames to other hosts, kernel or tap; or from one of them, as in c2=tap; may be
    /// given several times
    #[arg(long, value_delimiter = ',', value_name = "[HOST=]TRANSPORT")]
    transport: Vec<String>,
}

/// Daemons of a lab host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DaemonKind {
    /// `vpc agent run`
    Agent,
    /// `vpc server run`
    Server,
    /// gobgpd, of a lab whose reflector is external
    Reflector,
}

impl DaemonKind {
    /// As logs and holders call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Reflector => "reflector",
        }
    }
}

impl NameArg {
    fn lab(&self) -> Outcome<LabDir> {
        LabDir::new(&self.name)
    }
}

impl Shape {
    fn wanted(&self, bare: bool) -> Wanted<'_> {
        Wanted {
            hosts: self.hosts.as_deref(),
            underlay: self.underlay,
            mtu: self.mtu,
            reflector: self.reflector,
            speakers: &self.speaker,
            transports: &self.transport,
            bare,
        }
    }
}

impl Lab {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Up { name, shape, bare } => {
                let lab = name.lab()?;
                up::bring_up(&lab, &shape.wanted(bare))?;
                status::show(&lab, global.output)
            }
            Self::Demo {
                name,
                shape,
                keep: _,
                down,
            } => {
                let lab = name.lab()?;
                demo::run(&lab, &shape.wanted(false), global.output, down)
            }
            Self::Exec {
                name,
                place,
                command,
            } => {
                let lab = name.lab()?;
                let state = lab.loaded()?;
                let (host, netns) = enter::parse_place(&place);
                let host = state.host(host)?;
                match enter::run_on(&lab, host, &state.binary, netns, &command)? {
                    0 => Ok(()),
                    code => Err(Failure::silent(code)),
                }
            }
            Self::Down { name, all } => {
                let labs = match all {
                    true => LabDir::all()?,
                    false => vec![name.lab()?],
                };
                for lab in labs {
                    if down::take_down(&lab)? {
                        remark(&format!("Lab {} is down.", lab.name()));
                    }
                }
                Ok(())
            }
            Self::Status { name } => status::show(&name.lab()?, global.output),
            Self::Kill {
                name,
                host,
                daemon,
                signal,
            } => {
                let lab = name.lab()?;
                lab.loaded()?.host(&host)?.living_holder()?;
                let daemon = daemon.name().to_owned();
                control::ask(&lab, &host, &Request::Signal { daemon, signal }).map(drop)
            }
            Self::Start {
                name,
                host,
                daemon,
                arguments,
            } => {
                let lab = name.lab()?;
                let state: LabState = lab.loaded()?;
                let host = state.host(&host)?;
                host.living_holder()?;
                cluster::start(&lab, host, daemon, &arguments)
            }
            Self::Holder { name, host, inside } => match inside {
                false => holder::begin(&name.lab()?, &host),
                true => holder::live(&name.lab()?, &host),
            },
            Self::Inside {
                name: _,
                netns,
                parent,
                command,
            } => enter::become_command(netns.as_deref(), parent, &command),
            Self::Answer { identity, source } => probe::answer(&identity, source),
            Self::Ask {
                broadcast,
                device,
                addresses,
            } => probe::ask(&addresses, broadcast, &device),
            Self::Told { resolver, name } => told::ask(resolver, &name),
            Self::Sniff { interfaces } => sniff::count(&interfaces),
        }
    }
}
