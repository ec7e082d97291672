//! Statuses that are no success, as errors.

use std::time::{Duration, SystemTime};

use reqwest::{Response, Url, header::RETRY_AFTER};

use super::{
    body::read_told,
    error::{RegistryError, Subject, ToldErrors},
    retry::parse_retry_after,
    transport::host_and_port,
};

/// What is known about a reply beside itself.
pub(crate) struct Reply<'a> {
    pub(crate) subject: &'a Subject,
    /// The registry, if the subject is to come from it.
    pub(crate) registry: Option<&'a Url>,
    pub(crate) with_credentials: bool,
    /// The registry said that the token was good but grants too little.
    pub(crate) insufficient_scope: bool,
}

/// Turns a reply into the error that its status means.
pub(crate) async fn into_error(response: Response, reply: &Reply<'_>, stall: Duration) -> RegistryError {
    let status = response.status().as_u16();
    let host = host_and_port(response.url());
    let elsewhere = reply.registry.is_some_and(|registry| registry.origin() != response.url().origin());
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| parse_retry_after(value, SystemTime::now()));
    let subject = reply.subject.clone();
    // What another server says is its owner's business, not the caller's.
    let mut told = if elsewhere { ToldErrors::default() } else { read_told(response, stall).await };
    if elsewhere && status != 429 {
        return RegistryError::Status { subject, host, elsewhere, status, retry_after, told };
    }
    let mut or = |fallback: &str| {
        if told.0.is_empty() {
            told.0.push(fallback.to_owned());
        }
        std::mem::take(&mut told)
    };
    match status {
        401 => {
            let mut told = or("unauthorized: authentication required");
            if reply.insufficient_scope {
                told.0.insert(0, "denied: requested access to the resource is denied".to_owned());
            }
            RegistryError::Unauthenticated { subject, told, with_credentials: reply.with_credentials }
        }
        403 => RegistryError::Denied { subject, told: or("denied: requested access to the resource is denied") },
        404 => {
            let told = or(match reply.subject {
                Subject::Manifest { .. } => "manifest unknown: manifest unknown",
                Subject::Blob { .. } => "blob unknown: blob unknown to registry",
                Subject::Token { .. } | Subject::Base { .. } => "not found",
            });
            RegistryError::NotFound { subject, told }
        }
        429 => RegistryError::RateLimited { subject, told: or("toomanyrequests: too many requests"), retry_after },
        _ => RegistryError::Status { subject, host, elsewhere, status, retry_after, told },
    }
}
