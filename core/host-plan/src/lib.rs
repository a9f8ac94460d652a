//! HostConfig + observed kernel state -> ordered plan of actions. Pure.
//!
//! Entry point: [`plan`]. The same inputs give the same plan; a plan is safe to stop after any
//! step, because the next one starts from what is then observed.

mod action;
mod greeting;
mod machine;
mod names;
mod plan;
mod router;
#[cfg(test)]
mod sample;
mod shared;
mod show;
mod state;
mod uplink;
mod want;

pub use action::{
    Action, BridgePortFlags, Greeting, Inside, Step, Subject, TrunkPair, VethToNetns,
    VlanMembership,
};
pub use datapath::VXLAN_PORT;
pub use greeting::{frames, tagged};
pub use machine::{DhcpUplink, HostMachine, LocalStacks, OuterAddress, Refused, Stale, Trouble};
pub use names::{NotOurs, OwnedName, Stamp};
pub use plan::{Plan, Readiness, plan};
pub use router::{
    DEVICE_SYSCTLS, FLOWS_PER_ROUTER, Fingerprint, Flow, GLOBAL_SYSCTLS, Hop, MAIN_TABLE, NatRule,
    NextHop, NoNatRule, Route, RouteRule, RouterChange, RouterChanges, RouterFirewall, RouterLink,
    RouterState, Way, base_sysctls, device_sysctl, device_sysctls, is_full,
};
pub use shared::Shared;
pub use state::{
    BridgePort, FdbRow, FdbState, FdbTarget, Guard, HostState, InsideLink, Link, LinkKind,
    Neighbour, NetnsState, Scope, Service, Trunk,
};
pub use uplink::{Uplink, uplinks};
pub use want::{Desired, Problem, Told, metadata_addresses, prefixes_of};
