//! What a registry does wrong, where, and how often.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sctl_common::Digest;

/// A misdeed, where it happens and how often.
#[derive(Debug, Clone)]
pub struct Fault {
    at: At,
    /// Requests that still get it.
    left: u32,
    /// Requests let through before.
    pass: u32,
    misdeed: Misdeed,
}

/// Which requests a fault is about. Blob requests are those that get the
/// bytes: at the object store if blobs are redirected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// Manifests and indexes.
    Manifest,
    /// Any blob's bytes.
    Blob,
    /// One blob's bytes.
    BlobOf(Digest),
    /// Blob requests at the API, also where it would only redirect.
    BlobApi,
    /// The token server.
    Token,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Misdeed {
    /// Another status, with headers and a body.
    Status {
        /// The status.
        status: u16,
        /// Further headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// The connection is closed after so many bytes of the body.
    BreakAfter(u64),
    /// The body comes in pieces with pauses between them.
    Slow {
        /// Bytes of a piece.
        piece: usize,
        /// The pause.
        pause: Duration,
    },
    /// So many bytes, then silence with the connection open.
    Silence(u64),
    /// `Content-Length` is wrong by so many bytes. One that is too small cuts
    /// the body there; after one that is too large the connection is closed.
    LengthOffBy(i64),
    /// The bytes, and then zeroes without end, in chunked encoding.
    Endless,
    /// The first byte is another one.
    WrongByte,
    /// A redirect to this URL.
    RedirectTo(String),
    /// A redirect to where the request went.
    RedirectToItself,
    /// The connection is closed without a reply.
    HangUp,
    /// Every token given out so far dies, and the connection is closed after
    /// so many bytes of the body.
    TokensDie(u64),
    /// The reply waits until the gate is open.
    Held(Gate),
}

/// Holds replies back until it is opened; clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Lets the replies go.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Fault {
    /// `misdeed` at every request `at`.
    pub const fn always(at: At, misdeed: Misdeed) -> Self {
        Self { at, left: u32::MAX, pass: 0, misdeed }
    }

    /// `misdeed` at the next `times` requests `at`.
    pub const fn times(times: u32, at: At, misdeed: Misdeed) -> Self {
        Self { at, left: times, pass: 0, misdeed }
    }

    /// The same, after `pass` requests went well.
    pub fn after(self, pass: u32) -> Self {
        Self { pass, ..self }
    }
}

impl Misdeed {
    /// A status without anything else.
    pub const fn status(status: u16) -> Self {
        Self::Status { status, headers: Vec::new(), body: String::new() }
    }

    /// A status with `Retry-After`, and Docker Hub's text if it is 429.
    pub fn retry_after(status: u16, value: &str) -> Self {
        let body = if status == 429 {
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limits"}]}"#
        } else {
            ""
        };
        let headers = vec![
            ("Retry-After".to_owned(), value.to_owned()),
            ("Content-Type".to_owned(), "application/json".to_owned()),
        ];
        Self::Status { status, headers, body: body.to_owned() }
    }
}

/// Finds the first fault for a request and uses it up by one.
pub(crate) fn take(faults: &mut [Fault], at: &At) -> Option<Misdeed> {
    let fits = |fault: &Fault| match (&fault.at, at) {
        (At::Blob, At::BlobOf(_)) => true,
        (wanted, at) => wanted == at,
    };
    for fault in faults.iter_mut().filter(|fault| fault.left > 0 && fits(fault)) {
        if fault.pass > 0 {
            fault.pass -= 1;
            continue;
        }
        if fault.left != u32::MAX {
            fault.left -= 1;
        }
        return Some(fault.misdeed.clone());
    }
    None
}
