//! Asks the daemon to pull, and tells what happens meanwhile.

use sctl_common::{Compression, Platform, Uri};
use sctl_proto::v1::{
    Credentials, PullEvent, PullRequest,
    pull_event::{Done, Kind as Event, Notice, Progress, Resolved},
};
use tonic::{Status, Streaming};

use super::{
    Daemon, Kind, connect,
    rpc::{is_broken_connection, rpc_failure},
};
use crate::{failure::Failure, output::debug};

/// What to pull, and how.
#[derive(Debug)]
pub struct Order {
    /// The image.
    pub uri: Uri,
    /// As the user wrote it, for messages.
    pub text: String,
    /// `None` means the daemon's own.
    pub platform: Option<Platform>,
    /// `None` means anonymous.
    pub credentials: Option<Credentials>,
    /// Plain HTTP and unknown certificates will do.
    pub insecure: bool,
    /// `None` means the daemon's default.
    pub compression: Option<Compression>,
    /// Nothing stays in the cache.
    pub disable_cache: bool,
}

impl Order {
    /// The platform as requests carry it.
    pub fn platform_text(&self) -> String {
        self.platform.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    fn request(&self) -> PullRequest {
        PullRequest {
            reference: self.uri.reference.to_string(),
            platform: self.platform_text(),
            credentials: self.credentials.clone(),
            insecure: self.insecure,
            compression: self.compression.map(|compression| compression.to_string()).unwrap_or_default(),
            disable_cache: self.disable_cache,
        }
    }
}

/// Hears what happens during a pull.
pub trait Reporter {
    /// The reference has been resolved.
    fn resolved(&mut self, resolved: &Resolved);
    /// Something made progress.
    fn progress(&mut self, progress: &Progress);
    /// The daemon has something to say.
    fn notice(&mut self, notice: &Notice);
    /// Nothing more comes.
    fn finished(&mut self);
}

impl Daemon<'_> {
    /// Pulls an image into the cache. `failed` begins the message of a failure.
    ///
    /// # Errors
    /// What the daemon reports, a daemon that cannot be reached.
    pub async fn pull(&self, order: &Order, failed: &str, reporter: &mut dyn Reporter) -> Result<Done, Failure> {
        let mut retried = false;
        loop {
            match self.try_pull(order, reporter).await? {
                Ok(done) => {
                    reporter.finished();
                    return Ok(done);
                }
                // A daemon of one's own leaves when idle, perhaps just between
                // our connection and our request: then nothing was heard yet.
                Err(Broken { status, heard: false })
                    if self.kind() == Kind::User && !retried && is_broken_connection(&status) =>
                {
                    debug!("the daemon left; trying again: {status}");
                    retried = true;
                }
                Err(Broken { status, .. }) => {
                    reporter.finished();
                    let failure = rpc_failure(failed, &status);
                    return Err(if is_broken_connection(&status) {
                        Failure::new(failed).cause("the daemon ended or closed the connection").hint(
                            "try again: layers that were finished are kept; the daemon's log may tell why it ended",
                        )
                    } else {
                        failure
                    });
                }
            }
        }
    }

    async fn try_pull(&self, order: &Order, reporter: &mut dyn Reporter) -> Result<Result<Done, Broken>, Failure> {
        let mut client = connect(self.stream()?).await?;
        let mut heard = false;
        let mut events: Streaming<PullEvent> = match client.pull(order.request()).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => return Ok(Err(Broken { status, heard })),
        };
        loop {
            let event = match events.message().await {
                Ok(Some(PullEvent { kind: Some(event) })) => event,
                // An event of a newer daemon.
                Ok(Some(PullEvent { kind: None })) => continue,
                Ok(None) => {
                    let status = Status::internal("the daemon ended its answer too early");
                    return Ok(Err(Broken { status, heard: true }));
                }
                Err(status) => return Ok(Err(Broken { status, heard })),
            };
            heard = true;
            match event {
                Event::Resolved(resolved) => reporter.resolved(&resolved),
                Event::Progress(progress) => reporter.progress(&progress),
                Event::Notice(notice) => reporter.notice(&notice),
                Event::Done(done) => return Ok(Ok(done)),
            }
        }
    }
}

/// A pull that did not get to its end.
struct Broken {
    status: Status,
    heard: bool,
}
