//! What is wrong with a peer, in plain words: what happened, what it is likely to come from, what
//! to do about it.

use crate::foreign;
use crate::history::{describe, inside};
use crate::peer::{LimitState, Peer};
use crate::{Config, ConnectMode, PeerId};
use rustbgpd_wire as wire;
use std::time::Instant;
use wire::notification::{cease_subcode, open_subcode};
use wire::{NotificationCode, NotificationMessage};

/// What is wrong with a peer and what to do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Advice {
    /// What is wrong.
    pub problem: String,
    /// What it is likely to come from, the likeliest first.
    pub causes: Vec<String>,
    /// What to do.
    pub remedy: String,
}

/// How a connection ended, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// In one word.
    pub by: LostBy,
    /// In more: shown as it is.
    pub text: String,
}

/// How a connection ended, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostBy {
    /// Nothing came back.
    NoAnswer,
    /// What came was dropped or refused here, because it came from too far (GTSM, RFC 5082).
    TooFar,
    /// The host is there and takes no connections.
    Refused,
    /// The host or its network cannot be reached.
    Unreachable,
    /// The other end closed or reset it.
    ClosedByPeer,
    /// It could not be made or kept for a reason on this host.
    Here,
    /// Anything else.
    Other,
}

impl From<&str> for Lost {
    fn from(text: &str) -> Self {
        let (by, text) = (LostBy::Other, text.to_owned());
        Self { by, text }
    }
}

/// Why the last session ended, or the last attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The connection; and whether the peer had said anything on it.
    Lost { by: LostBy, heard: bool },
    /// We ended it.
    Sent {
        notification: NotificationMessage,
        /// Whether the peer had said anything.
        heard: bool,
    },
    /// The peer ended it.
    Received(NotificationMessage),
}

fn advice(problem: impl Into<String>, causes: &[&str], remedy: &str) -> Advice {
    Advice {
        problem: problem.into(),
        causes: causes.iter().map(|&cause| cause.to_owned()).collect(),
        remedy: remedy.to_owned(),
    }
}

/// What there is to say about a peer; none if all is well.
pub(crate) fn advise(
    now: Instant,
    config: &Config,
    id: PeerId,
    peer: &Peer,
    namesake: Option<PeerId>,
) -> Option<Advice> {
    if let Some(other) = namesake {
        let router_id = peer.router_id?;
        return Some(advice(
            format!("{id} and {other} have the same BGP router id {router_id}"),
            &["two hosts were given one router id, or one host has two addresses on the list"],
            "give each host a router id of its own: until then routes of one may be taken for the other's",
        ));
    }
    if peer.session.is_some() {
        return of_established(now, config, id, peer);
    }
    if let Some(until) = peer.held_off_until.filter(|until| *until > now) {
        let secs = until.saturating_duration_since(now).as_secs();
        return Some(advice(
            format!("{id} announced more routes than it may; no session for another {secs} s"),
            &[
                "a host that announces what it should not",
                "a limit that is too low",
            ],
            "see what it announces, or raise its limit",
        ));
    }
    match &peer.trouble {
        Some(Trouble::Lost { by, heard }) => Some(of_lost(id, peer, *by, *heard)),
        Some(Trouble::Sent {
            notification,
            heard,
        }) => Some(of_sent(config, id, peer, notification, *heard)),
        Some(Trouble::Received(notification)) => of_received(config, id, notification),
        None if peer.config.connect == ConnectMode::Passive => Some(advice(
            format!("{id} has not connected yet"),
            &[
                "its agent is not running, or does not have this speaker on its list",
                "a firewall between the two drops TCP",
                "the TCP-MD5 keys of the two ends differ",
            ],
            "see the same peer's status at the other end: it makes the connection and knows how it fails",
        )),
        None => None,
    }
}

fn of_established(now: Instant, config: &Config, id: PeerId, peer: &Peer) -> Option<Advice> {
    if let Some(example) = peer.foreign.example() {
        return Some(advice(
            format!("{id} announces routes of another host; they are not taken, as {example}"),
            &[
                "that host was given another's address or router id",
                "somebody who should not has that host",
            ],
            &foreign::REMEDY.replace("{id}", &id.to_string()),
        ));
    }
    if let (LimitState::Over, Some(max)) = (peer.limit, peer.config.max_routes) {
        let refused = peer.counters.routes_refused;
        return Some(advice(
            format!(
                "{id} announces more than the {} routes that it may; {refused} were not taken",
                max.limit
            ),
            &[
                "a host that announces what it should not",
                "a limit that is too low",
            ],
            "see what it announces, or raise its limit; what was not taken is asked for again then",
        ));
    }
    let waiting = peer.links.values().find_map(|link| link.waiting_since)?;
    let time = now.saturating_duration_since(waiting);
    (time > config.timing.hold_time).then(|| {
        advice(
            format!("{id} has read nothing for {} s", time.as_secs()),
            &["the BGP process there hangs or is overloaded"],
            "see to that process; the session is ended if it goes on like this",
        )
    })
}

fn of_lost(id: PeerId, peer: &Peer, by: LostBy, heard: bool) -> Advice {
    let text = peer.last_error.as_deref().unwrap_or("the connection broke");
    match by {
        LostBy::NoAnswer => advice(
            format!("no answer from {id}"),
            &[
                "the host is down, or the address is wrong",
                "a firewall on the way drops TCP",
                "the TCP-MD5 keys differ, or only one end has one: kernels drop such packets without a word",
                "the peer is more than one hop away and GTSM is on here",
            ],
            "ping the address; if that works compare the keys of both ends, and look at `nstat -az TcpExtTCPMD5*` on the other host: it counts there",
        ),
        LostBy::TooFar => advice(
            format!("what {id} sends comes with a TTL below 255, and GTSM is on here"),
            &[
                "the peer does not send with TTL 255 (GTSM, RFC 5082, is off there)",
                "the peer is more than one hop away",
            ],
            "turn GTSM on at the other end (FRR: `ttl-security hops 1`), or off here",
        ),
        LostBy::Refused => advice(
            format!("{id} refuses connections"),
            &[
                "no BGP speaker is running there, or it listens on another port or address",
                "a firewall rejects TCP",
            ],
            "start the speaker there, and compare the port",
        ),
        LostBy::Unreachable => advice(
            format!("there is no way to {id}: {text}"),
            &[
                "the underlay has no route to it",
                "the host is down on the same link",
            ],
            "see `ip route get` for the address, and the underlay between the hosts",
        ),
        LostBy::ClosedByPeer if !heard => advice(
            format!("{id} closes the connection without a word"),
            &[
                "this host is not on its list of peers",
                "its speaker knows this host by another address than the one it connects from",
            ],
            "add this host there under the address it connects from",
        ),
        LostBy::ClosedByPeer => advice(
            format!("{id} closed the session without a word"),
            &[
                "its speaker was restarted or killed",
                "its host was shut down",
            ],
            "it comes back by itself; if not, see to that host",
        ),
        LostBy::Here => advice(
            format!("this host cannot connect to {id}: {text}"),
            &[
                "the speaker's own address is not on this host",
                "the key is longer than 80 octets",
            ],
            "see the error; it is about this host",
        ),
        LostBy::Other => advice(
            format!("the connection to {id} broke: {text}"),
            &[
                "the underlay between the hosts",
                "the other host or its speaker",
            ],
            "see the underlay and the other end's status",
        ),
    }
}

fn of_sent(
    config: &Config,
    id: PeerId,
    peer: &Peer,
    notification: &NotificationMessage,
    heard: bool,
) -> Advice {
    let hold = config.timing.hold_time.as_secs();
    match (notification.code, notification.subcode) {
        (NotificationCode::OpenMessage, open_subcode::BAD_PEER_AS) => {
            let theirs = peer.asn.map_or("another".to_owned(), |asn| asn.to_string());
            advice(
                format!("{id} is in AS {theirs}; this fabric's is {}", config.asn),
                &[
                    "the AS is configured wrong at one end",
                    "another fabric's host has this address",
                ],
                "give both ends the same AS",
            )
        }
        (NotificationCode::OpenMessage, open_subcode::BAD_BGP_IDENTIFIER) => advice(
            format!(
                "{id} has a BGP router id that it cannot have: 0.0.0.0, or {}, which is this speaker's",
                config.router_id
            ),
            &[
                "two hosts were given one router id",
                "the address on the list is this host's own",
            ],
            "give each host a router id of its own",
        ),
        (NotificationCode::OpenMessage, open_subcode::UNSUPPORTED_CAPABILITY) => advice(
            format!("{id} does not do EVPN"),
            &[
                "the family is not activated for this neighbour there",
                "it is no EVPN speaker",
            ],
            "activate it at the other end (FRR: `address-family l2vpn evpn`, `neighbor .. activate`)",
        ),
        (NotificationCode::HoldTimerExpired, _) if !heard => advice(
            format!("{id} connected and was never heard"),
            &[
                "its packets come with a TTL below 255 and GTSM is on here: it does not do GTSM, or is more than one hop away",
                "its speaker hangs",
            ],
            "turn GTSM on at the other end (FRR: `ttl-security hops 1`) or off here; else see to that speaker",
        ),
        (NotificationCode::HoldTimerExpired, _) => advice(
            format!("nothing was heard of {id} for the hold time ({hold} s here)"),
            &[
                "the host is down, or the underlay to it is",
                "its speaker hangs or gets no CPU",
                "large packets do not get through: the underlay's MTU is smaller than a link says",
            ],
            "ping the address, then with full-size packets (`ping -M do -s`); see to that speaker",
        ),
        (NotificationCode::SendHoldTimerExpired, _) => advice(
            format!("{id} stopped reading"),
            &["the BGP process there hangs or is overloaded"],
            "see to that process; a session is tried again by itself",
        ),
        (NotificationCode::Cease, cease_subcode::MAX_PREFIXES) => advice(
            format!("{id} announced more routes than it may"),
            &[
                "a host that announces what it should not",
                "a limit that is too low",
            ],
            "see what it announces, or raise its limit",
        ),
        _ => advice(
            format!(
                "the session to {id} was ended from here: {}",
                describe(notification)
            ),
            &[
                "the other end does not speak BGP as it should",
                "something else has the port there",
            ],
            "see the peer's history, and the version of the software at the other end",
        ),
    }
}

fn of_received(config: &Config, id: PeerId, notification: &NotificationMessage) -> Option<Advice> {
    let (code, subcode) = inside(notification).unwrap_or((notification.code, notification.subcode));
    let said = wire::notification::extract_shutdown_communication(notification);
    let said = said.ok().flatten().filter(|said| !said.is_empty());
    let said = said.map_or(String::new(), |said| format!(": {said:?}"));
    let advice = match (code, subcode) {
        (NotificationCode::OpenMessage, open_subcode::BAD_PEER_AS) => advice(
            format!("{id} expects this host in another AS than {}", config.asn),
            &[
                "the AS is configured wrong at one end",
                "another fabric's speaker has this address",
            ],
            "give both ends the same AS",
        ),
        (NotificationCode::OpenMessage, open_subcode::BAD_BGP_IDENTIFIER) => advice(
            format!(
                "{id} does not take this speaker's BGP router id {}",
                config.router_id
            ),
            &["two hosts were given one router id"],
            "give each host a router id of its own",
        ),
        (NotificationCode::OpenMessage, open_subcode::UNSUPPORTED_CAPABILITY) => advice(
            format!("{id} does not take this session's capabilities"),
            &["EVPN is not activated for this neighbour there"],
            "activate it at the other end (FRR: `address-family l2vpn evpn`, `neighbor .. activate`)",
        ),
        (NotificationCode::HoldTimerExpired, _) => advice(
            format!("{id} heard nothing of this host for its hold time"),
            &[
                "this host gets no CPU, or the underlay was down",
                "large packets do not get through: the underlay's MTU is smaller than a link says",
            ],
            "ping the address with full-size packets (`ping -M do -s`); see this host's load",
        ),
        (NotificationCode::SendHoldTimerExpired, _) => advice(
            format!("{id} could not get rid of its messages: this speaker stopped reading"),
            &["this host is overloaded"],
            "see this host's load",
        ),
        (NotificationCode::Cease, cease_subcode::MAX_PREFIXES) => advice(
            format!("{id} takes no more routes from this host: its limit is reached"),
            &[
                "a limit that is too low there",
                "more NICs and addresses here than were planned for",
            ],
            "raise the limit at the other end",
        ),
        (NotificationCode::Cease, cease_subcode::ADMINISTRATIVE_SHUTDOWN) => advice(
            format!("{id} was shut down by its operator{said}"),
            &[],
            "start it there when it is time",
        ),
        (NotificationCode::Cease, cease_subcode::ADMINISTRATIVE_RESET) => advice(
            format!("{id} was reset by its operator{said}"),
            &[],
            "it comes back by itself",
        ),
        (NotificationCode::Cease, cease_subcode::PEER_DECONFIGURED) => advice(
            format!("{id} has taken this host off its list"),
            &[
                "this host was removed from the fabric",
                "a mistake in the list there",
            ],
            "add this host there, or take that peer off the list here",
        ),
        (NotificationCode::Cease, cease_subcode::CONNECTION_REJECTED) => advice(
            format!("{id} does not take sessions with this host"),
            &["this host is not on its list of peers, or has been shut down there"],
            "add this host there under the address it connects from",
        ),
        (NotificationCode::Cease, cease_subcode::OUT_OF_RESOURCES) => advice(
            format!("{id} is out of memory or other resources"),
            &["more routes than that machine can hold"],
            "give that machine more, or the fabric another reflector",
        ),
        // Two connections crossed; the other one is the session.
        (NotificationCode::Cease, cease_subcode::CONNECTION_COLLISION_RESOLUTION) => return None,
        _ => advice(
            format!("{id} ended the session: {}", describe(notification)),
            &["it does not take what this speaker sent"],
            "see the peer's history, and the log at the other end",
        ),
    };
    Some(advice)
}
