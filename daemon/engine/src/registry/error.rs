//! What can go wrong between us and a registry.

use std::{fmt, time::Duration};

use sctl_common::{Digest, ErrorKind};

/// What was asked for, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// A manifest or index, by tag or digest.
    Manifest {
        /// Tag or digest.
        id: Box<str>,
        /// `registry/repository`.
        repository: Box<str>,
    },
    /// A blob: config or layer.
    Blob {
        /// The blob's digest.
        digest: Box<Digest>,
        /// `registry/repository`.
        repository: Box<str>,
    },
    /// A bearer token.
    Token {
        /// Host of the token server.
        host: Box<str>,
    },
    /// The registry's base, asked for what it demands.
    Base {
        /// The registry's host.
        host: Box<str>,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest { id, repository } => write!(f, "manifest {id} in {repository}"),
            Self::Blob { digest, repository } => write!(f, "blob {digest} in {repository}"),
            Self::Token { host } => write!(f, "token from {host}"),
            Self::Base { host } => write!(f, "{host}"),
        }
    }
}

/// Errors that a registry told, in the wording of its clients: one line each,
/// `code: message`. A single one follows its sentence, several stand below
/// `errors:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToldErrors(pub(crate) Vec<String>);

impl ToldErrors {
    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ToldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => f.write_str(one),
            many => {
                f.write_str("errors:")?;
                many.iter().try_for_each(|line| write!(f, "\n{line}"))
            }
        }
    }
}

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A setting of the client is wrong.
    #[error("the {option} setting is not usable: {reason}")]
    BadOption {
        /// Which one.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The host's name has no address.
    #[error("cannot resolve the name {host}")]
    UnknownHost {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: TransportCause,
    },
    /// Nobody listens there.
    #[error("connection to {host} was refused")]
    Refused {
        /// Host and port.
        host: String,
        /// What the system said.
        #[source]
        source: TransportCause,
    },
    /// The server speaks HTTP without TLS.
    #[error("{host} does not speak TLS: it seems to be a plain HTTP registry")]
    PlainHttp {
        /// Host and port.
        host: String,
    },
    /// The server's certificate is not trusted.
    #[error("the TLS certificate of {host} is not trusted")]
    Certificate {
        /// Host and port.
        host: String,
        /// What is wrong with it.
        #[source]
        source: TransportCause,
    },
    /// A connection broke, or what came over it was no HTTP.
    #[error("connection to {host} broke")]
    Disconnected {
        /// Host and port.
        host: String,
        /// What failed.
        #[source]
        source: TransportCause,
    },
    /// Connecting failed in another way.
    #[error("connection to {host} failed")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What failed.
        #[source]
        source: TransportCause,
    },
    /// A server did not answer, or stopped sending, for too long.
    #[error("{host} did not {what} within {seconds} s")]
    TimedOut {
        /// Host and port.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// A body ended early, again and again.
    #[error("{subject} broke off after {received} of {expected} bytes")]
    Interrupted {
        /// What was being read.
        subject: Subject,
        /// Bytes received in all tries together.
        received: u64,
        /// Bytes that there should be.
        expected: u64,
        /// How the last try ended.
        #[source]
        source: Option<Box<RegistryError>>,
    },
    /// 401: credentials are missing, wrong, or not enough.
    #[error("Error reading {subject}: {told}")]
    Unauthenticated {
        /// What was asked for.
        subject: Subject,
        /// What the registry said.
        told: ToldErrors,
        /// Whether credentials were shown.
        with_credentials: bool,
    },
    /// The token server refused the credentials.
    #[error("unable to retrieve auth token: invalid username/password: {told}")]
    BadCredentials {
        /// What the token server said.
        told: ToldErrors,
    },
    /// 403.
    #[error("Error reading {subject}: {told}")]
    Denied {
        /// What was asked for.
        subject: Subject,
        /// What the registry said.
        told: ToldErrors,
    },
    /// 404.
    #[error("Error reading {subject}: {told}")]
    NotFound {
        /// What was asked for.
        subject: Subject,
        /// What the registry said.
        told: ToldErrors,
    },
    /// 429, and waiting did not help or would have taken too long.
    #[error("Error reading {subject}: {told}{}", wish(.retry_after))]
    RateLimited {
        /// What was asked for.
        subject: Subject,
        /// What the registry said.
        told: ToldErrors,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status that is no success.
    #[error("Error reading {subject}: {host} answered {status}{}", told_after(.told))]
    Status {
        /// What was asked for.
        subject: Subject,
        /// Who answered.
        host: String,
        /// Whether that is another server than the registry.
        elsewhere: bool,
        /// The HTTP status.
        status: u16,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
        /// What the registry said, if it said it in JSON.
        told: ToldErrors,
    },
    /// A redirect, token server or URL that must not be followed.
    #[error("{what} is refused: {reason}")]
    RefusedTarget {
        /// What named it, and its host.
        what: String,
        /// Why.
        reason: String,
    },
    /// Redirects without end, or one that leads nowhere.
    #[error("{subject}: {reason}")]
    BadRedirect {
        /// What was asked for.
        subject: Subject,
        /// What is wrong.
        reason: &'static str,
    },
    /// A reply that breaks the protocol.
    #[error("{subject}: {reason}")]
    BadReply {
        /// What was asked for.
        subject: Subject,
        /// What is wrong.
        reason: &'static str,
    },
    /// A body is larger than it may be.
    #[error("{subject} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What was asked for.
        subject: Subject,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes have another digest.
    #[error("{subject} does not match its digest: expected {expected}, got {found}")]
    WrongDigest {
        /// What was asked for.
        subject: Subject,
        /// What was promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// There are more or fewer bytes than promised.
    #[error("{subject} does not match its size: expected {expected} bytes, got {}", found_bytes(.found, .expected))]
    WrongSize {
        /// What was asked for.
        subject: Subject,
        /// What was promised.
        expected: u64,
        /// What came; past `expected` nothing was counted.
        found: u64,
    },
    /// The manifest, index or config itself is wrong.
    #[error("{subject} is not usable")]
    Content {
        /// What was asked for.
        subject: Subject,
        /// What is wrong with it.
        #[source]
        source: sctl_oci::ParseError,
    },
    /// No image for the platform.
    #[error(transparent)]
    Platform(#[from] sctl_oci::SelectError),
    /// Indexes that name indexes without end.
    #[error("{subject} leads through more than {limit} nested indexes")]
    NestedIndexes {
        /// What was asked for.
        subject: Subject,
        /// How many are followed.
        limit: u32,
    },
    /// The manifest describes no container image.
    #[error(transparent)]
    Image(#[from] sctl_oci::ImageError),
    /// The reader of a blob went away before its end.
    #[error("the transfer was cancelled")]
    Cancelled,
}

/// Text of a transport failure, detached from the HTTP library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportCause(pub(crate) String);

impl fmt::Display for TransportCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TransportCause {}

fn wish(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!(" (it asks to wait {} s)", wait.as_secs()))
}

fn told_after(told: &ToldErrors) -> String {
    if told.0.is_empty() { String::new() } else { format!(": {told}") }
}

fn found_bytes(found: &u64, expected: &u64) -> String {
    if found > expected { "more".to_owned() } else { found.to_string() }
}

impl RegistryError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadOption { .. } => ErrorKind::InvalidInput,
            Self::UnknownHost { .. }
            | Self::Refused { .. }
            | Self::PlainHttp { .. }
            | Self::Certificate { .. }
            | Self::Unreachable { .. }
            | Self::Disconnected { .. }
            | Self::Interrupted { .. }
            | Self::Status { .. } => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::DeadlineExceeded,
            Self::Unauthenticated { .. } | Self::BadCredentials { .. } => ErrorKind::Unauthenticated,
            Self::Denied { .. } | Self::RefusedTarget { .. } => ErrorKind::Denied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::BadRedirect { .. } | Self::BadReply { .. } | Self::WrongDigest { .. } | Self::WrongSize { .. } => {
                ErrorKind::Corrupt
            }
            Self::TooLarge { .. } | Self::NestedIndexes { .. } => ErrorKind::LimitExceeded,
            Self::Content { source, .. } => source.kind(),
            Self::Platform(source) => source.kind(),
            Self::Image(source) => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PlainHttp { .. } => Some("use --no-https for a registry without TLS"),
            Self::Certificate { .. } => {
                Some("add the registry's CA certificate to the daemon's configuration, or use --no-https")
            }
            Self::Unauthenticated { with_credentials: false, .. } => {
                Some("the image may be private or may not exist; give credentials if you have some")
            }
            Self::Unauthenticated { with_credentials: true, .. } | Self::Denied { .. } => {
                Some("the image may not exist, or these credentials give no access to it")
            }
            Self::BadCredentials { .. } => Some("check user name and password or token"),
            Self::RateLimited { .. } => Some("wait, or log in: registries allow more to users they know"),
            Self::WrongDigest { .. } | Self::WrongSize { .. } => {
                Some("the registry or a proxy changed the bytes; retry, then tell its owner")
            }
            Self::UnknownHost { .. } => Some("check the registry's name, and the proxy settings of the daemon"),
            Self::Image(source) => source.hint(),
            _ => None,
        }
    }

    /// Whether another try may bring something else.
    ///
    /// `seen_ok` says that this registry has answered before: a server that
    /// restarts is waited for, one that never was there is not.
    pub(crate) fn is_transient(&self, seen_ok: bool) -> bool {
        match self {
            Self::UnknownHost { .. } | Self::Refused { .. } => seen_ok,
            Self::Unreachable { .. }
            | Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::Interrupted { .. }
            | Self::RateLimited { .. } => true,
            // A signed URL of an object store expires; the registry hands out
            // a new one.
            Self::Status { status: 401 | 403, elsewhere: true, .. } => true,
            Self::Status { status, .. } => super::retry::is_retryable_status(*status),
            _ => false,
        }
    }

    /// Names `subject` where a token server refused a token for it: some say
    /// there already that nobody may read it.
    pub(crate) fn about(self, subject: &Subject) -> Self {
        match self {
            Self::Denied { subject: Subject::Token { .. }, told } => Self::Denied { subject: subject.clone(), told },
            Self::Unauthenticated { subject: Subject::Token { .. }, told, with_credentials } => {
                Self::Unauthenticated { subject: subject.clone(), told, with_credentials }
            }
            other => other,
        }
    }

    /// How long the server asks to wait.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_that_users_know() {
        let subject = Subject::Manifest { id: "latest".into(), repository: "docker.io/ilumb/mylolcow".into() };
        let told = ToldErrors(vec![
            "denied: requested access to the resource is denied".into(),
            "unauthorized: authentication required".into(),
        ]);
        let error = RegistryError::Unauthenticated { subject: subject.clone(), told, with_credentials: false };
        assert_eq!(
            error.to_string(),
            "Error reading manifest latest in docker.io/ilumb/mylolcow: errors:\n\
             denied: requested access to the resource is denied\n\
             unauthorized: authentication required"
        );
        let told = ToldErrors(vec!["manifest unknown: manifest unknown".into()]);
        let error = RegistryError::NotFound { subject: subject.clone(), told };
        assert_eq!(
            error.to_string(),
            "Error reading manifest latest in docker.io/ilumb/mylolcow: manifest unknown: manifest unknown"
        );
        let error = RegistryError::RateLimited {
            subject: subject.clone(),
            told: ToldErrors(vec!["toomanyrequests: slow down".into()]),
            retry_after: Some(Duration::from_secs(60)),
        };
        assert!(error.to_string().ends_with("toomanyrequests: slow down (it asks to wait 60 s)"));
        let error = RegistryError::WrongSize { subject, expected: 5, found: 6 };
        assert!(error.to_string().ends_with("expected 5 bytes, got more"));
    }
}
