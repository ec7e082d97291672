//! Client of the OCI distribution API: manifests and blobs from a registry.
//!
//! A [`Client`] speaks about one repository of one registry, with one caller's
//! credentials. It runs inside a short-lived job process on a current-thread
//! runtime: a resolve job finds the manifest and hands its [`Session`] (scheme
//! and token) to the jobs that fetch the layers. Everything is cancelled by
//! dropping its future.
//!
//! What lives here: challenges and tokens, redirects, retries, resuming,
//! limits, proxies, TLS, and the rules about where a registry may send us. What
//! does not: pushing, catalogues, credential files (the client program reads
//! those as the caller) and what to do with the bytes.
//!
//! The `oci-client` crate is not used for this: it cannot renew a token after a
//! 401 and replay, does not retry or honour `Retry-After`, and shows no reply
//! headers, and the manners of Docker Hub ask for all of these.
//!
//! # Source
//! OCI distribution-spec 1.1, the distribution project's token specification,
//! and the behaviour of the established clients (services.md §2 of the
//! project's references).

mod api;
mod auth;
mod blob;
mod body;
mod challenge;
mod credentials;
mod error;
mod guard;
mod manifest;
mod notice;
mod pipe;
mod proxy;
mod reply;
mod retry;
mod tls;
mod transport;

use std::sync::Arc;

use sctl_common::{Limits, Reference};

pub use api::Client;
pub use auth::Session;
pub use blob::{BlobSource, BlobStream};
pub use credentials::{Credentials, Secret};
pub use error::{RegistryError, Subject, ToldErrors, TransportCause};
pub use manifest::{ManifestHead, RawManifest, Resolved};
pub use notice::{Notice, NoticeSink};
pub use pipe::{BlobReader, DEFAULT_PIPE_BYTES};
pub use proxy::Proxies;
pub use retry::RetryPolicy;
pub use transport::Timeouts;

/// Settings of a [`Client`].
#[derive(Clone)]
pub struct ClientOptions {
    /// What the caller can show to this registry.
    pub credentials: Credentials,
    /// What an earlier client learnt about the same registry and repository
    /// with the same credentials.
    pub session: Option<Session>,
    /// Takes any certificate, and plain HTTP if the registry does not speak
    /// TLS (`--no-https`). Plain HTTP alone is also tried unasked where the
    /// registry is named by a loopback or RFC 1918 address or `localhost`.
    pub insecure: bool,
    /// The daemon's proxies.
    pub proxies: Proxies,
    /// CA certificates of the daemon's configuration, beside the system's:
    /// contents of PEM files.
    pub extra_ca_pem: Vec<Vec<u8>>,
    /// Follows redirects and token servers into private networks even if the
    /// registry itself is public.
    pub allow_private_targets: bool,
    /// `User-Agent` of every request.
    pub user_agent: String,
    /// How long each part of an exchange may take.
    pub timeouts: Timeouts,
    /// How often and how patiently a request is repeated.
    pub retry: RetryPolicy,
    /// Limit on manifests, indexes and configs.
    pub max_manifest_bytes: u64,
    /// Where notices go.
    pub notices: NoticeSink,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credentials: Credentials::Anonymous,
            session: None,
            insecure: false,
            proxies: Proxies::default(),
            extra_ca_pem: Vec::new(),
            allow_private_targets: false,
            user_agent: concat!("sctl/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            max_manifest_bytes: Limits::default().max_manifest_bytes,
            notices: Arc::new(|_| {}),
        }
    }
}

/// Says whether plain HTTP is tried unasked: the registry is named by an
/// address of this machine or of a private network.
///
/// # Source
/// The habit of go-containerregistry (services.md §2, "Insecure").
pub(crate) fn is_local_registry(reference: &Reference) -> bool {
    let registry = reference.registry();
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private(),
        Ok(std::net::IpAddr::V6(ip)) => ip.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_tried_unasked_only_nearby() {
        let cases = [
            ("localhost:5000/x", true),
            ("reg.localhost/x", true),
            ("127.0.0.1:5000/x", true),
            ("[::1]:5000/x", true),
            ("10.2.3.4/x", true),
            ("192.168.0.1:5000/x", true),
            ("172.32.0.1:5000/x", false),
            ("8.8.8.8/x", false),
            ("registry.example/x", false),
            ("ubuntu", false),
            ("localhost.example/x", false),
        ];
        for (text, local) in cases {
            assert_eq!(is_local_registry(&Reference::parse(text).unwrap()), local, "{text}");
        }
    }
}
