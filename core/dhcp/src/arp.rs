//! The server's own address, in a subnet whose router is not there: clients renew at it, and ask for
//! its MAC before.

use crate::wire::{self, Reader};
use crate::{Answer, Event, Facts, Reason};
use model::MacAddr;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// RFC 826: `| hardware 2 | protocol 2 | lengths 2 | operation 2 | sender MAC 6 | sender 4 | target
/// MAC 6 | target 4 |`
pub(crate) fn answer(facts: &Facts, payload: &[u8]) -> Answer {
    let mut reader = Reader(payload);
    let mut parse = || {
        let kinds = reader.array::<6>()?;
        let operation = reader.u16()?;
        let sender = (MacAddr(reader.array()?), reader.ipv4()?);
        reader.bytes(6)?;
        (kinds == [0, 1, 8, 0, 6, 4]).then_some((operation, sender, reader.ipv4()?))
    };
    let Some((operation, (mac, ip), target)) = parse() else {
        return Answer::dropped(Reason::Malformed);
    };
    if operation != REQUEST || mac != facts.mac || facts.resolves() != Some(target) {
        return Answer::dropped(Reason::NotARequest);
    }
    let mut frame = wire::ethernet(mac, facts.server_mac, wire::ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(REPLY.to_be_bytes());
    frame.extend(facts.server_mac.0);
    frame.extend(target.octets());
    frame.extend(mac.0);
    frame.extend(ip.octets());
    Answer {
        event: Event::Resolved,
        reply: Some(frame),
    }
}
