//! A registry with the manners of Docker Hub, and with any fault one likes.
//!
//! A real `docker-registry` on loopback cannot show what clients meet at
//! Docker Hub: blobs redirected to another host that refuses our token, tokens
//! that die in mid-pull, rate limits, bodies that break off, wrong lengths.
//! This one serves whatever is put into it from three loopback ports (API,
//! token server, object store), behaves as its [`Manners`] say, misbehaves as
//! its [`Fault`]s say, and keeps a log to assert on.
//!
//! It is a small HTTP/1.1 server on plain threads, because a library would not
//! let it send wrong replies. Threads end with their connections, the ports
//! close with the [`Hub`].

mod api;
mod content;
mod fault;
mod http;
mod jwt;
mod manners;
mod proxy;
mod store;
mod token;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sctl_common::Digest;

pub use fault::{At, Fault, Gate, Misdeed};
pub use http::Seen;
pub use jwt::{ISSUER, SERVICE, TokenServer};
pub use manners::{Login, Manners, Ranges};
pub use proxy::Proxy;

use content::{Blob, Content};
use token::Tokens;

/// A running fake; it ends with this value.
pub struct Hub {
    shared: Arc<Shared>,
    _servers: [http::Server; 3],
}

/// What the three servers share.
pub(crate) struct Shared {
    state: Mutex<State>,
    log: Mutex<Vec<Seen>>,
    /// Addresses of API, token server and object store, in this order.
    addresses: Mutex<[Option<SocketAddr>; 3]>,
}

pub(crate) struct State {
    pub(crate) manners: Manners,
    pub(crate) faults: Vec<Fault>,
    pub(crate) content: Content,
    pub(crate) tokens: Tokens,
}

/// One of the three servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The registry's API.
    Api,
    /// The token server.
    Auth,
    /// The object store that blobs are redirected to.
    Store,
}

impl Hub {
    /// Starts a registry that behaves as `manners` say.
    ///
    /// # Panics
    /// If no loopback port can be had.
    pub fn start(manners: Manners) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                manners,
                faults: Vec::new(),
                content: Content::default(),
                tokens: Tokens::default(),
            }),
            log: Mutex::default(),
            addresses: Mutex::default(),
        });
        let servers = [Part::Api, Part::Auth, Part::Store].map(|part| {
            let shared = Arc::clone(&shared);
            http::Server::start(move |request, connection| match part {
                Part::Api => api::serve(&shared, request, connection),
                Part::Auth => token::serve(&shared, request, connection),
                Part::Store => store::serve(&shared, request, connection),
            })
        });
        *lock(&shared.addresses) = std::array::from_fn(|at| Some(servers[at].address()));
        Self { shared, _servers: servers }
    }

    /// `127.0.0.1:PORT` of the API.
    pub fn host(&self) -> String {
        self.shared.address(Part::Api).to_string()
    }

    /// `127.0.0.1:PORT` of one of the servers.
    pub fn host_of(&self, part: Part) -> String {
        self.shared.address(part).to_string()
    }

    /// Reference of a repository here, without `docker://`.
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.host())
    }

    /// Changes the manners from now on.
    pub fn change(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut lock(&self.shared.state).manners);
    }

    /// Adds a fault; earlier ones come first.
    pub fn misbehave(&self, fault: Fault) {
        lock(&self.shared.state).faults.push(fault);
    }

    /// Takes all faults back.
    pub fn behave(&self) {
        lock(&self.shared.state).faults.clear();
    }

    /// Lets all tokens die now, whatever was said when they were given out.
    pub fn expire_tokens(&self) {
        lock(&self.shared.state).tokens.expire();
    }

    /// Stores a blob for all repositories.
    pub fn add_blob(&self, bytes: impl Into<Vec<u8>>) -> Digest {
        lock(&self.shared.state).content.add_blob(Blob::from_bytes(bytes.into()))
    }

    /// Stores a blob under a digest that may be another's.
    pub fn add_blob_as(&self, digest: Digest, bytes: impl Into<Vec<u8>>) {
        lock(&self.shared.state).content.add_blob_as(digest, Blob::from_bytes(bytes.into()));
    }

    /// Serves a file as a blob; its digest is the caller's business.
    pub fn add_blob_file(&self, digest: Digest, path: &Path) {
        lock(&self.shared.state).content.add_blob_as(digest, Blob::from_file(path));
    }

    /// Stores a manifest or index, and lets `tag` name it.
    pub fn add_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> Digest {
        lock(&self.shared.state).content.add_manifest(repository, tag, media_type, bytes)
    }

    /// Copies `tag` of the OCI layout at `layout`, with all it leads to, to
    /// `name_and_tag` here. Returns the manifest's (or index's) digest.
    ///
    /// # Panics
    /// If the layout has no such tag or misses blobs.
    pub fn push(&self, layout: &Path, tag: &str, name_and_tag: &str) -> Digest {
        lock(&self.shared.state).content.push_layout(layout, tag, name_and_tag)
    }

    /// Stores `image` as `name_and_tag`. Returns the manifest's digest.
    pub fn seed(&self, image: &crate::image::Image, name_and_tag: &str) -> Digest {
        let scratch = crate::programs::Scratch::new();
        image.write_layout(scratch.path(), "seed");
        self.push(scratch.path(), "seed", name_and_tag)
    }

    /// All requests so far, in the order of their replies' heads.
    pub fn log(&self) -> Vec<Seen> {
        lock(&self.shared.log).clone()
    }

    /// Forgets the log.
    pub fn clear_log(&self) {
        lock(&self.shared.log).clear();
    }

    /// Requests to one of the servers whose path contains `needle`.
    pub fn seen(&self, part: Part, needle: &str) -> Vec<Seen> {
        self.log().into_iter().filter(|seen| seen.part == part && seen.path.contains(needle)).collect()
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn record(&self, seen: Seen) {
        lock(&self.log).push(seen);
    }

    pub(crate) fn address(&self, part: Part) -> SocketAddr {
        let at = match part {
            Part::Api => 0,
            Part::Auth => 1,
            Part::Store => 2,
        };
        lock(&self.addresses)[at].expect("requests come after the start")
    }

    /// The next misdeed due at a request, if any; it is used up by one.
    pub(crate) fn misdeed(&self, at: &At) -> Option<Misdeed> {
        fault::take(&mut self.state().faults, at)
    }
}

/// A test that panicked with the lock is reported by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
