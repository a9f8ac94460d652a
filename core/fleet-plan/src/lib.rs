//! Intent and commands on it, allocation, and intent + inventory -> HostConfig per host. Pure:
//! no clock, randomness, files or sockets; callers hand in `now` and a seed.
//!
//! How a change flows through it:
//!
//! ```text
//! Command + Context --Intent::decide--> Decision --(store commits its Delta)--> Intent::apply
//!                                                                            -> Rollout::note
//!                                                     Rollout::poll --> HostConfig, generation n
//! ```
//!
//! `decide` changes nothing: when the store answers that another server was faster, reload and
//! decide again with the same `Context`.

mod attachment;
mod command;
mod decide;
mod decision;
mod intent;
mod list;
mod liveness;
mod moving;
mod names;
mod plan;
mod pool;
mod recovery;
mod refusal;
mod rollout;
mod routing;
mod token;
mod volumes;
mod voting;
mod vpc_names;

pub use attachment::AttachmentSpec;
pub use command::{
    BadRequestId, Command, Context, CreateAccount, CreateHost, CreateNic, CreateSubnet, CreateVpc,
    Expect, MoveNic, RequestId, UpdateHost, UpdateSubnet, UpdateVpc,
};
pub use decide::standbys_to_renew;
pub use decision::{
    Decision, Delta, Fingerprint, Hold, REQUEST_KEPT_MILLIS, RequestRecord, Resource,
};
pub use intent::{BrokenIntent, Intent, Rows};
pub use list::{Filter, Page};
pub use liveness::{DOWN_AFTER_MILLIS, down_at, liveness};
pub use moving::{
    MoveStep, PREPARE_MILLIS, PROVISION_MILLIS, SETTLE_MILLIS, SWITCH_MILLIS, Seat,
    TRY_AGAIN_MILLIS, next_router_step, next_step,
};
pub use plan::{Draft, plan};
pub use recovery::{RecoverVolume, ReplicaTold, Standing};
pub use refusal::{Code, Refusal};
pub use rollout::{Digest, Issued, IssuedRow, Rollout};
pub use routing::{
    AttachPublicIp, CreateExternal, CreatePublicIp, CreateRouter, Outside, RouterChange,
    RouterStep, StandbyHost, UpdateRouter,
};
pub use token::{BadToken, JoinToken, TokenRefusal, TokenSecret, TokenUse};
pub use volumes::{
    AttachTo, AttachVolume, CreateVolume, DeleteVolume, DiskRoom, KEEP_DELETED_MILLIS, MoveReplica,
    REPLACE_AFTER_MILLIS, ResizeVolume, SetReplicas, VolumeSeen, VolumeStep, next_volume_steps,
};
pub use voting::Electorate;
