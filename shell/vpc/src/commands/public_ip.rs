//! `vpc publicip`.

use super::request::{Creation, Deletion, Management, Selection, Until, get, pages, wait_applied};
use super::router::outside;
use super::vpc::check_name;
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::Outcome;
use crate::options::{Global, Wait};
use crate::views::PublicIpView;
use api::v1;
use api::v1::attach_public_ip_request::Target;
use clap::{Args, Subcommand};
use std::net::IpAddr;

/// Public addresses.
#[derive(Debug, Subcommand)]
pub(crate) enum PublicIp {
    /// Take an address out of an external network's pool
    #[command(after_help = "Examples:
  vpc publicip create www
  vpc publicip create www --from ext --address 198.51.100.7
  vpc publicip create acme/www --ipv6")]
    Create(Box<Create>),
    /// List public addresses
    #[command(after_help = "Examples:\n  vpc publicip list\n  vpc publicip list acme -o json")]
    List {
        /// Only those of this account
        account: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Show a public address
    #[command(after_help = "Examples:\n  vpc publicip show www")]
    Show {
        /// NAME, ACCOUNT/NAME or id:ID
        address: String,
    },
    /// Let a public address stand for a NIC, or be a router's own
    #[command(after_help = "Examples:
  vpc publicip attach www --nic blue/web/a1 --wait
  vpc publicip attach out --router blue/gw")]
    Attach {
        /// NAME, ACCOUNT/NAME or id:ID
        address: String,
        /// The NIC that it stands for, both ways
        #[arg(long, value_name = "NIC", required_unless_present = "router")]
        nic: Option<String>,
        /// The router that uses it for its source translation and port forwards
        #[arg(long, value_name = "ROUTER", conflicts_with = "nic")]
        router: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a public address stand for nothing
    #[command(after_help = "Examples:\n  vpc publicip detach www --wait")]
    Detach {
        /// NAME, ACCOUNT/NAME or id:ID
        address: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give an address back
    #[command(after_help = "Examples:\n  vpc publicip delete www")]
    Delete {
        /// NAME, ACCOUNT/NAME or id:ID
        address: String,
        #[command(flatten)]
        deletion: Deletion,
    },
}

/// `vpc publicip create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// NAME or ACCOUNT/NAME
    name: String,
    /// The external network; the only one there is, if not given
    #[arg(long, value_name = "NETWORK")]
    from: Option<String>,
    /// Which address of its pools; the lowest free, if not given
    #[arg(long)]
    address: Option<IpAddr>,
    /// An IPv6 address
    #[arg(long, conflicts_with = "address")]
    ipv6: bool,
    #[command(flatten)]
    creation: Creation,
}

impl PublicIp {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::List { account, selection } => {
                let filter = v1::Filter {
                    parent_kind: match account {
                        Some(_) => v1::Kind::Account.into(),
                        None => v1::Kind::Unspecified.into(),
                    },
                    parent: account.as_deref().map(reference),
                    ..selection.filter()
                };
                block_on(async {
                    let client = global.server.management().await?;
                    let all = pages("listing public addresses", filter, |request| {
                        let mut client = client.clone();
                        async move {
                            let page = client.list_public_ips(request).await?.into_inner();
                            Ok((page.public_ips, page.next_page_token))
                        }
                    })
                    .await?;
                    let mut views: Vec<PublicIpView> = all.into_iter().map(Into::into).collect();
                    views.sort_by(|a, b| a.path.cmp(&b.path));
                    global.output.many(&views)
                })
            }
            Self::Show { address } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("showing public address {address}");
                let found = client
                    .get_public_ip(get(&address))
                    .await
                    .map_err(|status| refused(&doing, &status))?;
                let view = PublicIpView::from(found.into_inner());
                global.output.one(&view, &view.details())
            }),
            Self::Attach {
                address,
                nic,
                router,
                wait,
            } => {
                let doing = format!("attaching public address {address}");
                let nic = nic.map(|nic| Target::Nic(reference(&nic)));
                let target = nic.or_else(|| router.map(|r| Target::Router(reference(&r))));
                attach(global, &doing, &address, target, wait)
            }
            Self::Detach { address, wait } => {
                let doing = format!("detaching public address {address}");
                attach(global, &doing, &address, None, wait)
            }
            Self::Delete { address, deletion } => block_on(async {
                let mut client = global.server.management().await?;
                let doing = format!("deleting public address {address}");
                client
                    .delete_public_ip(deletion.of(&address))
                    .await
                    .map(drop)
                    .map_err(|status| refused(&doing, &status))
            }),
        }
    }
}

fn attach(
    global: &Global,
    doing: &str,
    address: &str,
    target: Option<Target>,
    wait: Wait,
) -> Outcome {
    block_on(async {
        let mut client: Management = global.server.management().await?;
        let request = v1::AttachPublicIpRequest {
            request_id: format!("{:032x}", rand::random::<u128>()),
            object: Some(reference(address)),
            resource_version: 0,
            target,
        };
        let changed = client
            .attach_public_ip(request)
            .await
            .map_err(|status| refused(doing, &status))?
            .into_inner();
        let what = format!("public address {}", changed.path);
        let until = Until::Object(v1::Kind::PublicIp, &changed.id);
        wait_applied(&mut client, &what, until, wait.deadline()).await?;
        let view = PublicIpView::from(changed);
        global.output.one(&view, &view.details())
    })
}

impl Create {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating public address {}", self.name);
        let (account, name) = match self.name.rsplit_once('/') {
            Some((account, name)) => (Some(account), name),
            None => (None, self.name.as_str()),
        };
        check_name(&doing, name)?;
        let request = v1::CreatePublicIpRequest {
            request_id: self.creation.request_id(),
            account: account.map(reference),
            name: name.to_owned(),
            network: Some(outside(self.from.as_deref().unwrap_or_default())),
            address: self.address.map_or(String::new(), |a| a.to_string()),
            v6: self.ipv6,
            labels: self.creation.labels(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_public_ip(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = PublicIpView::from(made.into_inner());
            global.output.one(&view, &view.details())
        })
    }
}
