//! Join tokens: what lets one machine become a host, once, for a while.

use crate::decision::hex;
use model::{HostId, Name, Role, TokenId, UnixMillis};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A token as the server keeps it: not the secret, only what it hashes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Identity; the part of the token's text before the point.
    pub id: TokenId,
    /// SHA-256 of the secret, in hex.
    pub secret_sha256: String,
    /// What the host will be for.
    pub roles: BTreeSet<Role>,
    /// What the host must be called, if that was said.
    pub name: Option<Name>,
    /// Its failure domain, if that was said.
    pub zone: Option<Name>,
    /// When it was made.
    pub created: UnixMillis,
    /// It is void from then on.
    pub expires: UnixMillis,
    /// Who used it, and when.
    pub used: Option<TokenUse>,
}

/// The one use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The host that came of it.
    pub host: HostId,
    /// When.
    pub at: UnixMillis,
}

/// What the operator carries to the machine: `<id>.<secret>`. Never logged, never kept.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret {
    /// Which token.
    pub id: TokenId,
    secret: String,
}

/// Text that is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: copy it whole, ten characters, a point and 64 hex digits, as `vpc host token create` printed it"
)]
pub struct BadToken;

/// Why a token does not open the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token, or another secret: an outsider learns nothing from which.
    #[error("the join token is not valid: ask the administrator for a new one")]
    Unknown,
    /// Too late.
    #[error("join token {id} expired: ask the administrator for a new one")]
    Expired {
        /// Which.
        id: TokenId,
    },
    /// It did its work.
    #[error(
        "join token {id} was used already: ask the administrator for a new one, each machine needs its own"
    )]
    Used {
        /// Which.
        id: TokenId,
    },
    /// For another machine.
    #[error(
        "join token {id} is for a host called {expected}, not {asked}: join with that name, or ask the administrator for another token"
    )]
    Name {
        /// Which.
        id: TokenId,
        /// What it was made for.
        expected: Name,
        /// Who came.
        asked: Name,
    },
}

impl TokenSecret {
    /// A new one from random bytes of a cryptographic generator.
    pub fn mint(id_bits: u64, secret: [u8; 32]) -> Self {
        Self {
            id: TokenId::from_random(id_bits),
            secret: hex(&secret),
        }
    }

    /// What the server keeps of the secret.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.secret))
    }

    /// The text to hand to the operator.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.***", self.id)
    }
}

impl FromStr for TokenSecret {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (id, secret) = text.trim().split_once('.').ok_or(BadToken)?;
        if secret.len() != 64 || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadToken);
        }
        Ok(Self {
            id: id.parse().map_err(|_| BadToken)?,
            secret: secret.to_ascii_lowercase(),
        })
    }
}

impl JoinToken {
    /// Whether `offered` opens the door now. The store asks again inside the transaction that
    /// marks the token used, so that it opens once.
    pub fn check(&self, offered: &TokenSecret, now: UnixMillis) -> Result<(), TokenRefusal> {
        let id = self.id;
        // Comparing hashes: how far they agree tells nothing about the secret.
        if offered.id != id || offered.sha256() != self.secret_sha256 {
            return Err(TokenRefusal::Unknown);
        }
        if self.used.is_some() {
            return Err(TokenRefusal::Used { id });
        }
        if now >= self.expires {
            return Err(TokenRefusal::Expired { id });
        }
        Ok(())
    }

    /// The host's name: the token's if it has one, which the machine may repeat but not change.
    pub fn host_name(&self, asked: Name) -> Result<Name, TokenRefusal> {
        match &self.name {
            Some(expected) if *expected != asked => Err(TokenRefusal::Name {
                id: self.id,
                expected: expected.clone(),
                asked,
            }),
            _ => Ok(asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> (TokenSecret, JoinToken) {
        let secret = TokenSecret::mint(7, [0xab; 32]);
        let token = JoinToken {
            id: secret.id,
            secret_sha256: secret.sha256(),
            roles: BTreeSet::from([Role::Compute]),
            name: Some(Name::new("c1").unwrap()),
            zone: None,
            created: UnixMillis(0),
            expires: UnixMillis(100),
            used: None,
        };
        (secret, token)
    }

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let (secret, _) = token();
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        assert!(!format!("{secret:?}").contains("abab"));
        for bad in [
            "",
            "x",
            "0000000007",
            "0000000007.",
            "0000000007.xyz",
            "bad.abab",
        ] {
            assert_eq!(bad.parse::<TokenSecret>(), Err(BadToken), "{bad:?}");
        }
    }

    #[test]
    fn a_token_opens_once_in_time_for_the_right_host() {
        let (secret, token) = token();
        let id = token.id;
        assert_eq!(token.check(&secret, UnixMillis(99)), Ok(()));
        assert_eq!(
            token.check(&secret, UnixMillis(100)),
            Err(TokenRefusal::Expired { id })
        );
        let other = TokenSecret::mint(7, [0xac; 32]);
        assert_eq!(
            token.check(&other, UnixMillis(0)),
            Err(TokenRefusal::Unknown)
        );
        let used = JoinToken {
            used: Some(TokenUse {
                host: HostId::from_random(1),
                at: UnixMillis(5),
            }),
            ..token.clone()
        };
        assert_eq!(
            used.check(&secret, UnixMillis(6)),
            Err(TokenRefusal::Used { id })
        );
        assert!(token.host_name(Name::new("c1").unwrap()).is_ok());
        assert!(token.host_name(Name::new("c2").unwrap()).is_err());
    }
}
