//! What a router tells a workload: a name's address, and its own host name.

use crate::failure::{Doing, Failure, Outcome};
use crate::output::json;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// An answer that takes longer is no answer.
const PATIENCE: Duration = Duration::from_secs(2);
const METADATA: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);
const ID: u16 = 0x6c61;

/// What was told; none where nothing was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The name's IPv4 address.
    pub(crate) address: Option<Ipv4Addr>,
    /// What the metadata call the one who asks.
    pub(crate) hostname: Option<String>,
}

/// Asks both, and prints what was told.
pub(crate) fn ask(resolver: IpAddr, name: &str) -> Outcome {
    json(&Told {
        address: address(resolver, name)?,
        hostname: hostname(),
    })
}

fn address(resolver: IpAddr, name: &str) -> Outcome<Option<Ipv4Addr>> {
    let doing = || format!("asking {resolver} for {name}");
    let any: IpAddr = match resolver {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).doing(doing)?;
    socket.set_read_timeout(Some(PATIENCE)).doing(doing)?;
    socket.connect(SocketAddr::new(resolver, 53)).doing(doing)?;
    // RFC 1035 §4: one question for an address, recursion desired.
    let mut question = [ID.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n));
        question.push(length.ok_or_else(|| Failure::new(format!("{name} is no name")))?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut answer = [0; 512];
    let answered = socket
        .send(&question)
        .and_then(|_| socket.recv(&mut answer));
    let Ok(length) = answered else {
        return Ok(None);
    };
    let answer = &answer[..length];
    let is_ours = answer.get(..2) == Some(&ID.to_be_bytes()) && answer.get(7) == Some(&1);
    // One record: its data are the four bytes after the pointer, type, class, TTL and length.
    let at = question.len() + 12;
    let data = answer.get(at..at + 4).filter(|_| is_ours);
    Ok(data.map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3])))
}

fn hostname() -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&METADATA.into(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!(
        "GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        METADATA.0
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.take(65_536).read_to_string(&mut text).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    let told: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(told["hostname"].as_str()?.to_owned())
}
