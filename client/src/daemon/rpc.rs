//! gRPC over a connected socket.

use std::{future::Future, os::unix::net::UnixStream, time::Duration};

use hyper_util::rt::TokioIo;
use sctl_proto::{FailureDetail, from_status, v1::sctl_client::SctlClient};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::failure::{Failure, reason};

/// Lists of a large cache are longer than tonic's default of 4 MiB.
const MAX_REPLY: usize = 64 << 20;

/// How long the daemon may be silent before it is asked whether it lives, and
/// how long it may take to answer that.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs a future to its end on a runtime that has no thread of its own and is
/// gone afterwards.
///
/// # Errors
/// Those of the future, or a runtime that cannot be made.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("Unable to talk to the image daemon").cause(reason(&error)))?
        .block_on(future)
}

/// Speaks gRPC on `stream`, whose peer has been checked.
///
/// # Errors
/// A peer that does not speak the protocol.
pub async fn connect(stream: UnixStream) -> Result<SctlClient<Channel>, Failure> {
    let unable = || Failure::new("Unable to talk to the image daemon");
    stream.set_nonblocking(true).map_err(|error| unable().cause(reason(&error)))?;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        // One connection only: another one would have to be checked again.
        let stream = stream.take();
        async move {
            let stream = stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))?;
            tokio::net::UnixStream::from_std(stream).map(TokioIo::new)
        }
    });
    // The name is never looked up: the connector above ignores it.
    let channel = Endpoint::from_static("http://sctl.invalid")
        // A daemon that was stopped keeps its connections and says nothing.
        .http2_keep_alive_interval(PATIENCE)
        .keep_alive_timeout(PATIENCE)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unable().source(&error))?;
    Ok(SctlClient::new(channel).max_decoding_message_size(MAX_REPLY))
}

/// A status as a failure of `what`, such as `Unable to pull docker://x`.
pub fn rpc_failure(what: &str, status: &Status) -> Failure {
    let FailureDetail { message, causes, hint, .. } = from_status(status);
    let mut failure = Failure::new(what);
    for cause in std::iter::once(message).chain(causes) {
        if !cause.is_empty() && cause != what && failure.causes.last() != Some(&cause) {
            failure = failure.cause(cause);
        }
    }
    if hint.is_empty() { failure } else { failure.hint(hint) }
}

/// Says whether the connection broke, as opposed to an answer of the daemon.
pub fn is_broken_connection(status: &Status) -> bool {
    // Answers of the daemon carry no source; errors of the transport do.
    std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use sctl_common::ErrorKind;
    use sctl_proto::to_status;

    use super::*;

    #[test]
    fn failures_of_the_daemon_keep_causes_and_hint() {
        let detail = FailureDetail {
            kind: ErrorKind::Corrupt,
            message: "layer 3 of 5 does not match its digest".to_owned(),
            causes: vec!["expected a, got b".to_owned()],
            hint: "retry".to_owned(),
            retry_after_seconds: 0,
        };
        let failure = rpc_failure("Unable to pull docker://x", &to_status(&detail));
        assert_eq!(failure.message, "Unable to pull docker://x");
        assert_eq!(failure.causes, ["layer 3 of 5 does not match its digest", "expected a, got b"]);
        assert_eq!(failure.hint.as_deref(), Some("retry"));
        assert!(!is_broken_connection(&to_status(&detail)));
    }
}
