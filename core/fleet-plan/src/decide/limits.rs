//! Limits that keep an object, and a message about it, at a sane size.

use crate::Refusal;
use model::Labels;

/// As many as AWS allows in a VPC; each is a row in every router's table later.
pub(super) const CIDRS_PER_VPC: usize = 50;

/// Gateways of an external network, and pools of it.
pub(super) const EXTERNAL_PARTS: usize = 16;

/// Each is an interface in the router's namespace.
pub(super) const LEGS_PER_ROUTER: usize = 256;

/// More than a route host's ruleset is meant for: all of them may be of one router.
pub(super) const PUBLIC_IPS_PER_NETWORK: usize = 4096;

/// Source addresses to choose from.
pub(super) const OWN_PER_ROUTER: usize = 256;

/// As many as AWS allows in a route table when asked.
pub(super) const ROUTES_PER_ROUTER: usize = 1000;

/// Each is a rule of the router's ruleset.
pub(super) const FORWARDS_PER_ROUTER: usize = 1000;

/// Of all NICs of a VPC together: a message to a route host, and its file, stay a few MiB. A quarter
/// of what a thousand NICs could have.
pub(super) const USER_DATA_PER_VPC: usize = 4 << 20;

/// Keys and values of an object's labels together.
const LABEL_BYTES: usize = 1000;

/// Names in a refusal; the rest is counted.
pub(super) const NAMED_BLOCKERS: usize = 3;

pub(super) fn check_labels(labels: &Labels) -> Result<(), Refusal> {
    for (key, value) in labels {
        let bad = |reason| {
            Err(Refusal::Label {
                key: key.chars().take(63).collect(),
                reason,
            })
        };
        if key.is_empty() || key.len() > 63 {
            return bad("has a key that is empty or longer than 63 bytes: shorten it");
        }
        if !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        {
            return bad(
                "has a key with other characters than letters, digits and - _ . /: use those",
            );
        }
        if value.chars().any(char::is_control) {
            return bad("has a value with control characters: leave them out");
        }
    }
    let bytes: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > LABEL_BYTES {
        return Err(Refusal::TooMany {
            object: "the object".to_owned(),
            what: "bytes of labels",
            count: bytes,
            most: LABEL_BYTES,
        });
    }
    Ok(())
}
