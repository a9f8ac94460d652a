//! Versions of FRR, and what each can do.

use std::fmt;

/// A release: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

/// What not every FRR can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// EVPN as it is needed here at all: VLAN-based service, explicit distinguishers, freezing.
    Evpn,
    /// Several VNIs on one VXLAN device.
    SingleVxlanDevice,
    /// Keeps a restarting peer's EVPN routes (RFC 4724, receiving side).
    EvpnGracefulRestart,
    /// VTEPs with IPv6 addresses.
    V6Vtep,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Evpn,
        Self::SingleVxlanDevice,
        Self::EvpnGracefulRestart,
        Self::V6Vtep,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evpn => "evpn",
            Self::SingleVxlanDevice => "single-vxlan-device",
            Self::EvpnGracefulRestart => "evpn-graceful-restart",
            Self::V6Vtep => "ipv6-underlay",
        }
    }

    /// The first release with it.
    pub const fn since(self) -> Version {
        match self {
            Self::Evpn => Version(8, 4, 0),
            Self::SingleVxlanDevice => Version(9, 0, 0),
            Self::EvpnGracefulRestart | Self::V6Vtep => Version(10, 6, 0),
        }
    }
}

impl Version {
    /// From `show version` or `bgpd --version`: the first number after a word that begins with
    /// "FRR" or is "version".
    pub fn find(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().take(64).collect();
        words.windows(2).find_map(|pair| match pair {
            [name, number] if name.starts_with("FRR") || *name == "version" => Self::parse(number),
            _ => None,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = |part: &str| -> Option<u16> {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().ok()
        };
        let mut parts = text.split('.');
        let major = digits(parts.next()?)?;
        let minor = digits(parts.next()?)?;
        Some(Self(
            major,
            minor,
            parts.next().and_then(digits).unwrap_or(0),
        ))
    }

    /// True if this release has it.
    pub fn has(self, feature: Feature) -> bool {
        self >= feature.since()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.0, self.1, self.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_is_printed() {
        let found = |text| Version::find(text).map(|version| version.to_string());
        let text = "FRRouting 8.4.4 (c1) on Linux(6.1.0).\nCopyright 1996-2005 Kunihiro Ishiguro";
        assert_eq!(found(text).as_deref(), Some("8.4.4"));
        let text = "bgpd version 8.4.4\nCopyright 1996";
        assert_eq!(found(text).as_deref(), Some("8.4.4"));
        assert_eq!(
            found("FRRouting 10.0-dev-MyOwn (x)").as_deref(),
            Some("10.0.0")
        );
        assert_eq!(found("FRRouting 9.1.3-0~deb12").as_deref(), Some("9.1.3"));
        for other in [
            "",
            "FRRouting",
            "FRRouting (c1)",
            "version x.y",
            "FRR 99999999.1",
        ] {
            assert_eq!(found(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_which_release_can_do() {
        let table = [
            (Version(7, 5, 1), vec![]),
            (Version(8, 4, 4), vec![Feature::Evpn]),
            (Version(8, 5, 0), vec![Feature::Evpn]),
            (
                Version(9, 0, 0),
                vec![Feature::Evpn, Feature::SingleVxlanDevice],
            ),
            (
                Version(10, 5, 2),
                vec![Feature::Evpn, Feature::SingleVxlanDevice],
            ),
            (Version(10, 6, 0), Feature::ALL.to_vec()),
            (Version(11, 0, 0), Feature::ALL.to_vec()),
        ];
        for (version, expected) in table {
            let has: Vec<Feature> = Feature::ALL
                .into_iter()
                .filter(|feature| version.has(*feature))
                .collect();
            assert_eq!(has, expected, "{version}");
        }
    }
}
