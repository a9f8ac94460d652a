//! The VXLAN header.

use model::Vni;

/// UDP port of VXLAN (RFC 7348 §4).
pub const VXLAN_PORT: u16 = 4789;

/// `| flags 1, I is 0x08 | reserved 3 | VNI 3 | reserved 1 |` (RFC 7348 §5)
pub(crate) const VXLAN_BYTES: usize = 8;
const HAS_VNI: u8 = 0x08;

pub(crate) fn header(vni: Vni) -> [u8; VXLAN_BYTES] {
    let [_, a, b, c] = vni.get().to_be_bytes();
    [HAS_VNI, 0, 0, 0, a, b, c, 0]
}

/// The VNI; none if the packet is too short, has no VNI or has zero. Reserved bits are ignored, as
/// RFC 7348 wants it.
pub fn vni_of(packet: &[u8]) -> Option<Vni> {
    let header = packet.first_chunk::<VXLAN_BYTES>()?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    (header[0] & HAS_VNI != 0).then(|| Vni::new(vni).ok())?
}
