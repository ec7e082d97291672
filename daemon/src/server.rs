//! Accepts connections, and knows when to stop.

use std::{future::Future, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use sctl_engine::Engine;
use sctl_proto::v1::sctl_server::SctlServer;
use sctl_sys::scm::{self, Blocking};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use crate::{
    Mode,
    activity::{Activity, Limits},
    connection::{Accepted, Admission},
    mount_socket,
    service::Service,
    sockets::{SocketError, Sockets},
};

/// Connections on each of the sockets. One user has as many as pulls, each of
/// which is a client of its own. Each takes a descriptor or a few of the 65,536
/// that the service may have.
const CONNECTIONS: Limits = Limits { of_user: 64, many: 1024, when_many: 4, most: 2048 };

/// Largest gRPC message that a client may send: a pull request.
const MAX_REQUEST: usize = 256 << 10;

/// Bytes of a request's headers; clients of ours send a few hundred.
const MAX_HEADERS: u32 = 16 << 10;

/// Requests under way on one connection.
const STREAMS: u32 = 8;

/// How long connections may take to close when nothing runs any more.
const CLOSING: Duration = Duration::from_secs(2);

/// How the daemon behaves as a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whom it serves.
    pub mode: Mode,
    /// Group whose members are administrators.
    pub admin_gid: Option<u32>,
    /// Leave after that long without connections and work.
    pub idle: Option<Duration>,
    /// How long running jobs may go on after a request to stop.
    pub deadline: Duration,
    /// How long a client of mount.sock may keep silent, and one of sctl.sock
    /// before it has said its first words.
    pub patience: Duration,
}

/// Why the daemon stopped serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// Nobody needed it.
    Idle,
}

/// Says why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A listening socket fails.
    #[error("cannot listen")]
    Listen {
        /// Why.
        source: io::Error,
    },
    /// The sockets could not be made again.
    #[error("cannot make the sockets again")]
    Sockets {
        /// Why.
        source: SocketError,
    },
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc {
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Serves `engine` on `sockets` until `stop` is ready or nobody needs it any
/// more; `ready` is called when clients can connect.
///
/// # Errors
/// [`ServeError`] if it cannot go on.
pub async fn serve<E: Engine>(
    engine: Arc<E>,
    mut sockets: Sockets,
    options: &ServerOptions,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<Ended, ServeError> {
    let grpc_activity = Activity::new();
    let mount_activity = Activity::new();
    let admission = Admission::new(options.mode, options.admin_gid);
    let (connections, incoming) = mpsc::channel::<io::Result<Accepted>>(16);
    let (closing, mut closed) = watch::channel(false);

    let service = SctlServer::new(Service::new(Arc::clone(&engine), options.mode.is_user()))
        .max_decoding_message_size(MAX_REQUEST);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            // An error means that the sender has gone: stop as well.
            let _ = closed.wait_for(|closed| *closed).await;
        });
    let mut server = tokio::spawn(server);

    let accept_grpc = |socket: UnixStream| {
        let (admission, activity, connections) = (&admission, &grpc_activity, connections.clone());
        async move {
            let caller = match admission.admit(&socket) {
                Ok(caller) => caller,
                Err(error) => return warn!(error = %with_source(&error), "connection refused"),
            };
            let Some(counted) = activity.connect(caller.account, &CONNECTIONS) else {
                return warn!(caller.uid, "connection refused: too many of this user, or of all");
            };
            // The server has gone only when we are about to leave as well.
            let _ = connections.send(Ok(Accepted::new(socket, caller, counted, options.patience))).await;
        }
    };
    let accept_mount = |socket: UnixStream| {
        let (admission, activity, engine) = (&admission, &mount_activity, Arc::clone(&engine));
        async move {
            let caller = match admission.admit(&socket) {
                Ok(caller) => caller,
                Err(error) => return warn!(error = %with_source(&error), "connection refused"),
            };
            match activity.connect(caller.account, &CONNECTIONS) {
                Some(counted) => {
                    tokio::spawn(mount_socket::serve(socket, caller, counted, engine, options.patience));
                }
                None => mount_socket::refuse_busy(&socket),
            }
        }
    };

    tokio::pin!(stop);
    let mut ready = Some(ready);
    let ended = loop {
        let listen = |source| ServeError::Listen { source };
        let grpc = listener(&sockets.grpc).map_err(listen)?;
        let mount = listener(&sockets.mount).map_err(listen)?;
        if let Some(ready) = ready.take() {
            ready();
        }
        let ended = tokio::select! {
            () = &mut stop => Ended::Stopped,
            () = idle(&*engine, &grpc_activity, &mount_activity, options.idle) => Ended::Idle,
            result = &mut server => return Err(grpc_failure(result)),
            error = accept_all(&grpc, accept_grpc) => return Err(listen(error)),
            error = accept_all(&mount, accept_mount) => return Err(listen(error)),
        };
        if ended == Ended::Stopped {
            break ended;
        }
        // From here on nobody can connect; but somebody may have, since we
        // decided to leave, and must not be lost.
        sockets.close();
        let late =
            accept_waiting(&sockets.grpc, accept_grpc).await + accept_waiting(&sockets.mount, accept_mount).await;
        if late == 0 {
            break ended;
        }
        debug!(late, "somebody came at the last moment");
        sockets.reopen().map_err(|source| ServeError::Sockets { source })?;
    };

    match ended {
        Ended::Stopped => info!(deadline_s = options.deadline.as_secs(), "stopping"),
        Ended::Idle => info!("nobody needs this daemon: leaving"),
    }
    sockets.close();
    engine.shutdown(options.deadline).await;
    // The receiver may have gone: the server has ended, then.
    let _ = closing.send(true);
    drop(connections);
    match timeout(CLOSING, server).await {
        Ok(Ok(Ok(()))) | Err(_) => Ok(ended),
        Ok(result) => Err(grpc_failure(result)),
    }
}

fn grpc_failure(result: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> ServeError {
    match result {
        Ok(Err(source)) => ServeError::Grpc { source },
        Ok(Ok(())) => ServeError::Listen { source: io::Error::other("the gRPC server ended early") },
        Err(error) => ServeError::Listen { source: io::Error::other(error) },
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The runtime's view of a listening socket, whatever its type.
fn listener(socket: &OwnedFd) -> io::Result<UnixListener> {
    UnixListener::from_std(socket.try_clone()?.into())
}

/// Accepts until the listener fails for good.
async fn accept_all<F: Future<Output = ()>>(listener: &UnixListener, handle: impl Fn(UnixStream) -> F) -> io::Error {
    use rustix::io::Errno;
    loop {
        let error = match listener.accept().await {
            Ok((socket, _)) => {
                handle(socket).await;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            // The peer has gone again.
            Some(Errno::CONNABORTED) => {}
            // We, or the system, have too much open: connections end.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                warn!(%error, "cannot accept a connection now");
                sleep(Duration::from_millis(100)).await;
            }
            _ => return error,
        }
    }
}

/// Accepts those who wait already, and tells how many. Not through the
/// runtime, which may not have heard of them yet.
async fn accept_waiting<F: Future<Output = ()>>(listener: &OwnedFd, handle: impl Fn(UnixStream) -> F) -> usize {
    let mut count = 0;
    while let Ok(socket) = scm::accept(listener, Blocking::No) {
        count += 1;
        match UnixStream::from_std(socket.into()) {
            Ok(socket) => handle(socket).await,
            Err(error) => warn!(%error, "cannot watch a connection"),
        }
    }
    count
}

/// Ready when nobody has been connected and nothing has run for `limit`;
/// never without one.
async fn idle<E: Engine>(engine: &E, grpc: &Activity, mount: &Activity, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    grpc.touch();
    loop {
        if engine.active() > 0 {
            grpc.touch();
        }
        let idle = match (grpc.idle_for(), mount.idle_for()) {
            (Some(grpc), Some(mount)) => grpc.min(mount),
            _ => Duration::ZERO,
        };
        match limit.checked_sub(idle) {
            None | Some(Duration::ZERO) => return,
            Some(rest) => sleep(rest.clamp(Duration::from_millis(10), Duration::from_secs(1))).await,
        }
    }
}
