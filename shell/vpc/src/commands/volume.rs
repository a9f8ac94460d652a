//! `vpc volume`.

use super::request::{Creation, Deletion, Management, Selection, Until, get, pages, wait_applied};
use super::vpc::check_name;
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use crate::options::{Global, Wait};
use crate::views::VolumeView;
use api::tonic::{Response, Status};
use api::v1;
use clap::{Args, Subcommand};
use model::VolumeSize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Replicated disks.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume on hosts with the role storage
    #[command(after_help = "Examples:
  vpc volume create data --size 10GiB
  vpc volume create acme/scratch --size 500MiB --replicas 1 --wait")]
    Create(Box<Create>),
    /// List volumes; the host with a star leads
    #[command(after_help = "Examples:\n  vpc volume list\n  vpc volume list acme -o json")]
    List {
        /// Only those of this account
        account: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Show a volume, its replicas and how they are
    #[command(after_help = "Examples:\n  vpc volume show data\n  vpc volume show data -o json")]
    Show {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
    },
    /// Serve a volume on a host; where it was attached before, it is fenced off
    #[command(after_help = "Examples:
  vpc volume attach data --host c1 --wait
  vpc volume attach data --host c1 --wait -o json      its \"uri\" is for any NBD client on c1
  vpc volume attach data --host c2 --tcp-port 10809
  vpc volume attach data --host c1 --read-only         and on c2, and c3: any number of hosts may read")]
    Attach(Attach),
    /// Serve a volume nowhere, or on one host less
    #[command(after_help = "Examples:
  vpc volume detach data --wait
  vpc volume detach data --host c2      the other hosts read on")]
    Detach {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// There only
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make a volume larger; clients that connect then see the new size
    #[command(after_help = "Examples:
  vpc volume resize data 20GiB
  vpc volume resize data 20GiB --wait")]
    Resize {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// What it is to have, as in 20GiB
        size: VolumeSize,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have more replicas of a volume, or fewer
    #[command(after_help = "Examples:\n  vpc volume set-replicas data 5 --wait")]
    SetReplicas {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// On how many hosts: 1, 3 or 5
        replicas: u32,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have a replica on another host: it is filled there first, then the old one goes
    #[command(after_help = "Examples:
  vpc volume move data --from s1 --wait
  vpc volume move data --from s1 --to s4")]
    Move {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// The host that has it
        #[arg(long, value_name = "HOST")]
        from: String,
        /// The host that gets it; without it one that has room
        #[arg(long, value_name = "HOST")]
        to: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Go on from the replica that has most, when too many are lost for good to have a majority
    #[command(after_help = "Examples:
  vpc volume recover data                              says what would be lost
  vpc volume recover data --dead s2 --dead s3 --accept-loss --wait
What is attached is detached: its clients remember what may be lost.")]
    Recover {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// What only the other replicas have may be lost
        #[arg(long)]
        accept_loss: bool,
        /// A host whose replica never comes back, although nothing says so
        #[arg(long, value_name = "HOST")]
        dead: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete a volume that is not attached; for three days it can be restored
    #[command(after_help = "Examples:
  vpc volume delete data
  vpc volume delete data --keep 0      at once, and for good")]
    Delete {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
        /// How long it can be restored
        #[arg(long, value_name = "SECONDS")]
        keep: Option<u64>,
        #[command(flatten)]
        deletion: Deletion,
    },
    /// Undo the deletion of a volume
    #[command(after_help = "Examples:\n  vpc volume restore data")]
    Restore {
        /// NAME, ACCOUNT/NAME or id:ID
        volume: String,
    },
}

/// `vpc volume create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// NAME or ACCOUNT/NAME
    name: String,
    /// As in 10GiB
    #[arg(long)]
    size: VolumeSize,
    /// On how many hosts: 1, 3 or 5
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: u32,
    #[command(flatten)]
    creation: Creation,
    #[command(flatten)]
    wait: Wait,
}

/// `vpc volume attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// NAME, ACCOUNT/NAME or id:ID
    volume: String,
    /// The host; it needs no replica of it
    #[arg(long)]
    host: String,
    /// Nothing can be written
    #[arg(long)]
    read_only: bool,
    /// A port on the host's loopback address, beside the socket; whoever is on that host can use it
    #[arg(long, value_name = "PORT")]
    tcp_port: Option<u16>,
    #[command(flatten)]
    wait: Wait,
}

/// Between looks at a volume that is being attached: the server hears of it by reports.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Volume {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::List { account, selection } => list(global, account.as_deref(), &selection),
            Self::Show { volume } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("showing volume {volume}");
                let view = found(&mut client, &doing, &volume).await?;
                global.output.one(&view, &view.details())
            }),
            Self::Attach(attach) => attach.run(global),
            Self::Detach { volume, host, wait } => block_on(async {
                let doing = format!("detaching volume {volume}");
                let mut client = global.server.management().await?;
                let from = host.as_deref().map(reference);
                let changed = change(&mut client, &doing, &volume, (None, from)).await?;
                let until = Until::Object(v1::Kind::Volume, &changed.id);
                let what = format!("volume {}", changed.path);
                wait_applied(&mut client, &what, until, wait.deadline()).await?;
                global.output.one(&changed, &changed.details())
            }),
            Self::Resize { volume, size, wait } => block_on(async {
                let doing = format!("resizing volume {volume}");
                let request = v1::ResizeVolumeRequest {
                    request_id: fresh_id(),
                    object: Some(reference(&volume)),
                    resource_version: 0,
                    size_bytes: size.bytes(),
                };
                let mut client = global.server.management().await?;
                let changed = client.resize_volume(request).await;
                let is_done = |view: &VolumeView| view.has_size(size.bytes());
                changed_until(global, &mut client, &doing, changed, wait, is_done).await
            }),
            Self::SetReplicas {
                volume,
                replicas,
                wait,
            } => block_on(async {
                let doing = format!("setting the replicas of volume {volume}");
                let request = v1::SetReplicasRequest {
                    request_id: fresh_id(),
                    object: Some(reference(&volume)),
                    resource_version: 0,
                    replicas,
                };
                let mut client = global.server.management().await?;
                let changed = client.set_replicas(request).await;
                let is_done = VolumeView::is_settled;
                changed_until(global, &mut client, &doing, changed, wait, is_done).await
            }),
            Self::Move {
                volume,
                from,
                to,
                wait,
            } => block_on(async {
                let doing = format!("moving a replica of volume {volume} from host {from}");
                let request = v1::MoveReplicaRequest {
                    request_id: fresh_id(),
                    object: Some(reference(&volume)),
                    resource_version: 0,
                    from: Some(reference(&from)),
                    to: to.as_deref().map(reference),
                };
                let mut client = global.server.management().await?;
                let changed = client.move_replica(request).await;
                let is_done = VolumeView::is_settled;
                changed_until(global, &mut client, &doing, changed, wait, is_done).await
            }),
            Self::Recover {
                volume,
                accept_loss,
                dead,
                wait,
            } => block_on(async {
                let doing = format!("recovering volume {volume}");
                let request = v1::RecoverVolumeRequest {
                    request_id: fresh_id(),
                    object: Some(reference(&volume)),
                    resource_version: 0,
                    accept_loss,
                    dead: dead.iter().map(|host| reference(host)).collect(),
                };
                let mut client = global.server.management().await?;
                let changed = client.recover_volume(request).await;
                let is_done = VolumeView::is_led_as_placed;
                changed_until(global, &mut client, &doing, changed, wait, is_done).await
            }),
            Self::Delete {
                volume,
                keep,
                deletion,
            } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("deleting volume {volume}");
                let request = v1::DeleteVolumeRequest {
                    object: Some(reference(&volume)),
                    resource_version: deletion.resource_version,
                    keep_seconds: keep,
                };
                client
                    .delete_volume(request)
                    .await
                    .map(drop)
                    .map_err(|status| refused(&doing, &status))
            }),
            Self::Restore { volume } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("restoring volume {volume}");
                let request = v1::RestoreVolumeRequest {
                    request_id: fresh_id(),
                    object: Some(reference(&volume)),
                    resource_version: 0,
                };
                let restored = client.restore_volume(request).await;
                let restored = restored.map_err(|status| refused(&doing, &status))?;
                let view = VolumeView::from(restored.into_inner());
                global.output.one(&view, &view.details())
            }),
        }
    }
}

fn list(global: &Global, account: Option<&str>, selection: &Selection) -> Outcome {
    let filter = v1::Filter {
        parent_kind: match account {
            Some(_) => v1::Kind::Account.into(),
            None => v1::Kind::Unspecified.into(),
        },
        parent: account.map(reference),
        ..selection.filter()
    };
    block_on(async {
        let client = global.server.management().await?;
        let all = pages("listing volumes", filter, |request| {
            let mut client = client.clone();
            async move {
                let page = client.list_volumes(request).await?.into_inner();
                Ok((page.volumes, page.next_page_token))
            }
        })
        .await?;
        let mut views: Vec<VolumeView> = all.into_iter().map(Into::into).collect();
        views.sort_by(|a, b| a.path.cmp(&b.path));
        global.output.many(&views)
    })
}

async fn found(client: &mut Management, doing: &str, volume: &str) -> Outcome<VolumeView> {
    let found = client.get_volume(get(volume)).await;
    let found = found.map_err(|status| refused(doing, &status))?;
    Ok(found.into_inner().into())
}

async fn change(
    client: &mut Management,
    doing: &str,
    volume: &str,
    (to, from): (Option<v1::attach_volume_request::To>, Option<v1::Ref>),
) -> Outcome<VolumeView> {
    let request = v1::AttachVolumeRequest {
        request_id: fresh_id(),
        object: Some(reference(volume)),
        resource_version: 0,
        to,
        from,
    };
    let changed = client.attach_volume(request).await;
    let changed = changed.map_err(|status| refused(doing, &status))?;
    Ok(changed.into_inner().into())
}

/// Shows a volume that was changed, when it is as it should be if that is to be waited for.
async fn changed_until(
    global: &Global,
    client: &mut Management,
    doing: &str,
    changed: Result<Response<v1::Volume>, Status>,
    wait: Wait,
    holds: impl Fn(&VolumeView) -> bool,
) -> Outcome {
    let changed = changed.map_err(|status| refused(doing, &status))?;
    let mut view = VolumeView::from(changed.into_inner());
    if let Some(wait) = wait.deadline() {
        let by_id = format!("id:{}", view.id);
        view = until(client, doing, &by_id, wait, holds).await?;
    }
    global.output.one(&view, &view.details())
}

/// Looks at a volume until it is as it should be.
async fn until(
    client: &mut Management,
    doing: &str,
    volume: &str,
    wait: Duration,
    holds: impl Fn(&VolumeView) -> bool,
) -> Outcome<VolumeView> {
    let deadline = Instant::now() + wait;
    loop {
        let view = found(client, doing, volume).await?;
        if holds(&view) {
            return Ok(view);
        }
        if Instant::now() >= deadline {
            let why = view.trouble().unwrap_or("its hosts are still at work");
            let said = format!("{doing}: the change is saved, but not made true in time: {why}");
            return Err(Failure::new(said).hint(format!("see vpc volume show {volume}")));
        }
        sleep(LOOK_EVERY).await;
    }
}

fn fresh_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Attach {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("attaching volume {}", self.volume);
        let to = v1::attach_volume_request::To {
            host: Some(reference(&self.host)),
            read_only: self.read_only,
            tcp_port: self.tcp_port.map_or(0, Into::into),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let mut view = change(&mut client, &doing, &self.volume, (Some(to), None)).await?;
            if let Some(wait) = self.wait.deadline() {
                let by_id = format!("id:{}", view.id);
                let is_attached = |view: &VolumeView| view.is_attached_to(&self.host);
                view = until(&mut client, &doing, &by_id, wait, is_attached).await?;
            }
            view.look_from(&self.host);
            global.output.one(&view, &view.details())
        })
    }
}

impl Create {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating volume {}", self.name);
        let (account, name) = match self.name.rsplit_once('/') {
            Some((account, name)) => (Some(account), name),
            None => (None, self.name.as_str()),
        };
        check_name(&doing, name)?;
        let request = v1::CreateVolumeRequest {
            request_id: self.creation.request_id(),
            account: account.map(reference),
            name: name.to_owned(),
            size_bytes: self.size.bytes(),
            replicas: self.replicas,
            labels: self.creation.labels(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client.create_volume(request).await;
            let made = made.map_err(|status| refused(&doing, &status))?;
            let mut view = VolumeView::from(made.into_inner());
            if let Some(wait) = self.wait.deadline() {
                let by_id = format!("id:{}", view.id);
                view = until(&mut client, &doing, &by_id, wait, VolumeView::is_healthy).await?;
            }
            global.output.one(&view, &view.details())
        })
    }
}
