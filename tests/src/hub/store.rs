//! The object store that blobs are redirected to, and blobs themselves.

use std::io;

use sctl_common::Digest;

use super::{
    Part, Shared,
    api::{range_reply, send},
    fault::At,
    http::{After, Body, Connection, Reply, Request},
};

/// A presigned URL, as object stores have them.
pub(crate) fn url(shared: &Shared, digest: Digest) -> String {
    format!("http://{}/store/{}?Expires=60&Signature=c2lnbmVk", shared.address(Part::Store), digest.hex())
}

pub(crate) fn serve(shared: &Shared, request: &Request, connection: &mut Connection) -> io::Result<After> {
    let digest = request.path.strip_prefix("/store/").and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok());
    let Some(digest) = digest else {
        return send(shared, Part::Store, request, connection, Reply::text(404, "<Error/>"), None);
    };
    if request.header("authorization").is_some() {
        let reply = Reply::text(
            400,
            "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>",
        );
        return send(shared, Part::Store, request, connection, reply, None);
    }
    let misdeed = shared.misdeed(&At::BlobOf(digest));
    let reply = blob_reply(shared, request, digest);
    send(shared, Part::Store, request, connection, reply, misdeed)
}

/// The blob or a part of it, as the manners treat ranges.
pub(crate) fn blob_reply(shared: &Shared, request: &Request, digest: Digest) -> Reply {
    let state = shared.state();
    let Some(blob) = state.content.blob(&digest) else {
        return Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let len = blob.len();
    let (status, from) = range_reply(state.manners.ranges, request.range_start(), len).unwrap_or((200, 0));
    let reply = Reply { status, headers: Vec::new(), body: Body::Blob(blob, from) }
        .with("Content-Type", "application/octet-stream")
        .with("Docker-Content-Digest", digest.to_string());
    match status {
        206 => reply.with("Content-Range", format!("bytes {from}-{}/{len}", len - 1)),
        416 => Reply::text(416, "").with("Content-Range", format!("bytes */{len}")),
        _ => reply.with("Accept-Ranges", "bytes"),
    }
}
