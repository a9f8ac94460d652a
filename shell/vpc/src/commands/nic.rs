//! `vpc nic`.

use super::moving::Move;
use super::request::{
    Creation, Deletion, Management, Selection, Until, get, parent_and_name, wait_applied,
};
use super::vpc::{check_name, nics};
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Doing, Failure, Outcome};
use crate::options::{Global, Wait};
use crate::views::NicView;
use api::v1;
use clap::{Args, Subcommand};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Network interfaces of workloads.
#[derive(Debug, Subcommand)]
pub(crate) enum Nic {
    /// Create a NIC
    #[command(after_help = "Examples:
  vpc nic create blue/web/a1 --host c1 --attach netns:a1 --wait
  vpc nic create blue/web/vm1 --host c1 --attach tap --ip 10.4.1.9 --mac 02:00:00:00:00:09
  vpc nic create blue/web/vm2 --host c1 --attach tap --user-data cloud-config.yaml")]
    Create(Box<Create>),
    /// List NICs
    #[command(after_help = "Examples:
  vpc nic list
  vpc nic list blue/web
  vpc nic list --host c1 -o json")]
    List {
        /// Only those in this VPC or subnet: blue or blue/web, with ACCOUNT/ before it if it is
        /// not "default"
        inside: Option<String>,
        /// What the path given is, where its parts do not tell: account, vpc or subnet
        #[arg(long, value_name = "KIND", requires = "inside", value_parser = ["account", "vpc", "subnet"])]
        kind: Option<String>,
        /// Only those on this host
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Show a NIC and what is wrong with it
    #[command(after_help = "Examples:\n  vpc nic show blue/web/a1")]
    Show {
        /// VPC/SUBNET/NAME, ACCOUNT/VPC/SUBNET/NAME or id:ID
        nic: String,
    },
    /// Move a NIC to another host, with its addresses and its MAC
    #[command(
        after_help = "The NIC works at its old host until it does at the new one. To end a move, move the NIC back.

Examples:
  vpc nic move blue/web/a1 --host c2
  vpc nic move blue/web/vm1 --host c2 --attach existing:ens7 --no-wait"
    )]
    Move(Box<Move>),
    /// Delete a NIC
    #[command(after_help = "Examples:\n  vpc nic delete blue/web/a1 --wait")]
    Delete {
        /// VPC/SUBNET/NAME, ACCOUNT/VPC/SUBNET/NAME or id:ID; several may be given
        #[arg(required = true)]
        nics: Vec<String>,
        #[command(flatten)]
        deletion: Deletion,
        #[command(flatten)]
        wait: Wait,
    },
}

/// `vpc nic create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// VPC/SUBNET/NAME or ACCOUNT/VPC/SUBNET/NAME
    nic: String,
    /// The host it is on: a name or id:ID
    #[arg(long)]
    host: String,
    /// What it is plugged into: tap, netns:NAME, netns:NAME:DEVICE or existing:IFNAME
    #[arg(long, value_name = "ATTACHMENT", value_parser = attachment)]
    attach: v1::Attachment,
    /// Its address, at most one of each family; chosen by the server if not given
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Its MAC; chosen by the server if not given
    #[arg(long)]
    mac: Option<model::MacAddr>,
    /// A file that it may read at http://169.254.169.254, at most 16 KiB; - is standard input
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    #[command(flatten)]
    creation: Creation,
    #[command(flatten)]
    wait: Wait,
}

/// A namespace without a device leaves the device's name to the server.
pub(super) fn attachment(text: &str) -> Result<v1::Attachment, String> {
    use v1::attachment::{Existing, Kind, Netns, Tap};
    let parsed: model::Attachment = text
        .parse()
        .map_err(|bad: model::BadAttachment| bad.to_string())?;
    let kind = match parsed {
        model::Attachment::Tap => Kind::Tap(Tap {}),
        model::Attachment::Netns { netns, device } => Kind::Netns(Netns {
            netns: netns.to_string(),
            device: match text.matches(':').count() {
                1 => String::new(),
                _ => device.to_string(),
            },
        }),
        model::Attachment::Existing { ifname } => Kind::Existing(Existing {
            ifname: ifname.to_string(),
        }),
    };
    Ok(v1::Attachment { kind: Some(kind) })
}

/// Not more than tells that it is too much.
fn read_user_data(doing: &str, path: &Path) -> Outcome<Vec<u8>> {
    let reading = || format!("{doing}: reading user data from {}", path.display());
    let most = model::UserData::MOST_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(most).read_to_end(&mut bytes),
        _ => {
            let file = std::fs::File::open(path).doing(reading)?;
            file.take(most).read_to_end(&mut bytes)
        }
    };
    read.doing(reading)?;
    match model::UserData::new(bytes) {
        Ok(data) => Ok(data.bytes().to_vec()),
        Err(model::BadUserData::TooLong(_)) => Err(Failure::new(format!(
            "{}: it has more than {} bytes",
            reading(),
            model::UserData::MOST_BYTES
        ))
        .hint("compress it, or let it fetch the rest")),
        Err(bad) => Err(Failure::new(format!("{}: {bad}", reading()))),
    }
}

impl Nic {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Create(create) => create.run(global),
            Self::Move(asked) => asked.run(global),
            Self::List {
                inside,
                kind,
                host,
                selection,
            } => {
                let parent_kind = match &inside {
                    None => v1::Kind::Unspecified,
                    Some(path) => parent_kind(path, kind.as_deref())?,
                };
                let filter = v1::Filter {
                    parent_kind: parent_kind.into(),
                    parent: inside.as_deref().map(reference),
                    host: host.as_deref().map(reference),
                    ..selection.filter()
                };
                block_on(async {
                    let client = global.server.management().await?;
                    global.output.many(&nics(&client, filter).await?)
                })
            }
            Self::Show { nic } => block_on(async {
                let mut client = global.server.management().await?;
                show(global, &mut client, &nic).await
            }),
            Self::Delete {
                nics,
                deletion,
                wait,
            } => block_on(async {
                let mut client = global.server.management().await?;
                for nic in &nics {
                    let revision = client
                        .delete_nic(deletion.of(nic))
                        .await
                        .map_err(|status| refused(&format!("deleting nic {nic}"), &status))?
                        .into_inner()
                        .revision;
                    let until = Until::Revision(revision);
                    wait_applied(&mut client, &format!("nic {nic}"), until, wait.deadline())
                        .await?;
                }
                Ok(())
            }),
        }
    }
}

/// By the number of its parts: one is a VPC, two a subnet.
fn parent_kind(path: &str, named: Option<&str>) -> Outcome<v1::Kind> {
    match (named, path.matches('/').count()) {
        (Some("account"), _) => Ok(v1::Kind::Account),
        (Some("vpc"), _) | (None, 0) if named.is_some() || !path.starts_with("id:") => {
            Ok(v1::Kind::Vpc)
        }
        (Some("subnet"), _) | (None, 1 | 2) => Ok(v1::Kind::Subnet),
        _ => Err(
            Failure::new(format!("listing nics: cannot tell what {path} is"))
                .hint("say it with --kind account, --kind vpc or --kind subnet"),
        ),
    }
}

async fn show(global: &Global, client: &mut Management, nic: &str) -> Outcome {
    let found = client
        .get_nic(get(nic))
        .await
        .map_err(|status| refused(&format!("showing nic {nic}"), &status))?;
    let view = NicView::from(found.into_inner());
    global.output.one(&view, &view.details())
}

impl Create {
    fn run(self, global: &Global) -> Outcome {
        let what = format!("nic {}", self.nic);
        let doing = format!("creating {what}");
        let (subnet, name) = parent_and_name(&self.nic, "blue/web/a1")?;
        check_name(&doing, name)?;
        let request = v1::CreateNicRequest {
            request_id: self.creation.request_id(),
            subnet: Some(reference(subnet)),
            name: name.to_owned(),
            host: Some(reference(&self.host)),
            attachment: Some(self.attach),
            mac: self.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            addresses: self.ip.iter().map(ToString::to_string).collect(),
            user_data: match &self.user_data {
                Some(path) => read_user_data(&doing, path)?,
                None => Vec::new(),
            },
            labels: self.creation.labels(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let made = client
                .create_nic(request)
                .await
                .map_err(|status| refused(&doing, &status))?
                .into_inner();
            let until = Until::Object(v1::Kind::Nic, &made.id);
            wait_applied(&mut client, &what, until, self.wait.deadline()).await?;
            if !self.wait.wait {
                let view = NicView::from(made);
                return global.output.one(&view, &view.details());
            }
            let id = format!("id:{}", made.id);
            let found = client
                .get_nic(get(&id))
                .await
                .map_err(|status| refused(&format!("showing {what}"), &status))?;
            let view = NicView::from(found.into_inner());
            global.output.one(&view, &view.details())?;
            // A host is done with a change also when a part of it cannot be made for now.
            match view.wrong() {
                None => Ok(()),
                Some(why) => Err(Failure::new(format!("{doing}: {why}")).hint(
                    "the NIC is accepted and the host goes on trying; delete it with `vpc nic delete`",
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_is_shows_in_its_parts() {
        let kind = |path, named| parent_kind(path, named).ok();
        assert_eq!(kind("blue", None), Some(v1::Kind::Vpc));
        assert_eq!(kind("blue/web", None), Some(v1::Kind::Subnet));
        assert_eq!(kind("acme/blue", Some("vpc")), Some(v1::Kind::Vpc));
        assert_eq!(kind("acme", Some("account")), Some(v1::Kind::Account));
        assert_eq!(kind("id:9k3v0c7m2a", None), None);
        assert_eq!(
            kind("id:9k3v0c7m2a", Some("subnet")),
            Some(v1::Kind::Subnet)
        );
    }

    #[test]
    fn an_attachment_leaves_the_device_open_unless_it_names_one() {
        use v1::attachment::Kind;
        let device = |text| match attachment(text).unwrap().kind {
            Some(Kind::Netns(netns)) => Some(netns.device),
            _ => None,
        };
        assert_eq!(device("netns:a1").as_deref(), Some(""));
        assert_eq!(device("netns:a1:eth0").as_deref(), Some("eth0"));
        assert_eq!(device("tap"), None);
        assert!(attachment("bridge:x").is_err());
    }
}
