//! `vpc watch`.

use crate::block_on;
use crate::connect::refused;
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{remark, time};
use crate::views::{
    AccountView, ExternalView, HostView, NicView, PublicIpView, RouterView, SubnetView, VolumeView,
    VpcView, short, word,
};
use api::tonic::{Code, Status};
use api::v1;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::time::Duration;

/// How long to let a server that went away come back before each new try.
const RETRY: Duration = Duration::from_secs(1);

/// `vpc watch`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpc watch
  vpc watch --kind nic --from 0 -o json      all NICs there are, then what changes
  vpc watch --from 4711                      go on after revision 4711

With -o json each line is one object with a field \"event\": change, progress or host_liveness.")]
pub(crate) struct Watch {
    /// Only these kinds of objects
    #[arg(long, value_delimiter = ',')]
    kind: Vec<WatchedKind>,
    /// Changes after this revision; 0 for what there is first. Now, if not given
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
}

/// Kinds of objects.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum WatchedKind {
    Account,
    Vpc,
    Subnet,
    Nic,
    Host,
    Router,
    External,
    #[value(name = "publicip")]
    PublicIp,
    Volume,
}

/// One line of the watch.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Change {
        revision: u64,
        at: String,
        kind: &'static str,
        /// True if it is gone; the object is as it was last.
        deleted: bool,
        object: Object,
    },
    Progress {
        revision: u64,
        snapshot_complete: bool,
    },
    HostLiveness {
        host_id: String,
        host_name: String,
        state: String,
    },
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Object {
    Account(AccountView),
    Vpc(Box<VpcView>),
    Subnet(Box<SubnetView>),
    Nic(Box<NicView>),
    Host(Box<HostView>),
    Router(Box<RouterView>),
    External(Box<ExternalView>),
    PublicIp(Box<PublicIpView>),
    Volume(Box<VolumeView>),
}

impl Watch {
    /// Goes on until it is interrupted; a server that goes away is asked again.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        block_on(async {
            let mut from = match self.from {
                Some(revision) => revision,
                None => now(global).await?,
            };
            let mut seen = false;
            loop {
                let ended = self.follow(global, &mut from, &mut seen).await;
                match ended {
                    Err(Ended::For(failure)) => return Err(failure),
                    Err(Ended::Away(reason)) if seen => {
                        remark(&format!("{reason}; going on from revision {from}"));
                        tokio::time::sleep(RETRY).await;
                    }
                    Err(Ended::Away(reason)) => return Err(reason_only(reason)),
                    Ok(()) => {}
                }
            }
        })
    }

    async fn follow(&self, global: &Global, from: &mut u64, seen: &mut bool) -> Result<(), Ended> {
        let mut client = match global.server.management().await {
            Ok(client) => client,
            Err(failure) if *seen => return Err(Ended::Away(failure.message().to_owned())),
            Err(failure) => return Err(Ended::For(failure)),
        };
        let request = v1::WatchRequest {
            from_revision: *from,
            kinds: self.kind.iter().map(|kind| kind.wire().into()).collect(),
            filter: None,
        };
        let mut stream = client
            .watch(request)
            .await
            .map_err(Ended::from)?
            .into_inner();
        *seen = true;
        while let Some(event) = stream.message().await.map_err(Ended::from)? {
            if let Some(event) = event.event {
                show(global, event, from).map_err(Ended::For)?;
            }
        }
        Ok(())
    }
}

fn reason_only(reason: String) -> Failure {
    Failure::new(reason)
}

async fn now(global: &Global) -> Outcome<u64> {
    let mut client = global.server.management().await?;
    let info = client
        .get_server_info(v1::GetServerInfoRequest {})
        .await
        .map_err(|status| refused("asking the server for its revision", &status))?;
    Ok(info.into_inner().revision)
}

/// Why a stream ended.
enum Ended {
    /// The server went away; it may be back.
    Away(String),
    /// There is no going on.
    For(Failure),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                Self::Away(format!("watching: {}", status.message()))
            }
            Code::OutOfRange => Self::For(
                refused("watching", &status)
                    .hint("its history does not reach back so far: use --from 0"),
            ),
            _ => Self::For(refused("watching", &status)),
        }
    }
}

impl WatchedKind {
    const fn wire(self) -> v1::Kind {
        match self {
            Self::Account => v1::Kind::Account,
            Self::Vpc => v1::Kind::Vpc,
            Self::Subnet => v1::Kind::Subnet,
            Self::Nic => v1::Kind::Nic,
            Self::Host => v1::Kind::Host,
            Self::Router => v1::Kind::Router,
            Self::External => v1::Kind::External,
            Self::PublicIp => v1::Kind::PublicIp,
            Self::Volume => v1::Kind::Volume,
        }
    }
}

fn show(global: &Global, event: v1::watch_event::Event, from: &mut u64) -> Outcome {
    use v1::change::Object as Wire;
    use v1::watch_event::Event;
    let (line, text) = match event {
        Event::Change(change) => {
            *from = (*from).max(change.revision);
            let Some(object) = change.object else {
                return Ok(());
            };
            let (kind, name, object) = match object {
                Wire::Account(o) => ("account", o.name.clone(), Object::Account(o.into())),
                Wire::Vpc(o) => (
                    "vpc",
                    short(&o.path).to_owned(),
                    Object::Vpc(Box::new(o.into())),
                ),
                Wire::Subnet(o) => (
                    "subnet",
                    short(&o.path).to_owned(),
                    Object::Subnet(Box::new(o.into())),
                ),
                Wire::Nic(o) => (
                    "nic",
                    short(&o.path).to_owned(),
                    Object::Nic(Box::new(o.into())),
                ),
                Wire::Router(o) => (
                    "router",
                    short(&o.path).to_owned(),
                    Object::Router(Box::new(o.into())),
                ),
                Wire::External(o) => (
                    "external",
                    o.name.clone(),
                    Object::External(Box::new(o.into())),
                ),
                Wire::PublicIp(o) => (
                    "publicip",
                    short(&o.path).to_owned(),
                    Object::PublicIp(Box::new(o.into())),
                ),
                Wire::Volume(o) => (
                    "volume",
                    short(&o.path).to_owned(),
                    Object::Volume(Box::new(o.into())),
                ),
                Wire::Host(o) => ("host", o.name.clone(), Object::Host(Box::new(o.into()))),
            };
            let at = time(change.at_unix_ms);
            let verb = if change.deleted { "deleted" } else { "is" };
            let text = format!("{:>8}  {at}  {kind:<8}  {verb:<7}  {name}", change.revision);
            let line = Line::Change {
                revision: change.revision,
                at,
                kind,
                deleted: change.deleted,
                object,
            };
            (line, text)
        }
        Event::Progress(progress) => {
            *from = (*from).max(progress.revision);
            let line = Line::Progress {
                revision: progress.revision,
                snapshot_complete: progress.snapshot_complete,
            };
            if global.output == crate::output::Format::Table {
                return Ok(());
            }
            (line, String::new())
        }
        Event::HostLiveness(host) => {
            let state = word(host.liveness().as_str_name(), "LIVENESS_");
            let text = format!(
                "{:>8}  {:24}  host      {state:<7}  {}",
                "", "", host.host_name
            );
            let line = Line::HostLiveness {
                host_id: host.host_id,
                host_name: host.host_name,
                state,
            };
            (line, text)
        }
    };
    global.output.event(&line, || text)
}
