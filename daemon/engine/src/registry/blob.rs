//! Blobs as streams: resumed after breaks, checked while bytes flow.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header::CONTENT_RANGE};
use sctl_common::{Digest, Sha256};
use sctl_oci::{Descriptor, Layer};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Client, RegistryError,
    api::Call,
    error::Subject,
    retry::Retrier,
    transport::{Failure, host_and_port},
};

/// So many bytes since the last break, and the next one counts as a first.
const PROGRESS_BYTES: u64 = 1 << 20;
/// So much time since the last break, likewise.
const PROGRESS_TIME: Duration = Duration::from_secs(60);
/// A body that brings less than this per stall time is as good as silent.
const MIN_BYTES_PER_STALL: u64 = 4 << 10;
/// Once all bytes are there, so long is waited for the end of the body. A
/// server that leaves the connection open without sending is none of our
/// business; one that sends more has another blob than it promised.
const END_TIME: Duration = Duration::from_secs(2);

/// Which blob to fetch, and where from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobSource {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of the bytes.
    pub size: u64,
    /// Further places, asked without authorisation after the registry said
    /// that it has no such blob. For foreign layers only.
    pub urls: Vec<String>,
}

impl From<&Descriptor> for BlobSource {
    /// From the registry alone: URLs count for foreign layers only.
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size: descriptor.size, urls: Vec::new() }
    }
}

impl From<&Layer> for BlobSource {
    fn from(layer: &Layer) -> Self {
        let urls = if layer.foreign { layer.descriptor.urls.clone() } else { Vec::new() };
        Self { urls, ..Self::from(&layer.descriptor) }
    }
}

/// A blob on its way.
///
/// Chunks come as the network brings them and are hashed in passing. The last
/// one is handed out only if size and digest are right, so whoever has seen
/// the end has seen the blob.
pub struct BlobStream {
    client: Client,
    source: BlobSource,
    subject: Subject,
    body: Option<Body>,
    hash: Sha256,
    /// Bytes hashed and handed out.
    received: u64,
    /// The registry does not keep to ranges.
    no_range: bool,
    /// Index into the source's URLs, once the registry has been asked in vain.
    foreign: Option<usize>,
    retrier: Retrier,
    /// Value of `received` at the last break.
    last_break: u64,
    /// `received` when a body last ended as if that were all.
    short_end: Option<u64>,
    done: bool,
}

struct Body {
    response: Response,
    host: String,
    /// Bytes to throw away, since the server began before our place.
    skip: u64,
    /// Bytes of the current stall window, and the time spent waiting for them.
    window_bytes: u64,
    window_waited: Duration,
}

/// How one read of a body went.
enum Read {
    Chunk(Bytes),
    End,
    Broken(RegistryError),
}

impl Client {
    /// Starts to fetch a blob; the first request is sent by the first
    /// [`BlobStream::next`].
    pub fn fetch_blob(&self, source: BlobSource) -> BlobStream {
        BlobStream {
            subject: self.0.blob_subject(source.digest),
            retrier: Retrier::new(self.0.retry),
            client: self.clone(),
            source,
            body: None,
            hash: Sha256::new(),
            received: 0,
            no_range: false,
            foreign: None,
            last_break: 0,
            short_end: None,
            done: false,
        }
    }
}

impl BlobStream {
    /// Bytes handed out so far.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that there will be.
    pub const fn size(&self) -> u64 {
        self.source.size
    }

    /// The next chunk, or `None` after the last.
    ///
    /// # Errors
    /// Any [`RegistryError`]; the blob is then unusable, whatever was handed
    /// out before.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.done {
            return Ok(None);
        }
        if self.source.size == 0 {
            return self.check_digest().map(|()| None);
        }
        loop {
            let Some(body) = &mut self.body else {
                self.body = Some(self.open().await?);
                continue;
            };
            match body.read(self.client.0.timeouts().stall).await {
                Read::Chunk(mut chunk) => {
                    if body.skip > 0 {
                        let skipped = chunk.len().min(usize::try_from(body.skip).unwrap_or(usize::MAX));
                        body.skip -= skipped as u64;
                        let _ = chunk.split_to(skipped);
                    }
                    if !chunk.is_empty() {
                        return self.take(chunk).await.map(Some);
                    }
                }
                Read::End => {
                    let found = self.received;
                    let twice = self.short_end.replace(found) == Some(found);
                    if twice {
                        // Told and sent the same, two times: that is its size.
                        return Err(self.wrong_size(found));
                    }
                    self.break_off(None).await?;
                }
                Read::Broken(error) => self.break_off(Some(error)).await?,
            }
        }
    }

    /// Counts and hashes a chunk; with the last one, checks the whole.
    async fn take(&mut self, chunk: Bytes) -> Result<Bytes, RegistryError> {
        let left = self.source.size - self.received;
        if chunk.len() as u64 > left {
            return Err(self.wrong_size(self.received + chunk.len() as u64));
        }
        self.hash.update(&chunk);
        self.received += chunk.len() as u64;
        if self.received == self.source.size {
            self.check_end().await?;
            self.check_digest()?;
        }
        Ok(chunk)
    }

    /// Looks whether the body goes on after its last byte.
    async fn check_end(&mut self) -> Result<(), RegistryError> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        match body.read(END_TIME).await {
            Read::Chunk(_) => Err(self.wrong_size(self.received + 1)),
            // It may also break off or promise more: all bytes are here, and
            // the digest says whether they are the right ones.
            Read::End | Read::Broken(_) => Ok(()),
        }
    }

    fn check_digest(&mut self) -> Result<(), RegistryError> {
        let found = std::mem::take(&mut self.hash).finish();
        if found != self.source.digest {
            let expected = self.source.digest;
            return Err(RegistryError::WrongDigest { subject: self.subject.clone(), expected, found });
        }
        self.done = true;
        Ok(())
    }

    fn wrong_size(&self, found: u64) -> RegistryError {
        RegistryError::WrongSize { subject: self.subject.clone(), expected: self.source.size, found }
    }

    /// Gets ready to go on after a break, or gives up.
    async fn break_off(&mut self, error: Option<RegistryError>) -> Result<(), RegistryError> {
        self.body = None;
        let progressed = self.received - self.last_break;
        let moved_on = progressed >= PROGRESS_BYTES || (progressed > 0 && self.retrier.age() >= PROGRESS_TIME);
        if moved_on {
            self.retrier.reset();
        }
        self.last_break = self.received;
        let interrupted = RegistryError::Interrupted {
            subject: self.subject.clone(),
            received: self.received,
            expected: self.source.size,
            source: error.map(Box::new),
        };
        if moved_on {
            // A long body broke once: nothing says that waiting helps.
            self.client.0.notices.retry(&self.subject, &interrupted, Duration::ZERO);
            return Ok(());
        }
        self.client.0.wait_before_retry(interrupted, &mut self.retrier, &self.subject).await
    }

    /// Opens the body at the current place, or before it.
    async fn open(&mut self) -> Result<Body, RegistryError> {
        loop {
            match self.request().await {
                Ok(response) => {
                    if let Some(body) = self.accept(response)? {
                        return Ok(body);
                    }
                }
                Err(error) if self.next_foreign(&error) => {}
                Err(RegistryError::Status { status: 416, .. }) if self.received > 0 && !self.no_range => {
                    self.no_range = true;
                }
                Err(error) => {
                    self.client.0.wait_before_retry(error, &mut self.retrier, &self.subject).await?;
                }
            }
        }
    }

    async fn request(&self) -> Result<Response, RegistryError> {
        let from_byte = if self.no_range { 0 } else { self.received };
        let inner = &self.client.0;
        if let Some(url) = self.foreign.and_then(|at| self.source.urls.get(at)) {
            return inner.fetch_foreign(url, from_byte, &self.subject).await;
        }
        let path = format!("blobs/{}", self.source.digest);
        let call = Call { method: Method::GET, path, accept: None, from_byte };
        inner.call_once(&call, &self.subject).await
    }

    /// Moves on to a foreign layer's next URL, if there is one: from the
    /// registry if it says that it has no such blob, from a URL after any error.
    fn next_foreign(&mut self, error: &RegistryError) -> bool {
        let has_not = matches!(error, RegistryError::NotFound { .. } | RegistryError::Denied { .. });
        let next = self.foreign.map_or(0, |at| at + 1);
        if !(has_not || self.foreign.is_some()) || next >= self.source.urls.len() {
            return false;
        }
        self.foreign = Some(next);
        true
    }

    /// Finds out where a reply begins; `None` if it is of no use and another
    /// has to be asked for.
    fn accept(&mut self, response: Response) -> Result<Option<Body>, RegistryError> {
        let asked = if self.no_range { 0 } else { self.received };
        let starts_at = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                match range.and_then(parse_content_range) {
                    Some(start) if start == asked && asked > 0 => start,
                    // Not what was asked for: ask for all of it, and skip.
                    _ if !self.no_range => {
                        self.no_range = true;
                        return Ok(None);
                    }
                    _ => {
                        return Err(RegistryError::BadReply {
                            subject: self.subject.clone(),
                            reason: "the reply is a part that nobody asked for",
                        });
                    }
                }
            }
            StatusCode::OK => 0,
            _ => {
                return Err(RegistryError::BadReply {
                    subject: self.subject.clone(),
                    reason: "the reply is a success without the blob",
                });
            }
        };
        let host = host_and_port(response.url());
        let skip = self.received - starts_at;
        Ok(Some(Body { response, host, skip, window_bytes: 0, window_waited: Duration::ZERO }))
    }
}

impl Body {
    async fn read(&mut self, stall: Duration) -> Read {
        let started = Instant::now();
        let chunk = match tokio::time::timeout_at(started + stall, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Read::End,
            Ok(Err(error)) => {
                return Read::Broken(Failure::from_reqwest(&error).into_error(self.host.clone()));
            }
            Err(_) => return Read::Broken(self.timed_out("send more", stall)),
        };
        // Only the time spent waiting here counts: a slow consumer is no fault
        // of the server's.
        self.window_bytes += chunk.len() as u64;
        self.window_waited += started.elapsed();
        if self.window_bytes >= MIN_BYTES_PER_STALL {
            (self.window_bytes, self.window_waited) = (0, Duration::ZERO);
        } else if self.window_waited > stall {
            return Read::Broken(self.timed_out("send more than a trickle", stall));
        }
        Read::Chunk(chunk)
    }

    fn timed_out(&self, what: &'static str, stall: Duration) -> RegistryError {
        RegistryError::TimedOut { host: self.host.clone(), what, seconds: stall.as_secs() }
    }
}

/// First byte of `bytes 5-9/10`.
fn parse_content_range(value: &str) -> Option<u64> {
    let range = value.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let cases = [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-0/*", Some(0)),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 99999999999999999999-1/2", None),
            ("", None),
        ];
        for (text, start) in cases {
            assert_eq!(parse_content_range(text), start, "{text:?}");
        }
    }
}
