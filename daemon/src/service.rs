//! The gRPC service: wire types in and out, everything else in the engine.

use std::{pin::Pin, sync::Arc, task};

use sctl_engine::{Caller, Engine, Failure, PullEvents};
use sctl_proto::v1::{self, sctl_server};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::{connection::CallerInfo, wire};

/// Serves the protocol for one engine.
#[derive(Debug)]
pub struct Service<E> {
    engine: Arc<E>,
    user_mode: bool,
}

impl<E: Engine> Service<E> {
    /// Serves `engine`.
    pub fn new(engine: Arc<E>, user_mode: bool) -> Self {
        Self { engine, user_mode }
    }

    /// Says whether what `caller` sees is about more than one user.
    const fn sees_all_users(&self, caller: Caller) -> bool {
        caller.admin && !self.user_mode
    }
}

/// The caller of a request, as the socket told.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<CallerInfo>()
        .map(|info| info.0)
        .ok_or_else(|| Status::internal("the connection does not tell its peer"))
}

/// Logs a failure, once, where it leaves the daemon.
fn refuse(caller: Caller, what: &str, failure: Failure) -> Status {
    use sctl_common::ErrorKind;
    let kind = failure.kind;
    match kind {
        ErrorKind::Internal | ErrorKind::NoSpace => {
            warn!(caller.uid, ?kind, error = %failure, "{what} failed");
        }
        // The audit log has it.
        ErrorKind::Denied | ErrorKind::Unauthenticated => debug!(caller.uid, error = %failure, "{what} denied"),
        _ => info!(caller.uid, ?kind, error = %failure, "{what} failed"),
    }
    wire::status(failure)
}

/// News of a pull on their way out. Dropping it drops the engine's receiver,
/// which is how the engine learns that the caller has gone.
pub struct EventStream {
    events: PullEvents,
    caller: Caller,
}

impl Stream for EventStream {
    type Item = Result<v1::PullEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Option<Self::Item>> {
        let caller = self.caller;
        self.events.poll_recv(cx).map(|event| {
            event.map(|event| match event {
                Ok(event) => Ok(wire::pull_event(event)),
                Err(failure) => Err(refuse(caller, "pull", failure)),
            })
        })
    }
}

#[tonic::async_trait]
impl<E: Engine> sctl_server::Sctl for Service<E> {
    async fn version(&self, request: Request<v1::VersionRequest>) -> Result<Response<v1::VersionReply>, Status> {
        caller(&request)?;
        Ok(Response::new(v1::VersionReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            user_mode: self.user_mode,
            protocol: sctl_proto::PROTOCOL_VERSION,
            pid: std::process::id(),
        }))
    }

    type PullStream = EventStream;

    async fn pull(&self, request: Request<v1::PullRequest>) -> Result<Response<EventStream>, Status> {
        let caller = caller(&request)?;
        let job = wire::pull_job(request.into_inner()).map_err(|failure| refuse(caller, "pull", failure))?;
        Ok(Response::new(EventStream { events: self.engine.pull(caller, job), caller }))
    }

    async fn cache_list(&self, request: Request<v1::CacheListRequest>) -> Result<Response<v1::CacheListReply>, Status> {
        let caller = caller(&request)?;
        let span = info_span!("cache_list", caller.uid);
        let entries = self.engine.cache_list(caller).instrument(span).await;
        entries
            .map(|entries| Response::new(wire::cache_list(entries, self.sees_all_users(caller))))
            .map_err(|failure| refuse(caller, "cache list", failure))
    }

    async fn cache_info(&self, request: Request<v1::CacheInfoRequest>) -> Result<Response<v1::CacheInfoReply>, Status> {
        let caller = caller(&request)?;
        let span = info_span!("cache_info", caller.uid);
        let info = self.engine.cache_info(caller).instrument(span).await;
        info.map(|info| Response::new(wire::cache_info(info, self.user_mode, self.sees_all_users(caller))))
            .map_err(|failure| refuse(caller, "cache info", failure))
    }

    async fn cache_clean(
        &self,
        request: Request<v1::CacheCleanRequest>,
    ) -> Result<Response<v1::CacheCleanReply>, Status> {
        let caller = caller(&request)?;
        let dry_run = request.into_inner().dry_run;
        let span = info_span!("cache_clean", caller.uid, dry_run);
        let cleaned = self.engine.cache_clean(caller, dry_run).instrument(span).await;
        let cleaned = cleaned.map_err(|failure| refuse(caller, "cache clean", failure))?;
        Ok(Response::new(wire::cache_cleaned(cleaned)))
    }

    async fn admin_mounts(
        &self,
        request: Request<v1::AdminMountsRequest>,
    ) -> Result<Response<v1::AdminMountsReply>, Status> {
        let caller = caller(&request)?;
        let mounts = self.engine.admin_mounts(caller).instrument(info_span!("admin_mounts", caller.uid)).await;
        mounts
            .map(|mounts| Response::new(wire::admin_mounts(mounts)))
            .map_err(|failure| refuse(caller, "admin mounts", failure))
    }

    async fn admin_leases(
        &self,
        request: Request<v1::AdminLeasesRequest>,
    ) -> Result<Response<v1::AdminLeasesReply>, Status> {
        let caller = caller(&request)?;
        let leases = self.engine.admin_leases(caller).instrument(info_span!("admin_leases", caller.uid)).await;
        leases
            .map(|leases| Response::new(wire::admin_leases(leases)))
            .map_err(|failure| refuse(caller, "admin leases", failure))
    }

    async fn admin_jobs(&self, request: Request<v1::AdminJobsRequest>) -> Result<Response<v1::AdminJobsReply>, Status> {
        let caller = caller(&request)?;
        let jobs = self.engine.admin_jobs(caller).instrument(info_span!("admin_jobs", caller.uid)).await;
        jobs.map(|jobs| Response::new(wire::admin_jobs(jobs))).map_err(|failure| refuse(caller, "admin jobs", failure))
    }

    async fn admin_unmount(
        &self,
        request: Request<v1::AdminUnmountRequest>,
    ) -> Result<Response<v1::AdminUnmountReply>, Status> {
        let caller = caller(&request)?;
        let unmount = async {
            let target = wire::unmount_target(request.into_inner())?;
            self.engine.admin_unmount(caller, target).await
        };
        let unmounted = unmount.instrument(info_span!("admin_unmount", caller.uid)).await;
        unmounted
            .map(|images| Response::new(wire::admin_unmounted(images)))
            .map_err(|failure| refuse(caller, "admin unmount", failure))
    }
}
