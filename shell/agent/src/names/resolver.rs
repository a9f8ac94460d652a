//! The resolver of a subnet: questions by UDP and TCP.

use super::Router;
use super::shares::Share;
use dns::{Answer, Query, Transport};
use model::{NicId, SubnetId};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

const SERVICE: &str = "dns";
/// A question has one name and perhaps options. What is longer is cut off, and so malformed.
const QUESTION_BYTES: usize = 2048;
/// For the next question by TCP, and for the rest of one that has begun (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// After something that the kernel refused, so that it is not asked for it all the time.
const RETRY: Duration = Duration::from_millis(100);

/// What a question leads to at once.
enum Step {
    Send(Vec<u8>),
    Ask(Query, Share),
    Nothing,
}

/// Answers at a socket until it is aborted.
pub(super) async fn udp(router: Arc<Router>, subnet: SubnetId, socket: std::net::UdpSocket) {
    let Ok(socket) = UdpSocket::from_std(socket).map(Arc::new) else {
        return;
    };
    let mut asking = JoinSet::new();
    let mut bytes = vec![0; QUESTION_BYTES];
    loop {
        while asking.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut bytes).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "Taking a question failed");
                sleep(RETRY).await;
                continue;
            }
        };
        let Some(nic) = router.admit(subnet, from) else {
            continue;
        };
        match router.step(nic, &bytes[..length], Transport::Udp) {
            // Who does not take answers as fast as it asks loses some.
            Step::Send(reply) => drop(socket.try_send_to(&reply, from)),
            Step::Ask(query, share) => {
                let (router, socket) = (Arc::clone(&router), Arc::clone(&socket));
                asking.spawn(async move {
                    let reply = router.ask(&query).await;
                    drop(share);
                    drop(socket.try_send_to(&reply, from));
                });
            }
            Step::Nothing => {}
        }
    }
}

/// Answers at a listener until it is aborted.
pub(super) async fn tcp(router: Arc<Router>, subnet: SubnetId, listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "Taking a connection failed");
                sleep(RETRY).await;
                continue;
            }
        };
        let Some(nic) = router.admit(subnet, from) else {
            continue;
        };
        let Some(share) = router.connections.take(nic) else {
            router.tally.limited(SERVICE, nic);
            continue;
        };
        let router = Arc::clone(&router);
        connections.spawn(async move {
            // It ends with an error when the client goes, or does nothing.
            drop(router.converse(nic, stream).await);
            drop(share);
        });
    }
}

impl Router {
    /// Who asks; none for somebody who is not to be answered now.
    fn admit(&self, subnet: SubnetId, from: SocketAddr) -> Option<NicId> {
        let Some(nic) = self.facts().nic_in(subnet, from.ip()) else {
            self.tally.count(SERVICE, "unknown-asker");
            return None;
        };
        if !self.pace.allows(nic, Instant::now()) {
            self.tally.limited(SERVICE, nic);
            return None;
        }
        Some(nic)
    }

    fn step(&self, nic: NicId, bytes: &[u8], transport: Transport) -> Step {
        match dns::answer(&self.facts().zone, bytes, transport) {
            Answer::Reply(reply, event) => {
                self.tally.count(SERVICE, event.name());
                Step::Send(reply)
            }
            Answer::Dropped => {
                self.tally.count(SERVICE, "dropped");
                Step::Nothing
            }
            Answer::Forward(query) if self.forwarder.is_idle() => {
                self.tally.count(SERVICE, "no-resolver");
                Step::Send(query.refused())
            }
            Answer::Forward(query) => match self.forwarded.take(nic) {
                Some(share) => Step::Ask(query, share),
                None => {
                    self.tally.limited(SERVICE, nic);
                    Step::Send(query.refused())
                }
            },
        }
    }

    async fn ask(&self, query: &Query) -> Vec<u8> {
        match self.forwarder.ask(query).await {
            Some(reply) => {
                self.tally.count(SERVICE, "forwarded");
                reply
            }
            None => {
                self.tally.count(SERVICE, "unanswered");
                query.failed()
            }
        }
    }

    /// `| length 2 | message |`, one question after the other (RFC 1035 §4.2.2).
    async fn converse(&self, nic: NicId, mut stream: TcpStream) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            if usize::from(length) > QUESTION_BYTES {
                self.tally.count(SERVICE, "malformed");
                return Ok(());
            }
            bytes.resize(length.into(), 0);
            timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let reply = match self.step(nic, &bytes, Transport::Tcp) {
                Step::Send(reply) => reply,
                Step::Ask(query, share) => {
                    let reply = self.ask(&query).await;
                    drop(share);
                    reply
                }
                Step::Nothing => return Ok(()),
            };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
            // The connection was the first question's.
            if !self.pace.allows(nic, Instant::now()) {
                self.tally.limited(SERVICE, nic);
                return Ok(());
            }
        }
    }
}
