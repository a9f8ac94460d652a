//! `vpc evpn`.

mod views;

use crate::block_on;
use crate::connect::{EvpnAccess, refused};
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, print};
use api::tonic::{Status, Streaming};
use api::v1;
use api::v1::clear_duplicate_request::What;
use clap::Subcommand;
use model::MacAddr;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
pub(crate) use views::PeerView;
use views::{MacView, MessageView, RouteView, SummaryView};

/// EVPN of this host's agent, or of its reflector.
#[derive(Debug, Subcommand)]
pub(crate) enum Evpn {
    /// How it is, in numbers, and what is wrong
    #[command(after_help = "Examples:\n  vpc evpn summary\n  vpc evpn summary --reflector -o json")]
    Summary {
        #[command(flatten)]
        of: EvpnAccess,
    },
    /// BGP sessions
    #[command(
        after_help = "Examples:\n  vpc evpn peers\n  vpc evpn peers 192.0.2.1\n  \
                      vpc evpn peers 192.0.2.1 --history\n  vpc evpn peers -o json"
    )]
    Peers {
        #[command(flatten)]
        of: EvpnAccess,
        /// Only this one, with its counters
        peer: Option<IpAddr>,
        /// The last noteworthy messages to and from it
        #[arg(long, requires = "peer", conflicts_with = "refresh")]
        history: bool,
        /// Ask it to tell everything again (RFC 2918)
        #[arg(long, requires = "peer")]
        refresh: bool,
    },
    /// Routes: what this host announces and what it learned
    #[command(
        after_help = "Examples:\n  vpc evpn routes\n  vpc evpn routes --vni 4097 --type 2 -o json\n  \
                      vpc evpn routes --mac 02:00:00:00:00:0a\n\n\
                      WHY is the rule that decided: of a path that is not best the one it lost by, of the \
                      best one those that the others lost by."
    )]
    Routes {
        #[command(flatten)]
        of: EvpnAccess,
        /// Only of this VNI
        #[arg(long)]
        vni: Option<super::vpc::model_vni::Arg>,
        /// Only of this type: 2 (MAC/IP), 3 (inclusive multicast) or any other
        #[arg(long = "type", value_name = "TYPE", value_parser = clap::value_parser!(u32).range(1..=255))]
        route_type: Option<u32>,
        /// Only of this MAC
        #[arg(long)]
        mac: Option<MacAddr>,
        /// Only those learned from this peer
        #[arg(long, value_name = "ADDRESS")]
        peer: Option<IpAddr>,
    },
    /// MACs: where each is, who else claims it and why that did not count
    #[command(
        after_help = "Examples:\n  vpc evpn mac\n  vpc evpn mac 02:00:00:00:00:0a --vni 4097\n  vpc evpn mac -o json"
    )]
    Mac {
        #[command(flatten)]
        of: EvpnAccess,
        /// Only this one, with all claims
        mac: Option<MacAddr>,
        /// Only of this VNI
        #[arg(long)]
        vni: Option<super::vpc::model_vni::Arg>,
    },
    /// Give a frozen MAC or address another chance, once what used it twice is gone
    #[command(
        after_help = "Examples:\n  vpc evpn clear 02:00:00:00:00:0a --vni 4097\n  vpc evpn clear 10.4.1.11 --vni 4097"
    )]
    Clear {
        #[command(flatten)]
        of: EvpnAccess,
        /// What is frozen
        #[arg(value_name = "MAC|ADDRESS")]
        what: Duplicate,
        /// In which VNI
        #[arg(long)]
        vni: super::vpc::model_vni::Arg,
    },
}

/// What can be in use twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicate {
    /// A MAC.
    Mac(MacAddr),
    /// An address of a workload.
    Address(IpAddr),
}

impl FromStr for Duplicate {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mac = text.parse().map(Self::Mac);
        mac.or_else(|_| text.parse().map(Self::Address).map_err(drop))
            .map_err(|()| "neither a MAC nor an IP address")
    }
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "MAC {mac}"),
            Self::Address(address) => write!(f, "address {address}"),
        }
    }
}

impl Evpn {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Summary { of } => block_on(summary(&of, global)),
            Self::Peers {
                of,
                peer: Some(peer),
                history: true,
                ..
            } => block_on(history(&of, peer, global)),
            Self::Peers {
                of,
                peer: Some(peer),
                refresh: true,
                ..
            } => block_on(refresh(&of, peer)),
            Self::Peers { of, peer, .. } => block_on(peers(&of, peer, global)),
            Self::Routes {
                of,
                vni,
                route_type,
                mac,
                peer,
            } => {
                let request = v1::RoutesRequest {
                    vni: vni.map_or(0, |vni| vni.0),
                    route_type: route_type.unwrap_or(0),
                    mac: text(mac),
                    peer: text(peer),
                };
                block_on(routes(&of, request, global))
            }
            Self::Mac { of, mac, vni } => {
                let request = v1::MacsRequest {
                    vni: vni.map_or(0, |vni| vni.0),
                    mac: text(mac),
                };
                block_on(macs(&of, request, global))
            }
            Self::Clear { of, what, vni } => block_on(clear(&of, what, vni.0)),
        }
    }
}

fn text(value: Option<impl fmt::Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

async fn summary(of: &EvpnAccess, global: &Global) -> Outcome {
    let mut evpn = of.evpn().await?;
    let told = evpn.evpn_summary(v1::EvpnSummaryRequest {}).await;
    let told = told.map_err(|status| refused("asking for EVPN in numbers", &status))?;
    let view = SummaryView::from(told.into_inner());
    global.output.one(&view, &view.details())?;
    match global.output {
        Format::Json => Ok(()),
        Format::Table => view.alerts.iter().try_for_each(views::AlertView::explain),
    }
}

async fn peers(of: &EvpnAccess, peer: Option<IpAddr>, global: &Global) -> Outcome {
    let mut evpn = of.evpn().await?;
    let told = evpn.peers(v1::PeersRequest {}).await;
    let told = told.map_err(|status| refused("listing EVPN peers", &status))?;
    let mut views: Vec<PeerView> = told
        .into_inner()
        .peers
        .into_iter()
        .map(Into::into)
        .collect();
    match peer {
        None => global.output.many(&views)?,
        Some(peer) => {
            views.retain(|view| view.address.parse() == Ok(peer));
            let view = views.first().ok_or_else(|| {
                Failure::new(format!("{peer} is not a configured BGP peer"))
                    .hint("`vpc evpn peers` shows those there are")
            })?;
            global.output.one(view, &view.details())?;
        }
    }
    match global.output {
        Format::Json => Ok(()),
        Format::Table => views.iter().try_for_each(PeerView::explain),
    }
}

async fn history(of: &EvpnAccess, peer: IpAddr, global: &Global) -> Outcome {
    let request = v1::PeerHistoryRequest {
        peer: peer.to_string(),
    };
    let told = of.evpn().await?.peer_history(request).await;
    let doing = format!("asking what was said to and by {peer}");
    let told = told.map_err(|status| refused(&doing, &status))?;
    let messages = told.into_inner().messages.into_iter();
    let views: Vec<MessageView> = messages.map(Into::into).collect();
    global.output.many(&views)
}

async fn refresh(of: &EvpnAccess, peer: IpAddr) -> Outcome {
    let request = v1::RefreshPeerRequest {
        peer: peer.to_string(),
    };
    let asked = of.evpn().await?.refresh_peer(request).await;
    let doing = format!("asking {peer} for everything again");
    asked.map_err(|status| refused(&doing, &status))?;
    Ok(())
}

async fn routes(of: &EvpnAccess, request: v1::RoutesRequest, global: &Global) -> Outcome {
    let doing = "listing EVPN routes";
    let views: Vec<RouteView> = all(doing, of.evpn().await?.routes(request).await).await?;
    global.output.many(&views)
}

async fn macs(of: &EvpnAccess, request: v1::MacsRequest, global: &Global) -> Outcome {
    let doing = "listing EVPN MACs";
    let one = !request.mac.is_empty();
    let views: Vec<MacView> = all(doing, of.evpn().await?.macs(request).await).await?;
    match global.output {
        Format::Table if one => views.iter().try_for_each(|view| print(&view.told())),
        _ => global.output.many(&views),
    }
}

async fn clear(of: &EvpnAccess, what: Duplicate, vni: u32) -> Outcome {
    let named = match what {
        Duplicate::Mac(mac) => What::Mac(mac.to_string()),
        Duplicate::Address(address) => What::Address(address.to_string()),
    };
    let request = v1::ClearDuplicateRequest {
        vni,
        what: Some(named),
    };
    let cleared = of.evpn().await?.clear_duplicate(request).await;
    cleared.map_err(|status| refused(&format!("clearing {what}"), &status))?;
    Ok(())
}

/// All of a stream.
async fn all<T, V: From<T>>(
    doing: &str,
    answer: Result<api::tonic::Response<Streaming<T>>, Status>,
) -> Outcome<Vec<V>> {
    let mut stream = answer
        .map_err(|status| refused(doing, &status))?
        .into_inner();
    let mut views = Vec::new();
    while let Some(item) = stream
        .message()
        .await
        .map_err(|status| refused(doing, &status))?
    {
        views.push(item.into());
    }
    Ok(views)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_frozen_is_a_mac_or_an_address() {
        let parse = |text: &str| text.parse::<Duplicate>().map(|what| what.to_string());
        assert_eq!(
            parse("02:00:00:00:00:0a").as_deref(),
            Ok("MAC 02:00:00:00:00:0a")
        );
        assert_eq!(parse("fd00::1").as_deref(), Ok("address fd00::1"));
        assert_eq!(parse("blue"), Err("neither a MAC nor an IP address"));
    }
}
