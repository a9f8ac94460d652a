//! Volumes, as a host's storage process is told of them.

use crate::{AccountId, HostId, Meta, Name, UnixMillis, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// TCP port at which storage processes reach each other, on their hosts' underlay addresses.
pub const STORAGE_PORT: u16 = 7445;
/// Replicas of a volume at most.
pub const MOST_REPLICAS: usize = 7;

/// A disk of a host: 128 random bits that are drawn when it is made. One that is made anew is another, so that a
/// host which lost what it had promised is not taken for the one that promised it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(pub u128);

/// Text that is no disk's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a disk's id: 32 hexadecimal digits")]
pub struct BadDiskId(String);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskId({self})")
    }
}

impl FromStr for DiskId {
    type Err = BadDiskId;
    fn from_str(text: &str) -> Result<Self, BadDiskId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits
            .then(|| u128::from_str_radix(text, 16).ok())
            .flatten();
        number.map(Self).ok_or_else(|| BadDiskId(text.to_owned()))
    }
}

impl TryFrom<String> for DiskId {
    type Error = BadDiskId;
    fn try_from(text: String) -> Result<Self, BadDiskId> {
        text.parse()
    }
}

impl From<DiskId> for String {
    fn from(id: DiskId) -> String {
        id.to_string()
    }
}

/// A volume's size in bytes: whole MiB, up to 512 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct VolumeSize(u64);

/// What is no size of a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadVolumeSize {
    /// Not a number of bytes.
    #[error("{0:?} is not a size: a number with KiB, MiB, GiB or TiB, such as 10GiB")]
    Text(String),
    /// Too small, too large, or in between.
    #[error("{0} bytes: a volume has whole MiB, from 1 MiB to 512 TiB")]
    Range(u64),
}

const MIB: u64 = 1 << 20;

impl VolumeSize {
    /// The largest: what the format on disk can tell of.
    pub const MOST: u64 = 512 << 40;

    /// Checked.
    pub const fn new(bytes: u64) -> Result<Self, BadVolumeSize> {
        if bytes == 0 || !bytes.is_multiple_of(MIB) || bytes > Self::MOST {
            return Err(BadVolumeSize::Range(bytes));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for VolumeSize {
    type Err = BadVolumeSize;
    fn from_str(text: &str) -> Result<Self, BadVolumeSize> {
        let bad = || BadVolumeSize::Text(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
        Self::new(bytes)
    }
}

impl fmt::Display for VolumeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20)];
        let whole = units
            .iter()
            .find(|(_, shift)| self.0.is_multiple_of(1 << shift));
        let (unit, shift) = whole.expect("a size has whole MiB");
        f.pad(&format!("{}{unit}", self.0 >> shift))
    }
}

impl TryFrom<u64> for VolumeSize {
    type Error = BadVolumeSize;
    fn try_from(bytes: u64) -> Result<Self, BadVolumeSize> {
        Self::new(bytes)
    }
}

impl From<VolumeSize> for u64 {
    fn from(size: VolumeSize) -> u64 {
        size.0
    }
}

/// A disk of an account's, replicated over hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Identity.
    pub id: VolumeId,
    /// Owner.
    pub account: AccountId,
    /// Unique among the account's volumes.
    pub name: Name,
    /// Its size.
    pub size: VolumeSize,
    /// Where its replicas are to be. None of a volume that is being erased.
    pub replicas: Vec<Replica>,
    /// What it was made with.
    pub founding: Founding,
    /// Replicas that are to go, or to be gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Leaving>,
    /// The number of the replica that was placed last.
    pub numbered: u64,
    /// Where it is attached: on one host, or read-only on any number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<AttachedTo>,
    /// Attachments that there were: the number of the last.
    #[serde(default)]
    pub attachments: u64,
    /// Replicas that it is to have beside those that are placed: there was no room yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lacking: usize,
    /// The last time that it went on from one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Recovered>,
    /// It was deleted. Its replicas are kept for a while, so that it can be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Deleted>,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// What a volume was made with: a replica that its host makes later has to begin with the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Its size.
    pub size: VolumeSize,
    /// Its replicas.
    pub replicas: Vec<Replica>,
}

/// When a volume was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Since when.
    pub at: UnixMillis,
    /// From then on its replicas go, and it cannot be restored.
    pub until: UnixMillis,
}

/// A replica that is not to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Which.
    #[serde(flatten)]
    pub replica: Replica,
    /// The others do without it: whatever its host still has of it is to be deleted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gone: bool,
    /// The volume went on without it: it has no part any more, whatever it holds, and nobody waits for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
}

/// A volume goes on from one replica: those that could outvote it are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Which recovery of the volume, from 1.
    pub number: u64,
    /// The number of the replica that it goes on from.
    pub replica: u64,
    /// Attachments up to this one are over: their clients remember what may be lost.
    pub attachments: u64,
}

/// When a volume went on from one replica, and what was known then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// What the hosts are told.
    #[serde(flatten)]
    pub recovery: Recovery,
    /// Since when.
    pub at: UnixMillis,
    /// The last entry of the replica that it went on from.
    pub kept: u64,
    /// The last entry that any replica was known to have.
    pub known: u64,
}

/// Where a volume is attached, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedTo {
    /// The host.
    pub host: HostId,
    /// Which attachment, and how.
    #[serde(flatten)]
    pub attachment: VolumeAttachment,
}

impl Volume {
    /// Hosts that have something to do with it.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<'_> {
        let gone = |leaving: &&Leaving| leaving.gone || leaving.lost;
        let gone = self.leaving.iter().filter(gone);
        self.hosts_in_use()
            .chain(gone.map(|leaving| leaving.replica.host))
    }

    /// Hosts that it cannot do without yet.
    pub fn hosts_in_use(&self) -> impl Iterator<Item = HostId> + use<'_> {
        let replicas = self.members().map(|replica| replica.host);
        replicas.chain(self.attached.iter().map(|attached| attached.host))
    }

    /// Replicas that may have a part in it: those that are to be, and those that go and are neither gone nor lost.
    pub fn members(&self) -> impl Iterator<Item = &Replica> + use<'_> {
        let goes = |leaving: &&Leaving| !leaving.gone && !leaving.lost;
        let leaving = self.leaving.iter().filter(goes);
        self.replicas
            .iter()
            .chain(leaving.map(|leaving| &leaving.replica))
    }

    /// Its replicas are being deleted for good.
    pub fn is_erasing(&self) -> bool {
        self.deleted.is_some() && self.replicas.is_empty()
    }

    /// Where it is attached, on a host.
    pub fn attached_to(&self, host: HostId) -> Option<&AttachedTo> {
        self.attached.iter().find(|attached| attached.host == host)
    }
}

/// All that a host has to do with volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageConfig {
    /// Underlay addresses of the other hosts that replicas and attachments here talk to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<HostId, IpAddr>,
    /// Volumes that have a replica here, or are attached here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeConfig>,
    /// Volumes that are no more: a replica that is left here goes. What is neither here nor among the volumes is
    /// left as it is.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deleted: BTreeSet<VolumeId>,
}

impl StorageConfig {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A volume, to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Identity.
    pub id: VolumeId,
    /// The name of its export.
    pub name: Name,
    /// Its size.
    pub size: VolumeSize,
    /// All of its replicas, as they are to be.
    pub replicas: Vec<Replica>,
    /// What it was made with, where that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founding: Option<Founding>,
    /// Replicas that are to go, and may still have a part in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Replica>,
    /// The number of the replica that was placed last: who knows of a later one is not to be changed by this.
    #[serde(default)]
    pub numbered: u64,
    /// The last time that it went on from one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// How it is attached here, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<VolumeAttachment>,
}

impl VolumeConfig {
    /// What it was made with.
    pub fn founding(&self) -> Founding {
        let now = || Founding {
            size: self.size,
            replicas: self.replicas.clone(),
        };
        self.founding.clone().unwrap_or_else(now)
    }

    /// Hosts that have a part in it.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<'_> {
        let all = self.replicas.iter().chain(&self.leaving);
        all.map(|replica| replica.host)
    }
}

/// A replica of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Replica {
    /// From 1, and never used again in the volume.
    pub number: u64,
    /// Where it is.
    pub host: HostId,
    /// The disk it was placed on.
    pub disk: DiskId,
}

/// How a volume is attached to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// Which attachment of the volume: larger at each.
    pub number: u64,
    /// Nothing may be written.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// A port on the loopback address, beside the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_and_shown() {
        for (text, bytes) in [
            ("1MiB", 1 << 20),
            ("10GiB", 10 << 30),
            ("512 TiB", 512 << 40),
            ("2048K", 2 << 20),
            ("1048576", 1 << 20),
        ] {
            assert_eq!(
                text.parse::<VolumeSize>().map(VolumeSize::bytes),
                Ok(bytes),
                "{text}"
            );
        }
        assert_eq!(VolumeSize::new(1536 << 20).unwrap().to_string(), "1536MiB");
        assert_eq!("10GiB".parse::<VolumeSize>().unwrap().to_string(), "10GiB");
        for bad in [
            "",
            "GiB",
            "10GB",
            "-1GiB",
            "1.5GiB",
            "0MiB",
            "1KiB",
            "513TiB",
            "99999999999TiB",
        ] {
            assert!(bad.parse::<VolumeSize>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_disks_id_survives_its_text() {
        let id = DiskId(0xfeed_0000_0000_0000_0000_0000_0000_0001);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "1",
            "+0000000000000000000000000000001",
            "0000000000000000000000000000000g",
        ] {
            assert!(bad.parse::<DiskId>().is_err(), "{bad:?} was taken");
        }
    }
}
