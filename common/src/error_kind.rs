//! What kind of failure an error is, as every front door tells it.

use serde::{Deserialize, Serialize};

/// Kind of a failure: what the caller can do about it.
///
/// One table in `sctl-proto` maps each kind to a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: a reference, an option, a platform.
    InvalidInput,
    /// The thing asked for is not there, or not this caller's to see.
    NotFound,
    /// Credentials are missing or were refused by the registry.
    Unauthenticated,
    /// The caller may not do this.
    Denied,
    /// Bytes are not what they claim to be: digest, size, format.
    Corrupt,
    /// A configured limit was reached: entries, bytes, ratio, layers.
    LimitExceeded,
    /// The registry asks to wait (429).
    RateLimited,
    /// Something else cannot be reached now: registry, network, proxy.
    Unavailable,
    /// Disk, memory or quota has run out.
    NoSpace,
    /// Valid, but not something that this program handles.
    Unsupported,
    /// The caller or the daemon's shutdown ended the work.
    Cancelled,
    /// A deadline passed.
    DeadlineExceeded,
    /// The program or the machine is at fault.
    Internal,
}
