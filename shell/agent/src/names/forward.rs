//! Asking others: from the host's own network, never from a tenant's.

use dns::{Query, Transport};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Where the system has its resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as are asked one after the other.
const RESOLVERS: usize = 3;
/// For one resolver; a client's own patience is five seconds for all.
const PATIENCE: Duration = Duration::from_secs(2);
/// Under way at a time, of all routers.
const UNDER_WAY: usize = 1024;
/// Datagrams that are no answer to the question, from where the answer is to come; then it is given up.
const WRONG: usize = 8;
/// Of resolvers.
const PORT: u16 = 53;

/// Who is asked, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolvers(Vec<SocketAddr>);

impl Resolvers {
    /// The first few of these.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        Self(addresses.iter().copied().take(RESOLVERS).collect())
    }
}

/// Those of the host, but for its own loopback: what answers there knows the host's names, which are no
/// tenant's business.
pub(crate) fn of_host() -> Resolvers {
    let text = match std::fs::read_to_string(RESOLV_CONF) {
        Ok(text) => text,
        Err(error) => {
            warn!(%error, "{RESOLV_CONF} cannot be read: nobody is asked for other names");
            String::new()
        }
    };
    parse(&text)
}

fn parse(text: &str) -> Resolvers {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        let address: IpAddr = words.next()?.parse().ok()?;
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    let servers = text.lines().filter_map(server);
    Resolvers(
        servers
            .map(|ip| SocketAddr::new(ip, PORT))
            .take(RESOLVERS)
            .collect(),
    )
}

/// Asks others.
pub(super) struct Forwarder {
    resolvers: Vec<SocketAddr>,
    under_way: Semaphore,
}

impl Forwarder {
    pub(super) fn new(resolvers: Resolvers) -> Self {
        Self {
            resolvers: resolvers.0,
            under_way: Semaphore::new(UNDER_WAY),
        }
    }

    /// There is nobody to ask.
    pub(super) fn is_idle(&self) -> bool {
        self.resolvers.is_empty()
    }

    /// The first answer of anybody, as the asker gets it; none if nobody answers.
    pub(super) async fn ask(&self, query: &Query) -> Option<Vec<u8>> {
        let _one = self.under_way.try_acquire().ok()?;
        for resolver in &self.resolvers {
            let asked = async {
                match query.transport() {
                    Transport::Udp => by_udp(*resolver, query).await,
                    Transport::Tcp => by_tcp(*resolver, query).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => debug!(%resolver, %error, "A resolver could not be asked"),
                Err(_) => debug!(%resolver, "A resolver did not answer in time"),
            }
        }
        None
    }
}

/// By a socket of its own: the kernel gives it a random port, and takes datagrams for it from the
/// resolver only.
async fn by_udp(resolver: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    let id = rand::random();
    socket.send(&query.encode(id)).await?;
    let mut bytes = vec![0; query.most_reply_bytes()];
    for _ in 0..WRONG {
        let length = socket.recv(&mut bytes).await?;
        match query.accept(id, &bytes[..length]) {
            Ok(reply) => return Ok(reply),
            Err(bad) => debug!(%resolver, %bad, "Not an answer to what was asked"),
        }
    }
    Err(io::Error::other("too many datagrams that are no answer"))
}

async fn by_tcp(resolver: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let id = rand::random();
    let asked = query.encode(id);
    let length = u16::try_from(asked.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], &asked].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    query.accept(id, &bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_resolvers_but_for_its_loopback() {
        let of = |text: &str| {
            let told = |address: &SocketAddr| address.to_string();
            parse(text).0.iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(
            of(
                "# none\nsearch lan\nnameserver 127.0.0.53\nnameserver\t192.0.2.53 # ours\n nameserver 2001:db8::53\nnameserver nonsense\nnameservers 192.0.2.1"
            ),
            ["192.0.2.53:53", "[2001:db8::53]:53"]
        );
        assert_eq!(of("nameserver 127.0.0.1\nnameserver ::1\n"), [""; 0]);
    }
}
