//! The registry's API.

use std::io;

use sctl_common::Digest;

use super::{
    Part, Shared,
    fault::{At, Misdeed},
    http::{After, Body, Connection, Reply, Request},
    manners::{Login, Ranges},
    store, token,
};

pub(crate) fn serve(shared: &Shared, request: &Request, connection: &mut Connection) -> io::Result<After> {
    let path = request.path.trim_start_matches('/');
    let route = path.strip_prefix("v2").map(|rest| rest.trim_start_matches('/'));
    let (reply, misdeed) = match route {
        Some("") => (admit(shared, request, None).unwrap_or_else(|| Reply::json(200, "{}")), None),
        Some(rest) => match (rest.rsplit_once("/manifests/"), rest.rsplit_once("/blobs/")) {
            (Some((repository, id)), _) => manifest(shared, request, repository, id),
            (_, Some((repository, digest))) => blob(shared, request, repository, digest),
            _ => (Reply::text(404, "404 page not found\n"), None),
        },
        None => (Reply::text(404, "404 page not found\n"), None),
    };
    send(shared, Part::Api, request, connection, reply, misdeed)
}

/// Sends a reply as its misdeed wants it, and writes the log.
pub(crate) fn send(
    shared: &Shared,
    part: Part,
    request: &Request,
    connection: &mut Connection,
    reply: Reply,
    misdeed: Option<Misdeed>,
) -> io::Result<After> {
    if let Some(Misdeed::TokensDie(_)) = &misdeed {
        shared.state().tokens.expire();
    }
    let redirect = |to: &str| Reply::text(307, "").with("Location", to);
    let reply = match &misdeed {
        Some(Misdeed::HangUp) => {
            shared.record(request.seen(part, 0));
            return Ok(After::Close);
        }
        Some(Misdeed::Status { status, headers, body }) => {
            Reply::text(*status, body.clone()).with_all(headers.iter().cloned())
        }
        Some(Misdeed::RedirectTo(url)) => redirect(url),
        Some(Misdeed::RedirectToItself) => redirect(&request.path),
        _ => reply,
    };
    shared.record(request.seen(part, reply.status));
    connection.send(&reply, misdeed.as_ref())
}

fn manifest(shared: &Shared, request: &Request, repository: &str, id: &str) -> (Reply, Option<Misdeed>) {
    if let Some(refusal) = admit(shared, request, Some(repository)) {
        return (refusal, None);
    }
    let misdeed = shared.misdeed(&At::Manifest);
    let state = shared.state();
    let mut reply = match state.content.manifest(repository, id) {
        Some((digest, media_type, bytes)) => Reply { status: 200, headers: Vec::new(), body: Body::Bytes(bytes) }
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", digest.to_string())
            .with("Docker-Distribution-Api-Version", "registry/2.0"),
        None => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    };
    if let Some((limit, left)) = state.manners.rate_limit {
        reply = reply
            .with("ratelimit-limit", format!("{limit};w=21600"))
            .with("ratelimit-remaining", format!("{left};w=21600"))
            .with("docker-ratelimit-source", "192.0.2.17");
    }
    if let Some(warning) = &state.manners.warning {
        reply = reply.with("Warning", format!("299 - \"{warning}\""));
    }
    (reply, misdeed)
}

fn blob(shared: &Shared, request: &Request, repository: &str, digest: &str) -> (Reply, Option<Misdeed>) {
    if let Some(refusal) = admit(shared, request, Some(repository)) {
        return (refusal, None);
    }
    let Ok(digest) = Digest::parse(digest) else {
        return (Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"), None);
    };
    if let Some(misdeed) = shared.misdeed(&At::BlobApi) {
        return (store::blob_reply(shared, request, digest), Some(misdeed));
    }
    if shared.state().manners.redirects_blobs && shared.state().content.blob(&digest).is_some() {
        return (Reply::text(307, "").with("Location", store::url(shared, digest)), None);
    }
    (store::blob_reply(shared, request, digest), shared.misdeed(&At::BlobOf(digest)))
}

/// `None` if the request may pass, else the refusal.
fn admit(shared: &Shared, request: &Request, repository: Option<&str>) -> Option<Reply> {
    let state = shared.state();
    let authorization = request.header("authorization");
    let challenge = match &state.manners.login {
        Login::Open => return None,
        Login::Basic { user, password } => {
            if authorization == Some(&token::basic(user, password)) {
                return None;
            }
            r#"Basic realm="Registry, of tests""#.to_owned()
        }
        Login::Token { .. } => {
            let given = authorization.and_then(|value| value.strip_prefix("Bearer "));
            let scope = repository.map(|name| format!("repository:{name}:pull"));
            let verdict = given.map_or(token::Verdict::Unknown, |given| state.tokens.check(given, scope.as_deref()));
            if verdict == token::Verdict::Good {
                return None;
            }
            let realm = format!("http://{}/token?tenant=1", shared.address(Part::Auth));
            let mut challenge = format!(r#"Bearer realm="{realm}",service="registry.test""#);
            if let Some(scope) = &scope {
                challenge += &format!(r#",scope="{scope}""#);
            }
            match verdict {
                token::Verdict::TooLittle => challenge += r#",error="insufficient_scope""#,
                token::Verdict::Expired => challenge += r#",error="invalid_token""#,
                token::Verdict::Good | token::Verdict::Unknown => {}
            }
            challenge
        }
    };
    let reply = Reply::error(401, "UNAUTHORIZED", "authentication required");
    let hidden = state.manners.hides_challenge && repository.is_some();
    Some(if hidden { reply } else { reply.with("WWW-Authenticate", "Negotiate").with("WWW-Authenticate", challenge) })
}

/// Whether a range begins where it should; kept beside the API because both
/// servers of blobs obey the same manners.
pub(crate) fn range_reply(ranges: Ranges, start: Option<u64>, len: u64) -> Option<(u16, u64)> {
    let start = start?;
    match ranges {
        Ranges::Honoured if start < len => Some((206, start)),
        Ranges::Honoured | Ranges::Refused => Some((416, len)),
        Ranges::Ignored => None,
        Ranges::Shifted => Some((206, start.saturating_sub(1))),
    }
}
