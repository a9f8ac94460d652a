//! Ids as the management side has them, and as disks and frames do.

use model::{HostId, VolumeId};
use sha2::{Digest, Sha256};

/// The cluster, as superblocks and hellos name it: the beginning of its id's SHA-256.
pub(crate) fn cluster(id: &str) -> u128 {
    let hash: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    let first: [u8; 16] = hash[..16].try_into().expect("a hash has 32 bytes");
    u128::from_be_bytes(first)
}

pub(crate) fn host(id: HostId) -> replication::HostId {
    replication::HostId(u128::from(id.bits()))
}

/// None for a number that no host of ours has.
pub(crate) fn host_back(id: replication::HostId) -> Option<HostId> {
    let back = HostId::from_random(id.0 as u64);
    (host(back) == id).then_some(back)
}

pub(crate) fn volume(id: VolumeId) -> blocks::VolumeId {
    blocks::VolumeId::new(u128::from(id.bits()))
}

/// None for a number that no volume of ours has.
pub(crate) fn volume_back(id: blocks::VolumeId) -> Option<VolumeId> {
    let back = VolumeId::from_random(id.get() as u64);
    (volume(back) == id).then_some(back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_and_foreign_numbers_are_none() {
        let (a, b) = (HostId::from_random(77), VolumeId::from_random(78));
        assert_eq!(host_back(host(a)), Some(a));
        assert_eq!(volume_back(volume(b)), Some(b));
        assert_eq!(host_back(replication::HostId(1 << 64)), None);
        assert_eq!(volume_back(blocks::VolumeId::new(1 << 50)), None);
        assert_ne!(cluster("c-1"), cluster("c-2"));
    }
}
