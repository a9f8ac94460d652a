//! What an EVPN route says beside what identifies it, kept small: a reflector holds millions.

use crate::codec::RouteKey;
use bytes::{BufMut, Bytes};
use std::net::IpAddr;
use std::sync::Arc;

/// What a route says beside its key. Together they give the route as it came, octet for octet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Types 2 and 3 without an Ethernet segment: nothing but the labels of Type 2, and how many
    /// octets of them there are: 0, 3 or 6.
    Labels { octets: [u8; 6], len: u8 },
    /// Anything else: `| type 1 | length 1 | value |`.
    Whole(Arc<[u8]>),
}

/// The longest route written from a key and labels: Type 2 with IPv6 and two labels.
const WRITTEN_MAX_BYTES: usize = 2 + 33 + 16 + 3;

impl Rest {
    /// Of a route that was read with this key.
    pub(crate) fn of(key: &RouteKey, raw: &[u8]) -> Self {
        let labels_at = match key {
            RouteKey::MacIp { ip, .. } => 2 + 30 + ip.map_or(0, |ip| octets_of(ip).len()),
            RouteKey::Imet { .. } => raw.len(),
            RouteKey::Other { .. } => return Self::Whole(raw.into()),
        };
        if let Some(labels @ ([] | [_, _, _] | [_, _, _, _, _, _])) = raw.get(labels_at..) {
            let mut octets = [0; 6];
            octets[..labels.len()].copy_from_slice(labels);
            let len = u8::try_from(labels.len()).expect("at most 6");
            let short = Self::Labels { octets, len };
            let mut written = [0; WRITTEN_MAX_BYTES];
            let mut left = &mut written[..];
            short.write(key, &mut left);
            let free = left.len();
            if written[..WRITTEN_MAX_BYTES - free] == *raw {
                return short;
            }
        }
        Self::Whole(raw.into())
    }

    /// First label of a Type-2 route, label of a Type-5 route: the VNI (RFC 8365 §5.1.3, RFC 9136
    /// §3.1).
    pub(crate) fn label(&self, key: &RouteKey) -> Option<u32> {
        let ip = match key {
            RouteKey::MacIp { ip, .. } => ip,
            RouteKey::Other { kind: 5, .. } => return crate::prefix::label(self),
            _ => return None,
        };
        let label: [u8; 3] = match self {
            Self::Labels { octets, .. } => octets[..3].try_into().ok()?,
            Self::Whole(raw) => {
                let at = 2 + 30 + ip.map_or(0, |ip| octets_of(ip).len());
                raw.get(at..at + 3)?.try_into().ok()?
            }
        };
        Some(u32::from_be_bytes([0, label[0], label[1], label[2]]))
    }

    /// Second label of a Type-2 route, if it has one: the VNI that its address is routed over (RFC
    /// 9135 §5.1).
    pub(crate) fn routed_label(&self, key: &RouteKey) -> Option<u32> {
        let RouteKey::MacIp { ip, .. } = key else {
            return None;
        };
        let label: [u8; 3] = match self {
            Self::Labels { octets, len: 6 } => octets[3..].try_into().ok()?,
            Self::Labels { .. } => return None,
            Self::Whole(raw) => {
                let at = 2 + 30 + ip.map_or(0, |ip| octets_of(ip).len()) + 3;
                raw.get(at..at + 3)?.try_into().ok()?
            }
        };
        Some(u32::from_be_bytes([0, label[0], label[1], label[2]]))
    }

    /// How many octets [`Self::write`] writes.
    pub(crate) fn written_len(&self, key: &RouteKey) -> usize {
        match (self, key) {
            (Self::Whole(raw), _) => raw.len(),
            (Self::Labels { len, .. }, RouteKey::MacIp { ip, .. }) => {
                2 + 30 + ip.map_or(0, |ip| octets_of(ip).len()) + usize::from(*len)
            }
            (Self::Labels { .. }, RouteKey::Imet { originator, .. }) => {
                2 + 13 + octets_of(*originator).len()
            }
            (Self::Labels { .. }, RouteKey::Other { .. }) => 0,
        }
    }

    /// The route as it came.
    pub(crate) fn write(&self, key: &RouteKey, out: &mut impl BufMut) {
        let (octets, len) = match self {
            Self::Whole(raw) => return out.put_slice(raw),
            Self::Labels { octets, len } => (octets, usize::from(*len)),
        };
        let value_len = |len: usize| u8::try_from(len - 2).expect("types 2 and 3 are short");
        let length = value_len(self.written_len(key).max(2));
        match key {
            RouteKey::MacIp { rd, tag, mac, ip } => {
                out.put_u8(2);
                out.put_u8(length);
                out.put_slice(&rd.to_bytes());
                out.put_bytes(0, 10);
                out.put_u32(*tag);
                out.put_u8(48);
                out.put_slice(&mac.0);
                match ip {
                    Some(ip) => put_address(*ip, out),
                    None => out.put_u8(0),
                }
                out.put_slice(&octets[..len]);
            }
            RouteKey::Imet {
                rd,
                tag,
                originator,
            } => {
                out.put_u8(3);
                out.put_u8(length);
                out.put_slice(&rd.to_bytes());
                out.put_u32(*tag);
                put_address(*originator, out);
            }
            // Routes of other types are kept whole.
            RouteKey::Other { .. } => {}
        }
    }
}

enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl std::ops::Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

fn octets_of(ip: IpAddr) -> Octets {
    match ip {
        IpAddr::V4(ip) => Octets::V4(ip.octets()),
        IpAddr::V6(ip) => Octets::V6(ip.octets()),
    }
}

/// `| bits 1 | address |`
fn put_address(ip: IpAddr, out: &mut impl BufMut) {
    let octets = octets_of(ip);
    out.put_u8(if ip.is_ipv4() { 32 } else { 128 });
    out.put_slice(&octets);
}

/// A route to withdraw: what is no part of the key is zero.
pub(crate) fn withdrawal(key: &RouteKey) -> Rest {
    match key {
        RouteKey::Imet { .. } => Rest::Labels {
            octets: [0; 6],
            len: 0,
        },
        RouteKey::MacIp { .. } => Rest::Labels {
            octets: [0; 6],
            len: 3,
        },
        RouteKey::Other { kind, id } => Rest::Whole(other_withdrawal(*kind, id)),
    }
}

fn other_withdrawal(kind: u8, id: &Bytes) -> Arc<[u8]> {
    let mut value = Vec::with_capacity(64);
    match kind {
        1 => {
            value.put_slice(id);
            value.put_bytes(0, 3);
        }
        5 => {
            let prefix_bytes = id.len() - 13;
            value.put_slice(&id[..8]);
            value.put_bytes(0, 10);
            value.put_slice(&id[8..]);
            value.put_bytes(0, prefix_bytes + 3);
        }
        6 => {
            value.put_slice(id);
            value.put_u8(0);
        }
        _ => value.put_slice(id),
    }
    let length = u8::try_from(value.len()).expect("it came with a length of one octet");
    [kind, length].into_iter().chain(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Nlri;

    /// A million of them are held: know what they cost.
    #[test]
    fn sizes() {
        assert!(size_of::<RouteKey>() <= 40, "{}", size_of::<RouteKey>());
        assert!(size_of::<Rest>() <= 24, "{}", size_of::<Rest>());
        let held = size_of::<(crate::rib::Source, crate::rib::Path)>();
        assert!(held <= 80, "{held}");
    }

    fn mac_ip(segment: u8, ip: &[u8], labels: &[u8]) -> Vec<u8> {
        let mut raw = vec![2, 0, 0, 1, 10, 0, 0, 1, 0, 7];
        raw.extend([segment; 10]);
        raw.extend([0, 0, 0, 9, 48, 2, 0, 0, 0, 0, 1]);
        raw.push(u8::try_from(ip.len() * 8).unwrap());
        raw.extend(ip);
        raw.extend(labels);
        raw[1] = u8::try_from(raw.len() - 2).unwrap();
        raw
    }

    #[test]
    fn a_route_comes_back_as_it_came() {
        let mut routes = vec![];
        for ip in [&[][..], &[10, 0, 0, 1], &[0xfd; 16]] {
            for labels in [&[1, 2, 3][..], &[1, 2, 3, 4, 5, 6]] {
                routes.push((mac_ip(0, ip, labels), true));
                routes.push((mac_ip(5, ip, labels), false));
            }
        }
        let imet = [3, 17, 0, 1, 10, 0, 0, 1, 0, 7, 0, 0, 0, 9, 32, 10, 0, 0, 1];
        routes.push((imet.to_vec(), true));
        routes.push((vec![9, 3, 1, 2, 3], false));
        for (raw, short) in routes {
            let nlri = Nlri::decode(Bytes::from(raw.clone())).unwrap();
            let rest = Rest::of(&nlri.key, &raw);
            assert_eq!(matches!(rest, Rest::Labels { .. }), short, "{raw:02x?}");
            let mut written = vec![];
            rest.write(&nlri.key, &mut written);
            assert_eq!(written, raw);
            assert_eq!(rest.written_len(&nlri.key), raw.len());
            assert_eq!(rest.label(&nlri.key), nlri.label);
            let two = raw[0] == 2 && raw.ends_with(&[1, 2, 3, 4, 5, 6]);
            let second = two.then_some(0x0004_0506);
            assert_eq!(rest.routed_label(&nlri.key), second, "{raw:02x?}");
        }
    }
}
