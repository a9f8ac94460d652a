//! VPCs: `vpc create|list|show|delete`.

use super::request::{Creation, Deletion, Management, Selection, Until, get, pages, wait_applied};
use super::router::routers;
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use crate::options::{Global, Wait};
use crate::output::{Format, json, print};
use crate::views::{NicView, RouterView, SubnetView, VpcView};
use api::v1;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;

/// `vpc create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpc create blue --cidr 10.4.0.0/16
  vpc create acme/blue --cidr 10.4.0.0/16 --cidr fd00:4::/32 --encoding vlan-aware-bundle
  vpc create red --cidr 10.5.0.0/16 --routing distributed")]
pub(crate) struct Create {
    /// Its name; ACCOUNT/NAME in another account than "default"
    name: String,
    /// An IPv4 or IPv6 prefix that its subnets come from; may be given several times
    #[arg(long, value_name = "CIDR", required = true)]
    cidr: Vec<String>,
    /// How subnets are told apart on the wire: vlan-based or vlan-aware-bundle
    #[arg(long, value_name = "ENCODING", default_value = "vlan-based")]
    encoding: model::Encoding,
    /// Where its subnets are routed: central (by routers on route hosts) or distributed (on each host
    /// with NICs in it); it cannot be changed
    #[arg(long, value_name = "ROUTING", default_value = "central")]
    routing: model::Routing,
    /// What becomes of ARP and ND for addresses that nobody has, on hosts with transport tap: flood (all
    /// hosts of the subnet are asked) or drop; it cannot be changed
    #[arg(long, value_name = "WHAT", default_value = "flood")]
    unknown_neighbours: model::UnknownNeighbours,
    /// Its VNI; chosen by the server if not given
    #[arg(long)]
    vni: Option<model_vni::Arg>,
    #[command(flatten)]
    creation: Creation,
}

/// `vpc list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpc list\n  vpc list --account acme -o json")]
pub(crate) struct List {
    /// Only those of this account
    #[arg(long)]
    account: Option<String>,
    #[command(flatten)]
    selection: Selection,
}

/// `vpc show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpc show blue\n  vpc show id:9k3v0c7m2a -o json")]
pub(crate) struct Show {
    /// Name, ACCOUNT/NAME or id:ID
    vpc: String,
}

/// `vpc delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpc delete blue --wait")]
pub(crate) struct Delete {
    /// Name, ACCOUNT/NAME or id:ID
    vpc: String,
    #[command(flatten)]
    deletion: Deletion,
    #[command(flatten)]
    wait: Wait,
}

/// Numbers checked by the model before anything is sent.
pub(crate) mod model_vni {
    use std::str::FromStr;

    /// A VNI of the command line.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Arg(pub u32);

    impl FromStr for Arg {
        type Err = String;
        fn from_str(text: &str) -> Result<Self, String> {
            let raw: u32 = text.parse().map_err(|_| "not a number".to_owned())?;
            model::Vni::new(raw)
                .map(|vni| Self(vni.get()))
                .map_err(|error| error.to_string())
        }
    }
}

impl Create {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating vpc {}", self.name);
        let (account, name) = match self.name.split_once('/') {
            Some((account, name)) => (Some(reference(account)), name),
            None => (None, self.name.as_str()),
        };
        if let Some((account, _)) = self.name.split_once('/')
            && !account.starts_with("id:")
        {
            check_name(&doing, account)?;
        }
        check_name(&doing, name)?;
        check_cidrs(&doing, &self.cidr)?;
        let request = v1::CreateVpcRequest {
            request_id: self.creation.request_id(),
            account,
            name: name.to_owned(),
            cidrs: self.cidr.clone(),
            encoding: v1::Encoding::from(self.encoding).into(),
            routing: v1::Routing::from(self.routing).into(),
            unknown_neighbours: v1::UnknownNeighbours::from(self.unknown_neighbours).into(),
            labels: self.creation.labels(),
            vni: self.vni.map_or(0, |vni| vni.0),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_vpc(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = VpcView::from(made.into_inner());
            global.output.one(&view, &view.details())
        })
    }
}

impl List {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let filter = v1::Filter {
            parent_kind: match self.account {
                Some(_) => v1::Kind::Account.into(),
                None => v1::Kind::Unspecified.into(),
            },
            parent: self.account.as_deref().map(reference),
            ..self.selection.filter()
        };
        block_on(async {
            let client = global.server.management().await?;
            let vpcs = pages("listing vpcs", filter, |request| {
                let mut client = client.clone();
                async move {
                    let page = client.list_vpcs(request).await?.into_inner();
                    Ok((page.vpcs, page.next_page_token))
                }
            })
            .await?;
            let mut views: Vec<VpcView> = vpcs.into_iter().map(Into::into).collect();
            views.sort_by(|a, b| a.path.cmp(&b.path));
            global.output.many(&views)
        })
    }
}

/// A VPC and all in it.
#[derive(Debug, Serialize)]
struct Whole {
    #[serde(flatten)]
    vpc: VpcView,
    subnets: Vec<SubnetView>,
    nics: Vec<NicView>,
    routers: Vec<RouterView>,
    /// Hosts that route between its subnets, each for its own NICs; none with routing central.
    gateways: Vec<String>,
}

impl Show {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        block_on(async {
            let mut client = global.server.management().await?;
            let found = client
                .get_vpc(get(&self.vpc))
                .await
                .map_err(|status| refused(&format!("showing vpc {}", self.vpc), &status))?;
            let vpc = VpcView::from(found.into_inner());
            let inside = v1::Filter {
                parent_kind: v1::Kind::Vpc.into(),
                parent: Some(reference(&format!("id:{}", vpc.id))),
                ..v1::Filter::default()
            };
            let nics = nics(&client, inside.clone()).await?;
            let whole = Whole {
                subnets: subnets(&client, inside.clone()).await?,
                routers: routers(&client, inside).await?,
                gateways: gateways(&vpc, &nics),
                nics,
                vpc,
            };
            match global.output {
                Format::Json => json(&whole),
                Format::Table => {
                    let mut details = whole.vpc.details();
                    if whole.vpc.is_distributed() {
                        let hosts = match whole.gateways.is_empty() {
                            true => "on no host: there is no NIC".to_owned(),
                            false => whole.gateways.join(" "),
                        };
                        details.push(("gateways", hosts));
                    }
                    global.output.one(&whole, &details)?;
                    print(&tree(&whole))?;
                    whole.routers.iter().try_for_each(|r| print(&r.drawing()))
                }
            }
        })
    }
}

impl Delete {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        block_on(async {
            let mut client = global.server.management().await?;
            let doing = format!("deleting vpc {}", self.vpc);
            let revision = client
                .delete_vpc(self.deletion.of(&self.vpc))
                .await
                .map_err(|status| refused(&doing, &status))?
                .into_inner()
                .revision;
            let until = Until::Revision(revision);
            wait_applied(
                &mut client,
                &format!("vpc {}", self.vpc),
                until,
                self.wait.deadline(),
            )
            .await
        })
    }
}

/// All subnets that a filter leaves.
pub(crate) async fn subnets(client: &Management, filter: v1::Filter) -> Outcome<Vec<SubnetView>> {
    let subnets = pages("listing subnets", filter, |request| {
        let mut client = client.clone();
        async move {
            let page = client.list_subnets(request).await?.into_inner();
            Ok((page.subnets, page.next_page_token))
        }
    })
    .await?;
    let mut views: Vec<SubnetView> = subnets.into_iter().map(Into::into).collect();
    views.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(views)
}

/// All NICs that a filter leaves.
pub(crate) async fn nics(client: &Management, filter: v1::Filter) -> Outcome<Vec<NicView>> {
    let nics = pages("listing nics", filter, |request| {
        let mut client = client.clone();
        async move {
            let page = client.list_nics(request).await?.into_inner();
            Ok((page.nics, page.next_page_token))
        }
    })
    .await?;
    let mut views: Vec<NicView> = nics.into_iter().map(Into::into).collect();
    views.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(views)
}

/// Where a VPC has a gateway: on each host with a NIC of it, if it is routed there.
fn gateways(vpc: &VpcView, nics: &[NicView]) -> Vec<String> {
    let hosts: BTreeSet<&str> = nics.iter().flat_map(NicView::hosts).collect();
    let hosts = hosts.into_iter().filter(|_| vpc.is_distributed());
    hosts.map(str::to_owned).collect()
}

fn tree(whole: &Whole) -> String {
    let mut lines = Vec::new();
    let last_subnet = whole.subnets.len().saturating_sub(1);
    for (index, subnet) in whole.subnets.iter().enumerate() {
        let (branch, trunk) = match index == last_subnet {
            true => ("└─", "  "),
            false => ("├─", "│ "),
        };
        lines.push(format!("{branch} {}", subnet.summary()));
        let nics: Vec<&NicView> = whole
            .nics
            .iter()
            .filter(|nic| nic.subnet_id == subnet.id)
            .collect();
        let last_nic = nics.len().saturating_sub(1);
        for (index, nic) in nics.iter().enumerate() {
            let branch = if index == last_nic {
                "└─"
            } else {
                "├─"
            };
            lines.push(format!("{trunk} {branch} {}", nic.summary()));
        }
    }
    match lines.is_empty() {
        true => "no subnets".to_owned(),
        false => lines.join("\n"),
    }
}

/// Says what is wrong with a name without asking the server.
pub(crate) fn check_name(doing: &str, name: &str) -> Outcome {
    model::Name::new(name)
        .map(drop)
        .map_err(|bad| Failure::new(format!("{doing}: {bad}")))
}

/// Says what is wrong with prefixes without asking the server.
pub(crate) fn check_cidrs(doing: &str, cidrs: &[String]) -> Outcome {
    cidrs
        .iter()
        .try_for_each(|cidr| model::canonical_cidr(cidr).map(drop))
        .map_err(|bad| Failure::new(format!("{doing}: {bad}")))
}
