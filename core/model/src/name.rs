//! Names: of objects, of Linux interfaces, of network namespaces.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that cannot be the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {reason}")]
pub struct BadName {
    /// What was offered.
    pub text: String,
    /// The kind of name, with its article.
    pub what: &'static str,
    /// The rule it breaks.
    pub reason: &'static str,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and keeps it.
            pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(reason) => Err(BadName { text, what: $what, reason }),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_traits!($name);

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

macro_rules! text_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
    };
}

checked_text!(
    /// The name of an object: a DNS label (RFC 1123), so that it can become part of a host name.
    Name,
    "a name",
    check_label
);
checked_text!(
    /// The name of a network namespace: one path component under `/run/netns`.
    NetnsName,
    "a namespace name",
    check_netns
);

checked_text!(
    /// A domain name without the dot at its end, in lower case.
    DomainName,
    "a domain name",
    check_domain
);

/// Bytes of the longest name of an interface.
const IFNAME_MOST: usize = 15;

/// The name of a Linux network interface: 1 to 15 bytes (`IFNAMSIZ` less its NUL), as
/// `dev_valid_name` in the kernel wants it.
// Every row of a forwarding database holds one, and a host may have hundreds of thousands: the text
// is in the value, so that a row is made and compared without the heap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName {
    /// Padded with NUL, which no name holds: the order is that of the texts.
    bytes: [u8; IFNAME_MOST],
    length: u8,
}

impl IfName {
    /// Checks `text` and keeps it.
    pub fn new(text: impl Into<String> + AsRef<str>) -> Result<Self, BadName> {
        if let Err(reason) = check_ifname(text.as_ref()) {
            return Err(BadName {
                text: text.into(),
                what: "an interface name",
                reason,
            });
        }
        let text = text.as_ref().as_bytes();
        let mut bytes = [0; IFNAME_MOST];
        bytes[..text.len()].copy_from_slice(text);
        Ok(Self {
            bytes,
            length: text.len() as u8,
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..usize::from(self.length)];
        std::str::from_utf8(bytes).expect("the check lets ASCII through")
    }
}

text_traits!(IfName);

impl From<IfName> for String {
    fn from(name: IfName) -> String {
        name.as_str().to_owned()
    }
}

fn check_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 63 {
        return Err("it is longer than 63 characters");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return Err("only a-z, 0-9 and - may be used");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it must not start or end with -");
    }
    Ok(())
}

/// RFC 1035 §2.3.4, and `_`, which names of services have.
fn check_domain(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 253 {
        return Err("it is longer than 253 characters");
    }
    for label in text.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err("between dots it must have 1 to 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("no part of it may start or end with -");
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
        {
            return Err("only a-z, 0-9, -, _ and dots may be used");
        }
    }
    Ok(())
}

fn check_ifname(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > IFNAME_MOST {
        return Err("it is longer than 15 bytes, the most Linux takes");
    }
    if text == "." || text == ".." {
        return Err("it is a directory");
    }
    if text
        .bytes()
        .any(|b| b == b'/' || b == b':' || b == b'%' || !b.is_ascii_graphic())
    {
        return Err("it holds a character that Linux or its tools refuse: / : % space or control");
    }
    Ok(())
}

fn check_netns(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 64 {
        return Err("it is longer than 64 characters");
    }
    if text.starts_with('.') || text.starts_with('-') {
        return Err("it must not start with . or -");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err("only letters, digits, - _ and . may be used");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(Name::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Web",
            "a.b",
            "a b",
            "a/b",
            "ä",
            &"x".repeat(64),
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn domain_names_fit_dns() {
        let long = vec!["x".repeat(63); 4].join(".");
        for good in ["internal", "blue.internal", "_sip._udp.a-1.b", &long[2..]] {
            assert!(DomainName::new(good).is_ok(), "{good:?} was refused");
        }
        for bad in [
            "", ".", "a.", ".a", "a..b", "-a.b", "a-.b", "A.b", "a b", "ä.b", &long,
        ] {
            assert!(DomainName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let name = |text: &str| IfName::new(text).unwrap();
        assert_eq!(name("n-0123456789ABC").as_str(), "n-0123456789ABC");
        assert_eq!(String::from(name("a")), "a");
        // In order as texts are.
        assert!(name("a") < name("a-") && name("a-9") < name("b") && name("t-1") < name("t-10"));
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "eth0:1",
            "0123456789abcdef",
            "a\n",
        ] {
            assert!(IfName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn namespace_names_stay_in_their_directory() {
        for bad in ["", "..", "../x", "a/b", "-n", ".hidden", "a b"] {
            assert!(NetnsName::new(bad).is_err(), "{bad:?} was taken");
        }
    }
}
