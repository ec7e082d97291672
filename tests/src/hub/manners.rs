//! How a registry behaves when nothing is wrong.

use std::time::Duration;

/// What a registry is like.
#[derive(Debug, Clone)]
pub struct Manners {
    /// What it asks of its callers.
    pub login: Login,
    /// Blobs are redirected to the object store, which answers 400 to a
    /// request that carries an `Authorization` header.
    pub redirects_blobs: bool,
    /// How it treats `Range`.
    pub ranges: Ranges,
    /// Pulls allowed and left, told with every manifest as Docker Hub does.
    pub rate_limit: Option<(u64, u64)>,
    /// A message for users, sent as `Warning: 299`.
    pub warning: Option<String>,
    /// Tells challenges at `/v2/` only.
    pub hides_challenge: bool,
}

/// What a registry asks of its callers.
#[derive(Debug, Clone)]
pub enum Login {
    /// Nothing.
    Open,
    /// User name and password with every request.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// Tokens from the token server.
    Token {
        /// Who gets tokens that grant something; none means everybody.
        user: Option<(String, String)>,
        /// A refresh token that counts as the user's, for OAuth2 requests.
        identity_token: Option<String>,
        /// Whether the token server knows the OAuth2 POST at all.
        knows_post: bool,
        /// How long tokens are good.
        life: Duration,
        /// What is said about it (`expires_in`).
        told_life: Option<u64>,
    },
}

/// How a registry treats `Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    /// As it should: 206 with the part.
    Honoured,
    /// 200 with everything.
    Ignored,
    /// 206 that begins at another byte.
    Shifted,
    /// 416.
    Refused,
}

impl Default for Manners {
    /// A plain registry for everybody.
    fn default() -> Self {
        Self {
            login: Login::Open,
            redirects_blobs: false,
            ranges: Ranges::Honoured,
            rate_limit: None,
            warning: None,
            hides_challenge: false,
        }
    }
}

impl Manners {
    /// As Docker Hub: tokens for everybody that die after `life`, blobs on
    /// another host, rate limits.
    pub fn docker_hub(life: Duration) -> Self {
        Self { login: Login::tokens(life), redirects_blobs: true, rate_limit: Some((100, 76)), ..Self::default() }
    }

    /// Docker Hub's manners for a private repository.
    pub fn private(user: &str, password: &str) -> Self {
        let Login::Token { identity_token, knows_post, life, told_life, .. } = Login::tokens(Duration::from_secs(300))
        else {
            unreachable!("tokens are tokens");
        };
        let user = Some((user.to_owned(), password.to_owned()));
        Self {
            login: Login::Token { user, identity_token, knows_post, life, told_life },
            ..Self::docker_hub(Duration::ZERO)
        }
    }
}

impl Login {
    /// Tokens for everybody, good for `life`, which is also what is told.
    pub fn tokens(life: Duration) -> Self {
        Self::Token { user: None, identity_token: None, knows_post: true, life, told_life: Some(life.as_secs()) }
    }
}
