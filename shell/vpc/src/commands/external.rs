//! `vpc external`.

use super::request::{Creation, Deletion, Selection, get, pages};
use super::vpc::{check_cidrs, check_name};
use crate::block_on;
use crate::connect::refused;
use crate::failure::Outcome;
use crate::options::Global;
use crate::views::ExternalView;
use api::v1;
use clap::{Args, Subcommand};
use model::{AddressRange, IfName};
use std::net::IpAddr;

/// Networks outside of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum External {
    /// Tell of a network outside that route hosts have a bridge to
    #[command(after_help = "Examples:
  vpc external create ext --bridge br-ext --cidr 198.51.100.0/24 \\
      --gateway 198.51.100.1 --pool 198.51.100.100-198.51.100.199
  vpc external create lan --bridge br-lan --dhcp")]
    Create(Box<Create>),
    /// List external networks
    #[command(after_help = "Examples:\n  vpc external list -o json")]
    List(Selection),
    /// Show an external network
    #[command(after_help = "Examples:\n  vpc external show ext")]
    Show {
        /// Name, or id:ID
        network: String,
    },
    /// Delete an external network that nothing uses
    #[command(after_help = "Examples:\n  vpc external delete ext")]
    Delete {
        /// Name, or id:ID
        network: String,
        #[command(flatten)]
        deletion: Deletion,
    },
}

/// `vpc external create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name
    network: String,
    /// The bridge that leads there, on every route host
    #[arg(long, value_name = "IFNAME")]
    bridge: IfName,
    /// Its prefix, at most one of each family
    #[arg(long, value_name = "CIDR", required_unless_present = "dhcp")]
    cidr: Vec<String>,
    /// Where everything else is reached; several of one family share the flows
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Addresses to hand out, as in 198.51.100.100-198.51.100.199; may be given several times
    #[arg(long, value_name = "FIRST-LAST")]
    pool: Vec<AddressRange>,
    /// Routers get their IPv4 address from the DHCP server there
    #[arg(long)]
    dhcp: bool,
    /// What it carries; the bridge's MTU if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(576..))]
    mtu: Option<u16>,
    #[command(flatten)]
    creation: Creation,
}

impl External {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::List(selection) => block_on(async {
                let client = global.server.management().await?;
                let listing = "listing external networks";
                let networks = pages(listing, selection.filter(), |request| {
                    let mut client = client.clone();
                    async move {
                        let page = client.list_external_networks(request).await?.into_inner();
                        Ok((page.networks, page.next_page_token))
                    }
                })
                .await?;
                let mut views: Vec<ExternalView> = networks.into_iter().map(Into::into).collect();
                views.sort_by(|a, b| a.name.cmp(&b.name));
                global.output.many(&views)
            }),
            Self::Show { network } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("showing external network {network}");
                let found = client
                    .get_external_network(get(&network))
                    .await
                    .map_err(|status| refused(&doing, &status))?;
                let view = ExternalView::from(found.into_inner());
                global.output.one(&view, &view.details())
            }),
            Self::Delete { network, deletion } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("deleting external network {network}");
                client
                    .delete_external_network(deletion.of(&network))
                    .await
                    .map(drop)
                    .map_err(|status| refused(&doing, &status))
            }),
        }
    }
}

impl Create {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating external network {}", self.network);
        check_name(&doing, &self.network)?;
        check_cidrs(&doing, &self.cidr)?;
        let request = v1::CreateExternalNetworkRequest {
            request_id: self.creation.request_id(),
            name: self.network,
            bridge: self.bridge.to_string(),
            cidrs: self.cidr,
            gateways: self.gateway.iter().map(ToString::to_string).collect(),
            pools: self.pool.iter().map(ToString::to_string).collect(),
            dhcp: self.dhcp,
            mtu: self.mtu.map_or(0, Into::into),
            labels: self.creation.labels(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_external_network(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = ExternalView::from(made.into_inner());
            global.output.one(&view, &view.details())
        })
    }
}
