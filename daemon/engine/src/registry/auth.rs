//! Answers to challenges: passwords, and tokens from token servers.
//!
//! # Source
//! The distribution project's token specification (GET with Basic, or
//! anonymously) and its OAuth2 variant (POST of a refresh token).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::Engine as _;
use reqwest::{Method, Response, Url, header::HeaderValue};
use serde::{Deserialize, Serialize};

use super::{
    body::{read_small, read_told},
    challenge::Challenge,
    credentials::{Credentials, Secret},
    error::{RegistryError, Subject},
    reply::{self, Reply},
    transport::{Request, Transport, host_and_port},
};

/// Token replies past this size are no token servers'.
const MAX_TOKEN_REPLY: u64 = 64 << 10;
/// A token lives at least this long, whatever the reply says: some servers
/// forget the field, and the specification's default is this.
const MIN_TOKEN_SECONDS: u64 = 60;
/// No token is kept longer without asking again.
const MAX_TOKEN_SECONDS: u64 = 3600;
/// Taken off a token's life, for clocks and long requests.
const MARGIN_SECONDS: u64 = 10;
/// How we call ourselves at token servers.
const CLIENT_ID: &str = "sctl";

/// What one process learnt about a registry and hands to the next: whether it
/// is spoken to without TLS, what it asks for, and the token that it accepts.
///
/// It holds a secret and shows none in `Debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// `Some(true)`: plain HTTP; `None`: not found out yet.
    pub(crate) plain_http: Option<bool>,
    pub(crate) challenge: Option<Challenge>,
    pub(crate) token: Option<Token>,
}

/// A bearer token and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    value: Secret,
    /// Seconds since the epoch.
    expires_at: u64,
}

/// Keeps the session and renews its token.
pub(crate) struct Authorizer {
    credentials: Credentials,
    /// `repository:NAME:pull`
    scope: String,
    /// The caller called the registry insecure.
    insecure: bool,
    session: Mutex<Session>,
    /// Held while a token is fetched, so that two requests do not fetch two.
    renewing: tokio::sync::Mutex<()>,
}

impl Authorizer {
    pub(crate) fn new(credentials: Credentials, repository: &str, insecure: bool, session: Option<Session>) -> Self {
        Self {
            credentials,
            scope: format!("repository:{repository}:pull"),
            insecure,
            session: Mutex::new(session.unwrap_or_default()),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn session(&self) -> Session {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Session)) {
        change(&mut self.session.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether servers that the registry names may be spoken to without TLS.
    pub(crate) fn plain_allowed(&self) -> bool {
        self.insecure || self.session().plain_http == Some(true)
    }

    pub(crate) const fn is_anonymous(&self) -> bool {
        self.credentials.is_anonymous()
    }

    /// The header for the next request, as far as something is known; a token
    /// at its end is replaced first.
    pub(crate) async fn header(&self, transport: &Transport) -> Result<Option<HeaderValue>, RegistryError> {
        let session = self.session();
        match (&session.challenge, &session.token) {
            (None, _) => Ok(None),
            (Some(Challenge::Basic), _) => self.basic(),
            (Some(Challenge::Bearer { .. }), Some(token)) if token.expires_at > now_seconds() => bearer(&token.value),
            (Some(challenge @ Challenge::Bearer { .. }), _) => {
                self.renew(challenge.clone(), None, transport).await?;
                match self.session().token {
                    Some(token) => bearer(&token.value),
                    None => Ok(None),
                }
            }
        }
    }

    /// Answers `challenge`, which came as the reply to a request that carried
    /// `used`. `Ok(false)`: there is nothing (else) to answer with.
    pub(crate) async fn answer(
        &self,
        challenge: Challenge,
        used: Option<&HeaderValue>,
        transport: &Transport,
    ) -> Result<bool, RegistryError> {
        match challenge {
            Challenge::Basic => {
                let answer = self.basic()?;
                let is_new = answer.is_some() && answer.as_ref() != used;
                self.update(|session| session.challenge = Some(Challenge::Basic));
                Ok(is_new)
            }
            Challenge::Bearer { .. } => {
                if let (Credentials::RegistryToken(_), Some(_)) = (&self.credentials, used) {
                    // It is what it is, and nobody can renew it.
                    return Ok(false);
                }
                self.renew(challenge, used, transport).await?;
                Ok(true)
            }
        }
    }

    async fn renew(
        &self,
        challenge: Challenge,
        used: Option<&HeaderValue>,
        transport: &Transport,
    ) -> Result<(), RegistryError> {
        let _turn = self.renewing.lock().await;
        let current = self.session().token;
        if let Some(token) = &current
            && token.expires_at > now_seconds()
            && bearer(&token.value)?.as_ref() != used
        {
            // Somebody renewed it while we waited for our turn.
            return Ok(());
        }
        let token = match &self.credentials {
            Credentials::RegistryToken(token) => Token { value: token.clone(), expires_at: u64::MAX },
            _ => self.fetch_token(&challenge, transport).await?,
        };
        self.update(|session| {
            session.challenge = Some(challenge);
            session.token = Some(token);
        });
        Ok(())
    }

    fn basic(&self) -> Result<Option<HeaderValue>, RegistryError> {
        match &self.credentials {
            Credentials::Basic { username, password } => basic(username, password).map(Some),
            _ => Ok(None),
        }
    }

    async fn fetch_token(&self, challenge: &Challenge, transport: &Transport) -> Result<Token, RegistryError> {
        let Challenge::Bearer { realm, service, scopes, .. } = challenge else {
            unreachable!("only Bearer challenges ask for tokens");
        };
        let plain_allowed = self.plain_allowed();
        let url = parse_realm(realm)?;
        let subject = Subject::Token { host: host_and_port(&url).into() };
        // Ours first: some servers read one only.
        let mut wanted = vec![self.scope.as_str()];
        wanted.extend(scopes.iter().map(String::as_str).filter(|scope| *scope != self.scope));

        if let Credentials::IdentityToken { token, .. } = &self.credentials {
            let response =
                post_refresh(&url, service.as_deref(), &wanted, token, plain_allowed, transport, &subject).await?;
            // Servers without the OAuth2 variant are asked the older way.
            if !matches!(response.status().as_u16(), 404 | 405) {
                return self.read_token(response, &subject, transport).await;
            }
        }
        let mut request = Request::get(url, plain_allowed);
        {
            let mut query = request.url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            for scope in wanted {
                query.append_pair("scope", scope);
            }
            query.append_pair("client_id", CLIENT_ID);
            if let Credentials::Basic { username, .. } = &self.credentials
                && !username.is_empty()
            {
                query.append_pair("account", username);
            }
        }
        request.authorization = match &self.credentials {
            Credentials::Basic { username, password } => Some(basic(username, password)?),
            Credentials::IdentityToken { username, token } => {
                Some(basic(username.as_deref().unwrap_or("<token>"), token)?)
            }
            Credentials::Anonymous | Credentials::RegistryToken(_) => None,
        };
        let response = transport.send(request, &subject).await?;
        self.read_token(response, &subject, transport).await
    }

    async fn read_token(
        &self,
        response: Response,
        subject: &Subject,
        transport: &Transport,
    ) -> Result<Token, RegistryError> {
        let stall = transport.timeouts().stall;
        let status = response.status().as_u16();
        if matches!(status, 400 | 401 | 403) && !self.is_anonymous() {
            let mut told = read_told(response, stall).await;
            if told.lines().is_empty() {
                told.0.push("unauthorized: authentication required".to_owned());
            }
            return Err(RegistryError::BadCredentials { told });
        }
        if status != 200 {
            let reply =
                Reply { subject, registry: None, with_credentials: !self.is_anonymous(), insufficient_scope: false };
            return Err(reply::into_error(response, &reply, stall).await);
        }
        let bytes = read_small(response, subject, MAX_TOKEN_REPLY, stall).await?;
        parse_token(&bytes, now_seconds())
            .ok_or_else(|| RegistryError::BadReply { subject: subject.clone(), reason: "the reply holds no token" })
    }
}

async fn post_refresh(
    url: &Url,
    service: Option<&str>,
    scopes: &[&str],
    token: &Secret,
    plain_allowed: bool,
    transport: &Transport,
    subject: &Subject,
) -> Result<Response, RegistryError> {
    // A URL's query has the encoding of a form.
    let mut form = url.clone();
    form.set_query(None);
    {
        let mut pairs = form.query_pairs_mut();
        pairs.append_pair("grant_type", "refresh_token");
        pairs.append_pair("refresh_token", token.expose());
        if let Some(service) = service {
            pairs.append_pair("service", service);
        }
        pairs.append_pair("scope", &scopes.join(" "));
        pairs.append_pair("client_id", CLIENT_ID);
    }
    let body = form.query().unwrap_or_default().to_owned();
    let request = Request { method: Method::POST, form: Some(body), ..Request::get(url.clone(), plain_allowed) };
    transport.send(request, subject).await
}

fn parse_realm(realm: &str) -> Result<Url, RegistryError> {
    let refused = |reason: &str| RegistryError::RefusedTarget {
        what: "the token server that the registry names".to_owned(),
        reason: reason.to_owned(),
    };
    let url = Url::parse(realm).map_err(|_| refused("its realm is no URL"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(refused("its realm names no host"));
    }
    Ok(url)
}

#[derive(Deserialize)]
struct RawToken {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

fn parse_token(bytes: &[u8], now: u64) -> Option<Token> {
    let raw: RawToken = serde_json::from_slice(bytes).ok()?;
    let value = raw.token.filter(|t| !t.is_empty()).or(raw.access_token).filter(|t| !t.is_empty())?;
    // Casts from floats saturate, which is what is wanted here.
    let lifetime = raw.expires_in.map_or(0, |seconds| seconds as u64).clamp(MIN_TOKEN_SECONDS, MAX_TOKEN_SECONDS);
    let token = Token { value: Secret::new(value), expires_at: now + lifetime - MARGIN_SECONDS };
    bearer(&token.value).ok()?;
    Some(token)
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue, RegistryError> {
    let pair = format!("{username}:{}", password.expose());
    header(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn bearer(token: &Secret) -> Result<Option<HeaderValue>, RegistryError> {
    header(&format!("Bearer {}", token.expose())).map(Some)
}

fn header(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::BadOption {
        option: "credentials",
        reason: "a token holds characters that no header can carry".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_replies() {
        let value =
            |json: &str| parse_token(json.as_bytes(), 1000).map(|t| (t.value.expose().to_owned(), t.expires_at));
        assert_eq!(value(r#"{"token":"a","expires_in":300}"#), Some(("a".into(), 1290)));
        assert_eq!(value(r#"{"access_token":"b"}"#), Some(("b".into(), 1050)));
        assert_eq!(value(r#"{"token":"","access_token":"b","expires_in":5}"#), Some(("b".into(), 1050)));
        assert_eq!(value(r#"{"token":"a","expires_in":1e300}"#), Some(("a".into(), 4590)));
        assert_eq!(value(r#"{"token":"a","expires_in":-5}"#), Some(("a".into(), 1050)));
        assert_eq!(value(r#"{"token":"a\nb"}"#), None);
        assert_eq!(value("{}"), None);
        assert_eq!(value("<html>"), None);
    }

    #[test]
    fn a_session_travels_and_shows_no_token() {
        let session = Session {
            plain_http: Some(true),
            challenge: Some(Challenge::Bearer {
                realm: "https://r/t".into(),
                service: None,
                scopes: vec![],
                error: None,
            }),
            token: Some(Token { value: Secret::new("hunter2"), expires_at: 7 }),
        };
        assert!(!format!("{session:?}").contains("hunter2"));
        let json = serde_json::to_string(&session).unwrap();
        assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), session);
        assert_eq!(serde_json::from_str::<Session>("{}").unwrap(), Session::default());
    }

    #[test]
    fn realms_must_be_urls() {
        for bad in ["", "token", "data:x", "https://"] {
            assert!(parse_realm(bad).is_err(), "accepted {bad:?}");
        }
        assert!(parse_realm("https://auth.example/token?a=b").is_ok());
    }
}
