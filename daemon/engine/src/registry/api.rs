//! Requests to a registry's API: scheme, authorisation, retries.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{HeaderValue, WWW_AUTHENTICATE},
};
use sctl_common::Reference;

use super::{
    ClientOptions, Session,
    auth::Authorizer,
    challenge::{Challenge, choose, parse_challenges},
    error::{RegistryError, Subject},
    is_local_registry,
    notice::Notices,
    reply::{self, Reply},
    retry::{Retrier, RetryPolicy},
    transport::{Request, Timeouts, Transport},
};

/// Tries at a registry that never answered: one more than one, because
/// networks hiccup, but nobody waits half a minute for a dead host.
const FIRST_CONTACT_ATTEMPTS: u32 = 2;

/// Speaks about one repository of one registry, as one caller.
///
/// Clones are cheap and share connections and token.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    transport: Transport,
    authorizer: Authorizer,
    pub(crate) notices: Notices,
    /// `host[:port]` of the API.
    api_host: String,
    /// Path of the repository.
    repository: String,
    /// `registry/repository`, for messages.
    name: String,
    /// Plain HTTP may be tried after TLS failed.
    may_fall_back: bool,
    /// The registry has answered something.
    answered: AtomicBool,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_manifest_bytes: u64,
}

/// A request below `/v2/REPOSITORY/`.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) accept: Option<&'a HeaderValue>,
    pub(crate) from_byte: u64,
}

/// A reply, and the authorisation that its request carried.
struct Answer {
    response: Response,
    used: Option<HeaderValue>,
}

impl Client {
    /// Makes a client for the repository of `reference`; contacts nobody.
    ///
    /// # Errors
    /// [`RegistryError::BadOption`] names the setting that cannot be used.
    pub fn new(reference: &Reference, options: ClientOptions) -> Result<Self, RegistryError> {
        let api_host = reference.api_host().to_owned();
        let base = Url::parse(&format!("https://{api_host}/"))
            .map_err(|error| RegistryError::BadOption { option: "registry", reason: error.to_string() })?;
        let transport = Transport::new(&base, &options)?;
        let authorizer =
            Authorizer::new(options.credentials, reference.repository(), options.insecure, options.session);
        Ok(Self(Arc::new(Inner {
            transport,
            authorizer,
            notices: Notices::new(options.notices, reference.registry().to_owned()),
            api_host,
            repository: reference.repository().to_owned(),
            name: reference.name(),
            may_fall_back: options.insecure || is_local_registry(reference),
            answered: AtomicBool::new(false),
            retry: options.retry,
            max_manifest_bytes: options.max_manifest_bytes,
        })))
    }

    /// What was learnt so far, for another client of the same repository and
    /// credentials. It holds a token.
    pub fn session(&self) -> Session {
        self.0.authorizer.session()
    }
}

impl Inner {
    pub(crate) fn manifest_subject(&self, id: &str) -> Subject {
        Subject::Manifest { id: id.into(), repository: self.name.as_str().into() }
    }

    pub(crate) fn blob_subject(&self, digest: sctl_common::Digest) -> Subject {
        Subject::Blob { digest: Box::new(digest), repository: self.name.as_str().into() }
    }

    pub(crate) const fn timeouts(&self) -> Timeouts {
        self.transport.timeouts()
    }

    /// Sends `call` until there is a success or nothing more to hope for.
    pub(crate) async fn call(&self, call: &Call<'_>, subject: &Subject) -> Result<Response, RegistryError> {
        let mut retrier = Retrier::new(self.retry);
        loop {
            match self.call_once(call, subject).await {
                Ok(response) => return Ok(response),
                Err(error) => self.wait_before_retry(error, &mut retrier, subject).await?,
            }
        }
    }

    /// Waits as long as `retrier` says, or gives the error back.
    pub(crate) async fn wait_before_retry(
        &self,
        error: RegistryError,
        retrier: &mut Retrier,
        subject: &Subject,
    ) -> Result<(), RegistryError> {
        // A connection that broke had been made: somebody is there.
        let answered = self.answered.load(Ordering::Relaxed) || matches!(error, RegistryError::Disconnected { .. });
        if !error.is_transient(answered) || (!answered && retrier.failures() + 1 >= FIRST_CONTACT_ATTEMPTS) {
            return Err(error);
        }
        let Some(delay) = retrier.next_delay(error.retry_after()) else { return Err(error) };
        self.notices.retry(subject, &error, delay);
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// One try of `call`, without waits: finds the scheme, authorises itself,
    /// and makes an error of everything that is no success.
    pub(crate) async fn call_once(&self, call: &Call<'_>, subject: &Subject) -> Result<Response, RegistryError> {
        let first = match self.authorizer.session().plain_http {
            Some(plain) => self.call_with_scheme(call, subject, plain).await?,
            None => match self.call_with_scheme(call, subject, false).await {
                Ok(first) => {
                    self.learn_scheme(false);
                    first
                }
                Err(error) if self.may_fall_back && speaks_no_tls(&error) => {
                    match self.call_with_scheme(call, subject, true).await {
                        // What TLS servers answer to a greeting without TLS:
                        // the trouble is with TLS after all.
                        Ok(first) if first.response.status() == StatusCode::BAD_REQUEST && !is_plain(&error) => {
                            return Err(error);
                        }
                        Ok(first) => {
                            self.learn_scheme(true);
                            first
                        }
                        // Then TLS was not the trouble.
                        Err(second) if is_unreachable(&second) && !is_plain(&error) => return Err(error),
                        Err(second) => return Err(second),
                    }
                }
                Err(error) => return Err(error),
            },
        };
        self.authorised(first, call, subject).await
    }

    fn learn_scheme(&self, plain: bool) {
        self.authorizer.update(|session| session.plain_http = Some(plain));
        if plain {
            self.notices.plain_http();
        }
    }

    fn base(&self, plain: bool) -> Result<Url, RegistryError> {
        let scheme = if plain { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{}/", self.api_host))
            .map_err(|error| RegistryError::BadOption { option: "registry", reason: error.to_string() })
    }

    async fn call_with_scheme(&self, call: &Call<'_>, subject: &Subject, plain: bool) -> Result<Answer, RegistryError> {
        let mut request = self.request(call, plain)?;
        let used = self.authorizer.header(&self.transport).await?;
        request.authorization = used.clone();
        let response = self.transport.send(request, subject).await?;
        self.answered.store(true, Ordering::Relaxed);
        self.notices.look_at(response.headers());
        Ok(Answer { response, used })
    }

    fn request<'a>(&self, call: &Call<'a>, plain: bool) -> Result<Request<'a>, RegistryError> {
        let mut url = self.base(plain)?;
        url.set_path(&format!("/v2/{}/{}", self.repository, call.path));
        let plain_allowed = plain || self.authorizer.plain_allowed();
        Ok(Request {
            method: call.method.clone(),
            accept: call.accept,
            from_byte: call.from_byte,
            ..Request::get(url, plain_allowed)
        })
    }

    /// Lets successes through, answers one challenge and replays the request,
    /// and makes an error of the rest.
    async fn authorised(&self, first: Answer, call: &Call<'_>, subject: &Subject) -> Result<Response, RegistryError> {
        let plain = self.authorizer.session().plain_http == Some(true);
        let registry = self.base(plain)?;
        let is_from_registry = |response: &Response| response.url().origin() == registry.origin();
        let Answer { mut response, used } = first;
        if response.status() == StatusCode::UNAUTHORIZED && is_from_registry(&response) {
            let mut challenge = challenge_of(&response);
            if challenge.is_none() {
                // Some registries only tell it when asked for the base.
                challenge = match self.authorizer.session().challenge {
                    Some(known) => Some(known),
                    None => self.ping(&registry).await?,
                };
            }
            if let Some(challenge) = challenge
                && self
                    .authorizer
                    .answer(challenge, used.as_ref(), &self.transport)
                    .await
                    .map_err(|error| error.about(subject))?
            {
                response = self.call_with_scheme(call, subject, plain).await?.response;
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let insufficient_scope = matches!(
            challenge_of(&response),
            Some(Challenge::Bearer { error: Some(error), .. }) if error == "insufficient_scope"
        );
        let reply = Reply {
            subject,
            registry: Some(&registry),
            with_credentials: !self.authorizer.is_anonymous(),
            insufficient_scope,
        };
        Err(reply::into_error(response, &reply, self.timeouts().stall).await)
    }

    /// Asks the registry's base for its challenge.
    async fn ping(&self, registry: &Url) -> Result<Option<Challenge>, RegistryError> {
        let mut url = registry.clone();
        url.set_path("/v2/");
        let subject = Subject::Base { host: self.api_host.as_str().into() };
        let request = Request::get(url, self.authorizer.plain_allowed());
        let response = self.transport.send(request, &subject).await?;
        Ok(challenge_of(&response))
    }

    /// Fetches one of a foreign layer's own URLs: without authorisation.
    pub(crate) async fn fetch_foreign(
        &self,
        url: &str,
        from_byte: u64,
        subject: &Subject,
    ) -> Result<Response, RegistryError> {
        let url = Url::parse(url).map_err(|_| RegistryError::RefusedTarget {
            what: "a URL of a foreign layer".to_owned(),
            reason: "it is no URL".to_owned(),
        })?;
        let request = Request { from_byte, ..Request::get(url.clone(), self.authorizer.plain_allowed()) };
        let response = self.transport.send(request, subject).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let reply = Reply { subject, registry: None, with_credentials: false, insufficient_scope: false };
        Err(reply::into_error(response, &reply, self.timeouts().stall).await)
    }
}

fn challenge_of(response: &Response) -> Option<Challenge> {
    let fields = response.headers().get_all(WWW_AUTHENTICATE);
    choose(parse_challenges(fields.iter().filter_map(|field| field.to_str().ok())))
}

/// Failures of a TLS attempt after which plain HTTP may be tried: nothing that
/// an eavesdropper's certificate could cause.
fn speaks_no_tls(error: &RegistryError) -> bool {
    is_plain(error) || is_unreachable(error)
}

const fn is_plain(error: &RegistryError) -> bool {
    matches!(error, RegistryError::PlainHttp { .. })
}

const fn is_unreachable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Refused { .. } | RegistryError::Unreachable { .. })
}
