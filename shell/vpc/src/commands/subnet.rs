//! `vpc subnet`.

use super::request::{Creation, Deletion, Selection, Until, get, parent_and_name, wait_applied};
use super::subnet_options::Told;
use super::vpc::{check_cidrs, check_name, model_vni, subnets};
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use crate::options::{Global, Wait};
use crate::views::SubnetView;
use api::v1;
use clap::{Args, Subcommand};

/// Subnets.
#[derive(Debug, Subcommand)]
pub(crate) enum Subnet {
    /// Create a subnet
    #[command(after_help = "Examples:
  vpc subnet create blue/web --cidr 10.4.1.0/24
  vpc subnet create blue/db --cidr 10.4.2.0/24 --cidr fd00:4:2::/64 --mtu 1400")]
    Create(Box<Create>),
    /// List subnets
    #[command(after_help = "Examples:\n  vpc subnet list\n  vpc subnet list blue -o json")]
    List {
        /// Only those of this VPC
        vpc: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Show a subnet
    #[command(after_help = "Examples:\n  vpc subnet show blue/web")]
    Show {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        subnet: String,
    },
    /// Change what the subnet's NICs are told
    #[command(after_help = "Examples:
  vpc subnet set blue/web --dns 10.4.1.53 --search web.blue.internal --search blue.internal
  vpc subnet set blue/web --dns ''            # none any more
  vpc subnet set blue/web --dhcp off          # somebody in the subnet serves DHCP")]
    Set {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        subnet: String,
        #[command(flatten)]
        told: Told,
    },
    /// Delete a subnet without NICs
    #[command(after_help = "Examples:\n  vpc subnet delete blue/web --wait")]
    Delete {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        subnet: String,
        #[command(flatten)]
        deletion: Deletion,
        #[command(flatten)]
        wait: Wait,
    },
}

/// `vpc subnet create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// VPC/NAME or ACCOUNT/VPC/NAME
    subnet: String,
    /// Its prefix, at most one of each family, inside one of the VPC's
    #[arg(long, value_name = "CIDR", required = true)]
    cidr: Vec<String>,
    /// Its VLAN, 1 to 4094; chosen by the server if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4094))]
    vlan: Option<u16>,
    /// Its VNI; chosen by the server if not given
    #[arg(long)]
    vni: Option<model_vni::Arg>,
    /// Its MTU; what the underlay allows if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(576..))]
    mtu: Option<u16>,
    #[command(flatten)]
    told: Told,
    #[command(flatten)]
    creation: Creation,
}

impl Subnet {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::List { vpc, selection } => {
                let filter = v1::Filter {
                    parent_kind: match vpc {
                        Some(_) => v1::Kind::Vpc.into(),
                        None => v1::Kind::Unspecified.into(),
                    },
                    parent: vpc.as_deref().map(reference),
                    ..selection.filter()
                };
                block_on(async {
                    let client = global.server.management().await?;
                    global.output.many(&subnets(&client, filter).await?)
                })
            }
            Self::Show { subnet } => block_on(async {
                let mut client = global.server.management().await?;
                let found = client
                    .get_subnet(get(&subnet))
                    .await
                    .map_err(|status| refused(&format!("showing subnet {subnet}"), &status))?;
                let view = SubnetView::from(found.into_inner());
                global.output.one(&view, &view.details())
            }),
            Self::Set { subnet, told } => set(global, &subnet, &told),
            Self::Delete {
                subnet,
                deletion,
                wait,
            } => block_on(async {
                let mut client = global.server.management().await?;
                let what = format!("subnet {subnet}");
                let revision = client
                    .delete_subnet(deletion.of(&subnet))
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
        let doing = format!("creating subnet {}", self.subnet);
        let (vpc, name) = parent_and_name(&self.subnet, "blue/web")?;
        check_name(&doing, name)?;
        check_cidrs(&doing, &self.cidr)?;
        let request = v1::CreateSubnetRequest {
            request_id: self.creation.request_id(),
            vpc: Some(reference(vpc)),
            name: name.to_owned(),
            cidrs: self.cidr.clone(),
            vlan: self.vlan.map_or(0, Into::into),
            mtu: self.mtu.map_or(0, Into::into),
            labels: self.creation.labels(),
            vni: self.vni.map_or(0, |vni| vni.0),
            options: (!self.told.is_empty())
                .then(|| self.told.changed(v1::SubnetOptions::default())),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_subnet(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = SubnetView::from(made.into_inner());
            global.output.one(&view, &view.details())
        })
    }
}

fn set(global: &Global, subnet: &str, told: &Told) -> Outcome {
    let doing = format!("changing subnet {subnet}");
    if told.is_empty() {
        return Err(Failure::new(format!("{doing}: nothing is to change"))
            .hint("say what: see vpc subnet set --help"));
    }
    block_on(async {
        let mut client = global.server.management().await?;
        let found = client
            .get_subnet(get(subnet))
            .await
            .map_err(|status| refused(&doing, &status))?
            .into_inner();
        let request = v1::UpdateSubnetRequest {
            object: Some(reference(&format!("id:{}", found.id))),
            resource_version: found.meta.unwrap_or_default().resource_version,
            labels: None,
            options: Some(told.changed(found.options.unwrap_or_default())),
        };
        let changed = client
            .update_subnet(request)
            .await
            .map_err(|status| refused(&doing, &status))?;
        let view = SubnetView::from(changed.into_inner());
        global.output.one(&view, &view.details())
    })
}
