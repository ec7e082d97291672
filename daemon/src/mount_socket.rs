//! mount.sock: one small message each way, with the descriptors of a SIF and
//! of a mount of it.
//!
//! The hot path of `exec`, `run` and `shell`. Anybody on the host can reach it
//! in system mode, so a connection costs little, lives briefly and can say
//! only one thing at a time.

use std::{io, os::fd::AsFd as _, sync::Arc, time::Duration};

use prost::Message as _;
use sctl_engine::{Caller, Engine, Opened};
use sctl_proto::{
    MAX_OPEN_MESSAGE,
    v1::{OpenReply, open_reply::Status},
};
use sctl_sys::scm;
use tokio::{io::Interest, net::UnixStream, time::timeout};
use tracing::debug;

use crate::{activity::Connection, wire};

/// Serves one connection until its peer leaves, is silent or leaves an answer
/// unread for longer than `patience`, or breaks the rules.
pub async fn serve<E: Engine>(
    socket: UnixStream,
    caller: Caller,
    _counted: Connection,
    engine: Arc<E>,
    patience: Duration,
) {
    match converse(socket, caller, &*engine, patience).await {
        Ok(()) => {}
        Err(error) => debug!(caller.uid, %error, "mount.sock connection ended"),
    }
}

/// `socket` is one of packets; for the runtime, only readiness counts.
async fn converse<E: Engine>(socket: UnixStream, caller: Caller, engine: &E, patience: Duration) -> io::Result<()> {
    // One byte more than a message may have, so that none is cut to a length
    // that looks right.
    let mut buffer = vec![0u8; MAX_OPEN_MESSAGE + 1];
    loop {
        let received = timeout(patience, socket.async_io(Interest::READABLE, || scm::recv_bytes(&socket, &mut buffer)))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if received.len == 0 && !received.truncated {
            return Ok(());
        }
        // Nobody is asked to send descriptors, and none was taken.
        let message = Some(&buffer[..received.len]).filter(|_| !received.truncated);
        let Some((target, wish)) = message.and_then(wire::parse_open_message) else {
            reply(&socket, &of_status(Status::BadRequest), None, patience).await?;
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        match engine.open(caller, target, wish).await {
            Some(opened) => reply(&socket, &wire::open_reply(&opened), Some(&opened), patience).await?,
            None => reply(&socket, &of_status(Status::NotAvailable), None, patience).await?,
        }
    }
}

fn of_status(status: Status) -> OpenReply {
    OpenReply { status: status.into(), ..OpenReply::default() }
}

/// Tells a client that its user has too many connections.
pub fn refuse_busy(socket: &UnixStream) {
    // What is left unread when a socket is closed resets the connection, and
    // takes the answer along. So nothing more may come, and what has is read.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
    let mut request = [0; 1];
    while scm::recv_bytes(socket, &mut request).is_ok_and(|received| received.len > 0) {}
    // It may have gone already, and we are busy.
    let _ = scm::send(socket, &of_status(Status::Busy).encode_to_vec(), &[]);
}

async fn reply(socket: &UnixStream, reply: &OpenReply, opened: Option<&Opened>, patience: Duration) -> io::Result<()> {
    let bytes = reply.encode_to_vec();
    let file = opened.map(|opened| opened.file.as_fd());
    let mount = opened.and_then(|opened| opened.mount.as_ref()).map(|mount| mount.as_fd());
    let fds: Vec<_> = file.into_iter().chain(mount).collect();
    let send = socket.async_io(Interest::WRITABLE, || scm::send(socket, &bytes, &fds));
    timeout(patience, send).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
