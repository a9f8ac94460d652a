//! The text of a join token: what the operator carries from the server to the new host.

use crate::pki::Fingerprint;
use std::fmt;
use std::str::FromStr;

/// `ID.SECRET.FINGERPRINT`. The host keeps the fingerprint to itself, to know the server by.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    /// Of the cluster's CA.
    pub fingerprint: Fingerprint,
}

/// Text that is not a join token. Does not repeat it: it may be most of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: copy the whole text that `vpc host token` printed, ID.SECRET.FINGERPRINT"
)]
pub struct BadJoinToken;

impl JoinToken {
    /// From what the server takes, `ID.SECRET`, and what the host verifies it by.
    pub const fn new(secret: String, fingerprint: Fingerprint) -> Self {
        Self {
            secret,
            fingerprint,
        }
    }

    /// `ID.SECRET`: for the server alone.
    pub fn reveal_secret(&self) -> &str {
        &self.secret
    }

    /// All of it: for the operator alone.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.secret, self.fingerprint)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(***.{})", self.fingerprint)
    }
}

impl FromStr for JoinToken {
    type Err = BadJoinToken;
    fn from_str(text: &str) -> Result<Self, BadJoinToken> {
        let (secret, fingerprint) = text.trim().rsplit_once('.').ok_or(BadJoinToken)?;
        if secret.len() > 200 || secret.split('.').filter(|part| !part.is_empty()).count() != 2 {
            return Err(BadJoinToken);
        }
        Ok(Self {
            secret: secret.to_owned(),
            fingerprint: fingerprint.parse().map_err(|_| BadJoinToken)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_is_not_debugged() {
        let text = format!("abc.secret.{}", "0f".repeat(32));
        let token: JoinToken = text.parse().unwrap();
        assert_eq!(token.reveal(), text);
        assert_eq!(token.reveal_secret(), "abc.secret");
        assert!(!format!("{token:?}").contains("secret"));
        for bad in ["", "a.b", "a.b.c", &format!("a.{}", "0f".repeat(32))] {
            assert_eq!(bad.parse::<JoinToken>(), Err(BadJoinToken), "{bad:?}");
        }
    }
}
