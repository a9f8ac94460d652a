//! `vpc router`.

use super::request::{
    Creation, Deletion, Management, Selection, Until, get, pages, parent_and_name, wait_applied,
};
use super::vpc::check_name;
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use crate::options::{Global, Wait};
use crate::output::{Format, print};
use crate::views::RouterView;
use api::tonic::Status;
use api::v1;
use api::v1::update_router_request::{Change, Place, Standby, Uplink};
use clap::{Args, Subcommand};
use tokio::time::timeout;

/// Virtual routers.
#[derive(Debug, Subcommand)]
pub(crate) enum Router {
    /// Create a router: the gateway of subnets, and their way out
    #[command(after_help = "Examples:
  vpc router create blue/gw --subnet web --subnet db
  vpc router create blue/gw --subnet web --subnet db --uplink --nat --wait
  vpc router create blue/gw --subnet web --uplink ext --host r1
  vpc router create blue/gw --subnet web --uplink --nat --standby")]
    Create(Box<Create>),
    /// List routers
    #[command(after_help = "Examples:
  vpc router list
  vpc router list blue
  vpc router list --host r1 -o json")]
    List {
        /// Only those of this VPC
        vpc: Option<String>,
        /// Only those on this host
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Show a router's legs, routes and address translation, and what is wrong with it
    #[command(after_help = "Examples:\n  vpc router show blue/gw")]
    Show {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
    },
    /// Give a router a leg in one more subnet of its VPC
    #[command(after_help = "Examples:\n  vpc router attach blue/gw app --wait")]
    Attach {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// The subnet's name, or its path
        subnet: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a router's leg out of a subnet
    #[command(after_help = "Examples:\n  vpc router detach blue/gw app --wait")]
    Detach {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// The subnet's name, or its path
        subnet: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a router its way out, or take it away
    #[command(after_help = "Examples:
  vpc router uplink blue/gw
  vpc router uplink blue/gw ext --wait
  vpc router uplink blue/gw --none")]
    Uplink {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// The external network; the only one there is, if not given
        network: Option<String>,
        /// No way out any more
        #[arg(long, conflicts_with = "network")]
        none: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Run a router on another route host, with its addresses and MACs
    #[command(after_help = "Examples:
  vpc router move blue/gw
  vpc router move blue/gw --host r2 --wait")]
    Move {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// Where to; its standby, or else the route host with the fewest routers, if not given
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have another route host know the connections that a router tracks, and take it over with them
    ///
    /// When the router's host fails, connections go on that are established. The standby gives way to another
    /// host when it is down or drains; `vpc router show` says who it is and how far behind.
    #[command(after_help = "Examples:
  vpc router standby blue/gw
  vpc router standby blue/gw r2 --wait
  vpc router standby blue/gw --none")]
    Standby {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// The route host that stands by; one that is chosen, if not given
        host: Option<String>,
        /// Nobody stands by any more
        #[arg(long, conflicts_with = "host")]
        none: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete a router
    #[command(after_help = "Examples:\n  vpc router delete blue/gw --wait")]
    Delete {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        #[command(flatten)]
        deletion: Deletion,
        #[command(flatten)]
        wait: Wait,
    },
}

/// `vpc router create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// VPC/NAME or ACCOUNT/VPC/NAME
    router: String,
    /// A subnet that it is the gateway of: its name in the VPC, or its path; may be given several
    /// times
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// Its way out: an external network; the only one there is, if none is named
    #[arg(long, value_name = "NETWORK", num_args = 0..=1, default_missing_value = "")]
    uplink: Option<String>,
    /// What goes out has the router's address as its source (IPv4)
    #[arg(long, requires = "uplink")]
    nat: bool,
    /// As --nat, for IPv6 as well
    #[arg(long, requires = "uplink")]
    nat6: bool,
    /// The route host that it runs on; the one with the fewest routers, if not given
    #[arg(long)]
    host: Option<String>,
    /// A route host that takes it over with its connections when that fails; one that is chosen, if none is
    /// named
    #[arg(long, value_name = "HOST", num_args = 0..=1, default_missing_value = "")]
    standby: Option<String>,
    #[command(flatten)]
    creation: Creation,
    #[command(flatten)]
    wait: Wait,
}

/// A subnet of the router's VPC by its name, or any by its path.
pub(super) fn subnet_of(router: &str, subnet: &str) -> v1::Ref {
    match (subnet.contains(['/', ':']), router.rsplit_once('/')) {
        (false, Some((vpc, _))) => reference(&format!("{vpc}/{subnet}")),
        _ => reference(subnet),
    }
}

/// An external network; the only one there is, if the name is empty.
pub(super) fn outside(network: &str) -> v1::Outside {
    let network = Some(network).filter(|name| !name.is_empty());
    v1::Outside {
        network: network.map(reference),
    }
}

/// The host that stands by; one that is chosen, if the name is empty.
fn standby_host(host: &str) -> v1::StandbyHost {
    let host = Some(host).filter(|name| !name.is_empty());
    v1::StandbyHost {
        host: host.map(reference),
    }
}

impl Router {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::List {
                vpc,
                host,
                selection,
            } => {
                let filter = v1::Filter {
                    parent_kind: match vpc {
                        Some(_) => v1::Kind::Vpc.into(),
                        None => v1::Kind::Unspecified.into(),
                    },
                    parent: vpc.as_deref().map(reference),
                    host: host.as_deref().map(reference),
                    ..selection.filter()
                };
                block_on(async {
                    let client = global.server.management().await?;
                    global.output.many(&routers(&client, filter).await?)
                })
            }
            Self::Show { router } => block_on(async {
                let mut client = global.server.management().await?;
                show(global.output, &shown(&mut client, &router).await?)
            }),
            Self::Attach {
                router,
                subnet,
                wait,
            } => {
                let doing = format!("attaching subnet {subnet} to router {router}");
                let leg = subnet_of(&router, &subnet);
                change(global, &doing, &router, Change::Attach(leg), wait)
            }
            Self::Detach {
                router,
                subnet,
                wait,
            } => {
                let doing = format!("detaching subnet {subnet} from router {router}");
                let leg = subnet_of(&router, &subnet);
                change(global, &doing, &router, Change::Detach(leg), wait)
            }
            Self::Uplink {
                router,
                network,
                none,
                wait,
            } => {
                let doing = format!("changing the uplink of router {router}");
                let outside = (!none).then(|| outside(network.as_deref().unwrap_or_default()));
                let uplink = Change::Uplink(Uplink { outside });
                change(global, &doing, &router, uplink, wait)
            }
            Self::Move { router, host, wait } => {
                let doing = format!("moving router {router}");
                let host = host.as_deref().map(reference);
                change(global, &doing, &router, Change::Place(Place { host }), wait)
            }
            Self::Standby {
                router,
                host,
                none,
                wait,
            } => {
                let doing = format!("changing the standby of router {router}");
                let standby = (!none).then(|| standby_host(host.as_deref().unwrap_or_default()));
                let standby = Change::Standby(Standby { standby });
                change(global, &doing, &router, standby, wait)
            }
            Self::Delete {
                router,
                deletion,
                wait,
            } => block_on(async {
                let mut client = global.server.management().await?;
                let what = format!("router {router}");
                let revision = client
                    .delete_router(deletion.of(&router))
                    .await
                    .map_err(|status| refused(&format!("deleting {what}"), &status))?
                    .into_inner()
                    .revision;
                let until = Until::Revision(revision);
                wait_applied(&mut client, &what, until, wait.deadline()).await
            }),
        }
    }
}

impl Create {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating router {}", self.router);
        let (vpc, name) = parent_and_name(&self.router, "blue/gw")?;
        check_name(&doing, name)?;
        let source = match self.nat || self.nat6 {
            true => v1::SourcePolicy::Masquerade,
            false => v1::SourcePolicy::None,
        };
        let request = v1::CreateRouterRequest {
            request_id: self.creation.request_id(),
            vpc: Some(reference(vpc)),
            name: name.to_owned(),
            subnets: self
                .subnet
                .iter()
                .map(|subnet| subnet_of(&self.router, subnet))
                .collect(),
            uplink: self.uplink.as_deref().map(outside),
            source: source.into(),
            source_v6: self.nat6,
            host: self.host.as_deref().map(reference),
            standby: self.standby.as_deref().map(standby_host),
            labels: self.creation.labels(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_router(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            settled(global, &mut client, &doing, made.into_inner(), self.wait).await
        })
    }
}

/// Makes one change of a router, and shows what became of it.
pub(super) fn change(
    global: &Global,
    doing: &str,
    router: &str,
    change: Change,
    wait: Wait,
) -> Outcome {
    block_on(async {
        let mut client = global.server.management().await?;
        let request = v1::UpdateRouterRequest {
            request_id: format!("{:032x}", rand::random::<u128>()),
            object: Some(reference(router)),
            resource_version: 0,
            change: Some(change),
        };
        let changed = client
            .update_router(request)
            .await
            .map_err(|status| refused(doing, &status))?;
        settled(global, &mut client, doing, changed.into_inner(), wait).await
    })
}

/// Waits for the router's host if that is asked for, and shows the router.
async fn settled(
    global: &Global,
    client: &mut Management,
    doing: &str,
    router: v1::Router,
    wait: Wait,
) -> Outcome {
    let Some(deadline) = wait.deadline() else {
        return show(global.output, &router.into());
    };
    let what = format!("router {}", router.path);
    let until = Until::Object(v1::Kind::Router, &router.id);
    if router.moving.is_some() {
        let ends = timeout(deadline, end_of_move(client, router.clone())).await;
        let ended = ends.map_err(|_| {
            Failure::new(format!("{doing}: not done in {} s", deadline.as_secs())).hint(
                "it goes on: `vpc router show` says how far it is; move the router back to end it",
            )
        })?;
        let taken_back = ended.map_err(|status| refused(doing, &status))?;
        if let Some(why) = taken_back {
            return Err(Failure::new(format!("{doing}: {why}"))
                .hint("the router is where it was, and worked there all the while"));
        }
    }
    wait_applied(client, &what, until, Some(deadline)).await?;
    let view = shown(client, &format!("id:{}", router.id)).await?;
    show(global.output, &view)?;
    // A host is done with a change also when a part of it cannot be made for now.
    match view.wrong() {
        None => Ok(()),
        Some(why) => Err(Failure::new(format!("{doing}: {why}")).hint(
            "the change is accepted and the host goes on trying; `vpc router show` shows the router",
        )),
    }
}

/// Follows a router that moves; says why if it was taken back.
async fn end_of_move(
    client: &mut Management,
    mut router: v1::Router,
) -> Result<Option<String>, Status> {
    use v1::change::Object;
    use v1::watch_event::Event;
    let request = v1::WatchRequest {
        from_revision: router.meta.as_ref().map_or(0, |m| m.resource_version),
        kinds: vec![v1::Kind::Router.into()],
        filter: None,
    };
    let mut stream = client.watch(request).await?.into_inner();
    loop {
        match &router.moving {
            None => return Ok(None),
            Some(moving) if !moving.taken_back.is_empty() => {
                return Ok(Some(moving.taken_back.clone()));
            }
            Some(_) => {}
        }
        match stream.message().await? {
            None => return Err(Status::unavailable("the server ended the watch")),
            Some(event) => {
                if let Some(Event::Change(change)) = event.event
                    && let Some(Object::Router(changed)) = change.object
                    && changed.id == router.id
                {
                    if change.deleted {
                        return Err(Status::not_found("the router was deleted meanwhile"));
                    }
                    router = changed;
                }
            }
        }
    }
}

pub(super) async fn shown(client: &mut Management, router: &str) -> Outcome<RouterView> {
    let found = client
        .get_router(get(router))
        .await
        .map_err(|status| refused(&format!("showing router {router}"), &status))?;
    Ok(found.into_inner().into())
}

fn show(output: Format, view: &RouterView) -> Outcome {
    match output {
        Format::Json => crate::output::json(view),
        Format::Table => print(&view.drawing()),
    }
}

/// All routers that a filter leaves.
pub(super) async fn routers(client: &Management, filter: v1::Filter) -> Outcome<Vec<RouterView>> {
    let routers = pages("listing routers", filter, |request| {
        let mut client = client.clone();
        async move {
            let page = client.list_routers(request).await?.into_inner();
            Ok((page.routers, page.next_page_token))
        }
    })
    .await?;
    let mut views: Vec<RouterView> = routers.into_iter().map(Into::into).collect();
    views.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(views)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_one_of_the_routers_vpc_unless_it_says_where() {
        use v1::r#ref::By;
        let by = |router, subnet| subnet_of(router, subnet).by.unwrap();
        assert_eq!(by("blue/gw", "web"), By::Path("blue/web".into()));
        assert_eq!(by("acme/blue/gw", "web"), By::Path("acme/blue/web".into()));
        assert_eq!(by("blue/gw", "red/web"), By::Path("red/web".into()));
        assert_eq!(by("blue/gw", "id:9k3v0c7m2a"), By::Id("9k3v0c7m2a".into()));
        assert_eq!(by("id:9k3v0c7m2a", "blue/web"), By::Path("blue/web".into()));
    }
}
