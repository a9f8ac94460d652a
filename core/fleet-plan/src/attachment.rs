//! What a user writes for a NIC's other end, before the device is chosen.

use model::{Attachment, BadAttachment, IfName, NetnsName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An attachment as asked for: `tap`, `netns:NAME`, `netns:NAME:DEVICE` or `existing:IFNAME`.
/// Without a device the first free of eth0, eth1, ... in the namespace is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentSpec {
    /// A TAP device for a virtual machine.
    Tap,
    /// A veth pair into a network namespace.
    Netns {
        /// The namespace.
        netns: NetnsName,
        /// The interface's name inside, if it matters.
        device: Option<IfName>,
    },
    /// An interface that already exists on the host.
    Existing {
        /// Its name.
        ifname: IfName,
    },
}

impl FromStr for AttachmentSpec {
    type Err = BadAttachment;
    fn from_str(text: &str) -> Result<Self, BadAttachment> {
        Ok(match text.parse::<Attachment>()? {
            Attachment::Tap => Self::Tap,
            Attachment::Existing { ifname } => Self::Existing { ifname },
            Attachment::Netns { netns, device } => Self::Netns {
                netns,
                // `netns:a` and `netns:a:eth0` parse alike; only the latter insists on eth0.
                device: (text.matches(':').count() > 1).then_some(device),
            },
        })
    }
}

impl fmt::Display for AttachmentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap => f.write_str("tap"),
            Self::Netns {
                netns,
                device: None,
            } => write!(f, "netns:{netns}"),
            Self::Netns {
                netns,
                device: Some(device),
            } => write!(f, "netns:{netns}:{device}"),
            Self::Existing { ifname } => write!(f, "existing:{ifname}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_survive_their_text() {
        for text in [
            "tap",
            "netns:a1",
            "netns:a1:eth0",
            "netns:a1:eth1",
            "existing:ens3",
        ] {
            assert_eq!(text.parse::<AttachmentSpec>().unwrap().to_string(), text);
        }
        assert!("netns:a:b:c".parse::<AttachmentSpec>().is_err());
    }
}
