//! Who the caller is to a registry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that never shows in logs: `Debug` prints a placeholder.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that puts it on the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What the caller can show to one registry, and to the token server that
/// this registry names; never to anybody else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// Nothing: what everybody may see.
    #[default]
    Anonymous,
    /// User name and password, or a token in the password's place.
    Basic {
        /// User name; may be empty.
        username: String,
        /// Password or access token.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of an auth file).
    IdentityToken {
        /// User name that stands beside it, for token servers that only know
        /// the older way of asking.
        username: Option<String>,
        /// The refresh token.
        token: Secret,
    },
    /// A ready bearer token (`registrytoken` of an auth file).
    RegistryToken(Secret),
}

impl Credentials {
    /// Says whether there is nothing to show.
    pub const fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let all = [
            Credentials::Basic { username: "ann".into(), password: Secret::new("hunter2") },
            Credentials::IdentityToken { username: None, token: Secret::new("hunter2") },
            Credentials::RegistryToken(Secret::new("hunter2")),
        ];
        for credentials in all {
            assert!(!format!("{credentials:?}").contains("hunter2"));
        }
    }
}
