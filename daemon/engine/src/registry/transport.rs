//! One request on the wire: guarded, redirected, bounded in time.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE},
    redirect::Policy,
};
use serde::{Deserialize, Serialize};

use super::{
    ClientOptions,
    error::{RegistryError, Subject, TransportCause},
    guard::{Guard, GuardedResolver, Refusal, UnknownHost},
    proxy::{ProxyRules, bare_host},
    tls,
};

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// How long each part of an exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Name resolution, TCP and TLS.
    pub connect: Duration,
    /// From the request to the head of the reply.
    pub response: Duration,
    /// Silence within a body; also the whole of a small reply.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), response: Duration::from_secs(60), stall: Duration::from_secs(60) }
    }
}

/// A request before it knows where redirects lead.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) accept: Option<&'a HeaderValue>,
    /// First byte wanted, if not the first of all.
    pub(crate) from_byte: u64,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) form: Option<String>,
    /// Whether plain HTTP is good enough here.
    pub(crate) plain_allowed: bool,
}

impl Request<'_> {
    pub(crate) fn get(url: Url, plain_allowed: bool) -> Self {
        Self { method: Method::GET, url, accept: None, from_byte: 0, authorization: None, form: None, plain_allowed }
    }
}

/// Why no reply came, before anybody gave it a subject.
#[derive(Debug)]
pub(crate) enum Failure {
    UnknownHost(String),
    Refused(String),
    /// The peer does not speak TLS.
    NotTls(String),
    Certificate(String),
    /// Resets, replies that break off, junk.
    Broken(String),
    /// Other trouble with connecting.
    Connect(String),
    Guard(Refusal),
}

impl Failure {
    /// Finds out what an error of the HTTP library is about.
    pub(crate) fn from_reqwest(error: &reqwest::Error) -> Self {
        if let Some(refusal) = find::<Refusal>(error) {
            return Self::Guard(refusal.clone());
        }
        if let Some(unknown) = find::<UnknownHost>(error) {
            return Self::UnknownHost(unknown.source.to_string());
        }
        if let Some(tls) = find::<rustls::Error>(error) {
            let text = describe_tls(tls);
            return match tls {
                rustls::Error::InvalidCertificate(_) | rustls::Error::General(_) => Self::Certificate(text),
                rustls::Error::InvalidMessage(_) => Self::NotTls(text),
                _ => Self::Connect(text),
            };
        }
        let io = find::<io::Error>(error);
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => Self::Refused(innermost(error)),
            _ if error.is_connect() && error.is_timeout() => Self::Connect("connecting took too long".to_owned()),
            _ if error.is_connect() => Self::Connect(innermost(error)),
            _ => Self::Broken(innermost(error)),
        }
    }

    /// Makes the error that users see.
    pub(crate) fn into_error(self, host: String) -> RegistryError {
        let cause = TransportCause;
        match self {
            Self::UnknownHost(text) => RegistryError::UnknownHost { host, source: cause(text) },
            Self::Refused(text) => RegistryError::Refused { host, source: cause(text) },
            Self::NotTls(_) => RegistryError::PlainHttp { host },
            Self::Certificate(text) => RegistryError::Certificate { host, source: cause(text) },
            Self::Broken(text) => RegistryError::Disconnected { host, source: cause(text) },
            Self::Connect(text) => RegistryError::Unreachable { host, source: cause(text) },
            Self::Guard(refusal) => {
                RegistryError::RefusedTarget { what: format!("the address of {host}"), reason: refusal.to_string() }
            }
        }
    }
}

/// Looks for a cause of type `T` in the chain; also inside I/O errors, whose
/// `source` skips the error that they wrap.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            // Of nested I/O errors the innermost knows the kind.
            if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
                && let Some(deeper) = find::<T>(inner)
            {
                return Some(deeper);
            }
            return Some(found);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = find::<T>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Text of the last cause: those above it only say that something failed.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn describe_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `host:port`, or the host alone with its scheme's usual port.
pub(crate) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The HTTP client with its rules.
pub(crate) struct Transport {
    http: reqwest::Client,
    guard: Arc<Guard>,
    proxies: ProxyRules,
    timeouts: Timeouts,
}

impl Transport {
    pub(crate) fn new(registry_url: &Url, options: &ClientOptions) -> Result<Self, RegistryError> {
        let proxies = ProxyRules::parse(&options.proxies)?;
        let registry_host = bare_host(registry_url).unwrap_or_default();
        let guard = Arc::new(Guard::new(registry_host, proxies.hosts(), options.allow_private_targets));
        let tls = tls::client_config(tls::parse_authorities(&options.extra_ca_pem)?, !options.insecure)?;
        let rules = proxies.clone();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(Policy::none())
            .referer(false)
            // No retries behind our back: we count and announce them.
            .retry(reqwest::retry::never())
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| rules.proxy_for(url).cloned()))
            .dns_resolver(Arc::new(GuardedResolver(Arc::clone(&guard))))
            .user_agent(options.user_agent.as_str())
            .connect_timeout(options.timeouts.connect)
            .pool_idle_timeout(Duration::from_secs(20))
            .build()
            .map_err(|error| RegistryError::BadOption { option: "HTTP client", reason: innermost(&error) })?;
        Ok(Self { http, guard, proxies, timeouts: options.timeouts })
    }

    /// Sends one request and follows redirects.
    ///
    /// `Authorization` goes to the first target only and to those on the same
    /// scheme, host and port; once dropped it stays away. (Object stores
    /// answer 400 to a request that is both signed and authorised.)
    pub(crate) async fn send(&self, request: Request<'_>, subject: &Subject) -> Result<Response, RegistryError> {
        let mut url = without_user(request.url);
        let mut authorization = request.authorization;
        for hop in 0..=MAX_REDIRECTS {
            let what = || {
                let via = if hop == 0 { "the request" } else { "the redirect" };
                format!("{via} to {}", host_and_port(&url))
            };
            let proxied = self.proxies.proxy_for(&url).is_some();
            self.guard
                .check(&url, request.plain_allowed, proxied)
                .await
                .map_err(|refusal| RegistryError::RefusedTarget { what: what(), reason: refusal.to_string() })?;
            let mut headers = HeaderMap::new();
            // Bytes are checked as they are, so nobody may repack them.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(accept) = request.accept {
                headers.insert(ACCEPT, accept.clone());
            }
            if request.from_byte > 0
                && let Ok(value) = HeaderValue::try_from(format!("bytes={}-", request.from_byte))
            {
                headers.insert(RANGE, value);
            }
            if let Some(value) = &authorization {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let mut builder = self.http.request(request.method.clone(), url.clone()).headers(headers);
            if let Some(form) = &request.form {
                builder = builder.header("content-type", "application/x-www-form-urlencoded").body(form.clone());
            }
            let response = self.execute(builder, &url).await?;
            if !is_redirect(response.status()) || request.form.is_some() {
                return Ok(response);
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| RegistryError::BadRedirect {
                    subject: subject.clone(),
                    reason: "a redirect names no usable location",
                })?;
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = without_user(next);
        }
        Err(RegistryError::BadRedirect { subject: subject.clone(), reason: "redirects lead in a circle" })
    }

    async fn execute(&self, builder: reqwest::RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
        let host = host_and_port(url);
        let limit = self.timeouts.connect + self.timeouts.response;
        match tokio::time::timeout(limit, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(match Failure::from_reqwest(&error) {
                // Only a TLS greeting can be misunderstood.
                Failure::NotTls(text) if url.scheme() != "https" => Failure::Broken(text),
                failure => failure,
            }
            .into_error(host)),
            Err(_) => Err(RegistryError::TimedOut { host, what: "answer", seconds: limit.as_secs() }),
        }
    }

    pub(crate) const fn timeouts(&self) -> Timeouts {
        self.timeouts
    }
}

/// Takes a user name and password out, which would become an `Authorization`
/// that nobody here decided on.
fn without_user(mut url: Url) -> Url {
    // Only URLs without a host refuse, and those are refused anyway.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
