//! The tar stream as a sequence of bytes, hashed as they arrive.

use sctl_common::{Digest, Limits, Sha256};

use crate::error::{PackError, shown};
use crate::tar::RECORD_LEN;

/// Bytes of tar stream from which on the ratio is checked.
const RATIO_FROM: u64 = 64 << 20;

/// Where chunks of the tar stream come from.
pub(crate) trait ChunkSource {
    /// Takes the last chunk back and gives the next one; `None` at the end.
    fn next_chunk(&mut self, used: Chunk) -> Result<Option<Chunk>, PackError>;
}

/// Consecutive bytes of the tar stream.
#[derive(Default)]
pub(crate) struct Chunk {
    /// Buffer whose first `len` bytes count.
    pub(crate) buffer: Box<[u8]>,
    /// Bytes in it.
    pub(crate) len: usize,
    /// Bytes of the blob that have been read for it and all before it.
    pub(crate) blob_bytes: u64,
}

/// Reads a tar stream, computes its digest and guards the limits.
pub(crate) struct Stream<S> {
    source: S,
    chunk: Chunk,
    position: usize,
    /// Bytes of all chunks before the current one.
    passed: u64,
    ended: bool,
    sha256: Sha256,
    limits: Limits,
    /// Raw name of the entry being read, for messages.
    pub(crate) current: Vec<u8>,
}

impl<S: ChunkSource> Stream<S> {
    pub(crate) fn new(source: S, limits: &Limits) -> Self {
        Self {
            source,
            chunk: Chunk::default(),
            position: 0,
            passed: 0,
            ended: false,
            sha256: Sha256::new(),
            limits: *limits,
            current: Vec::new(),
        }
    }

    /// Bytes of the tar stream that have been consumed.
    pub(crate) fn offset(&self) -> u64 {
        self.passed + self.position as u64
    }

    /// What has arrived and was not consumed; empty only at the end.
    pub(crate) fn available(&mut self) -> Result<&[u8], PackError> {
        while self.position == self.chunk.len && !self.ended {
            self.passed += self.chunk.len as u64;
            self.position = 0;
            match self.source.next_chunk(std::mem::take(&mut self.chunk))? {
                Some(chunk) => {
                    self.sha256.update(&chunk.buffer[..chunk.len]);
                    self.chunk = chunk;
                    self.check_limits()?;
                }
                None => self.ended = true,
            }
        }
        Ok(&self.chunk.buffer[self.position..self.chunk.len])
    }

    fn check_limits(&self) -> Result<(), PackError> {
        let tar_bytes = self.passed + self.chunk.len as u64;
        let blob_bytes = self.chunk.blob_bytes;
        if tar_bytes > self.limits.max_layer_bytes {
            let max = self.limits.max_layer_bytes;
            return Err(PackError::Limit { what: "uncompressed bytes", max, entry: shown(&self.current) });
        }
        let max_ratio = self.limits.max_ratio;
        if tar_bytes >= RATIO_FROM && tar_bytes > blob_bytes.saturating_mul(u64::from(max_ratio)) {
            return Err(PackError::Ratio { max_ratio, blob_bytes, tar_bytes, entry: shown(&self.current) });
        }
        Ok(())
    }

    /// Passes over bytes that [`Self::available`] gave.
    pub(crate) fn consume(&mut self, len: usize) {
        self.position += len;
    }

    /// Fills as much of `out` as the stream still holds.
    pub(crate) fn read_full(&mut self, out: &mut [u8]) -> Result<usize, PackError> {
        let mut filled = 0;
        while filled < out.len() {
            let bytes = self.available()?;
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len().min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&bytes[..n]);
            self.consume(n);
            filled += n;
        }
        Ok(filled)
    }

    /// Reads one record that must be there.
    pub(crate) fn read_record(&mut self, what: &'static str) -> Result<[u8; RECORD_LEN], PackError> {
        let mut record = [0; RECORD_LEN];
        if self.read_full(&mut record)? < RECORD_LEN {
            return Err(self.truncated(what));
        }
        Ok(record)
    }

    /// Passes over `len` bytes, or fewer if the stream ends; says how many.
    pub(crate) fn skip(&mut self, len: u64) -> Result<u64, PackError> {
        let mut left = len;
        while left > 0 {
            let available = self.available()?.len();
            if available == 0 {
                break;
            }
            let n = usize::try_from(left).map_or(available, |left| left.min(available));
            self.consume(n);
            left -= n as u64;
        }
        Ok(len - left)
    }

    /// The error of a stream that ends in the middle of `what`.
    pub(crate) fn truncated(&self, what: &'static str) -> PackError {
        PackError::TruncatedTar { what, tar_offset: self.offset() }
    }

    /// Reads to the end; gives the digest of all bytes, their number, and the
    /// source back.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64, S), PackError> {
        loop {
            match self.available()?.len() {
                0 => return Ok((self.sha256.finish(), self.passed + self.position as u64, self.source)),
                n => self.consume(n),
            }
        }
    }
}
