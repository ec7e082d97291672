//! Failures on the wire: one table of kinds and codes, and the details.

use prost::Message as _;
use sctl_common::ErrorKind;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::v1::ErrorDetail;

/// Metadata key that carries an encoded [`ErrorDetail`].
const DETAIL_KEY: &str = "sctl-error-bin";

/// A failure as both sides see it: kind, message, causes and hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FailureDetail {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
    /// Why, from the outermost cause to the root.
    pub causes: Vec<String>,
    /// What the user can do; may be empty.
    pub hint: String,
    /// A registry asked to wait that many seconds; 0 if not.
    pub retry_after_seconds: u64,
}

/// The gRPC code of a kind.
pub fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::LimitExceeded | ErrorKind::RateLimited | ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::Cancelled => Code::Aborted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Every kind with its name on the wire.
const NAMES: [(ErrorKind, &str); 13] = [
    (ErrorKind::InvalidInput, "invalid_input"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::Unauthenticated, "unauthenticated"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::LimitExceeded, "limit_exceeded"),
    (ErrorKind::RateLimited, "rate_limited"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Cancelled, "cancelled"),
    (ErrorKind::DeadlineExceeded, "deadline_exceeded"),
    (ErrorKind::Internal, "internal"),
];

/// Turns a failure into a status that carries its details.
pub fn to_status(failure: &FailureDetail) -> Status {
    let kind = NAMES.iter().find(|(kind, _)| *kind == failure.kind).map_or("internal", |(_, name)| name);
    let detail = ErrorDetail {
        kind: kind.to_owned(),
        causes: failure.causes.clone(),
        hint: failure.hint.clone(),
        retry_after_seconds: failure.retry_after_seconds,
    };
    let mut status = Status::new(code_of(failure.kind), failure.message.clone());
    status.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
    status
}

/// Turns a status back into the failure; one without details keeps its
/// message and the kind that its code suggests.
pub fn from_status(status: &Status) -> FailureDetail {
    let detail = status
        .metadata()
        .get_bin(DETAIL_KEY)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| ErrorDetail::decode(bytes.as_ref()).ok());
    let by_code = || match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
        Code::NotFound => ErrorKind::NotFound,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::Denied,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::ResourceExhausted => ErrorKind::LimitExceeded,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::FailedPrecondition | Code::Unimplemented => ErrorKind::Unsupported,
        Code::Aborted | Code::Cancelled => ErrorKind::Cancelled,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Internal,
    };
    let kind = detail
        .as_ref()
        .and_then(|detail| NAMES.iter().find(|(_, name)| *name == detail.kind))
        .map_or_else(by_code, |(kind, _)| *kind);
    let detail = detail.unwrap_or_default();
    FailureDetail {
        kind,
        message: status.message().to_owned(),
        causes: detail.causes,
        hint: detail.hint,
        retry_after_seconds: detail.retry_after_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, _) in NAMES {
            let failure = FailureDetail {
                kind,
                message: "cannot do it".to_owned(),
                causes: vec!["a\nb".to_owned(), "ü".to_owned()],
                hint: "try".to_owned(),
                retry_after_seconds: 7,
            };
            assert_eq!(from_status(&to_status(&failure)), failure);
        }
    }

    #[test]
    fn a_bare_status_keeps_message_and_kind() {
        let failure = from_status(&Status::unavailable("gone"));
        assert_eq!((failure.kind, failure.message.as_str()), (ErrorKind::Unavailable, "gone"));
    }
}
