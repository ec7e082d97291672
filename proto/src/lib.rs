//! Protocol between `sctl` and `sctld`.
//!
//! Generated types stop at the service layer: the daemon turns requests into
//! domain types, the client turns events into output. The table from
//! [`ErrorKind`](sctl_common::ErrorKind) to gRPC codes lives here too.
#![forbid(unsafe_code)]

mod status;

pub use status::{FailureDetail, code_of, from_status, to_status};

/// Generated from `proto/sctl/v1/sctl.proto`, which documents it.
#[expect(missing_docs, reason = "the comments of the .proto file are the manual")]
pub mod v1 {
    tonic::include_proto!("sctl.v1");
}

/// Version of the protocol, in `VersionReply.protocol`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest message on mount.sock in bytes, in either direction.
pub const MAX_OPEN_MESSAGE: usize = 16 << 10;
