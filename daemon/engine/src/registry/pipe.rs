//! A blob for synchronous readers on other threads.
//!
//! The converter is synchronous and has threads of its own; the network lives
//! on a runtime. Between them stands a queue of [`Bytes`] as they came from
//! the socket, bounded by their sum: nothing is copied on the way, and a slow
//! reader slows the network down.

use std::{
    io::{self, BufRead, Read},
    sync::{Arc, mpsc},
};

use bytes::{Buf as _, Bytes};
use tokio::sync::{Semaphore, oneshot};

use super::{BlobStream, RegistryError};

/// Usual bound of the bytes between network and reader.
pub const DEFAULT_PIPE_BYTES: usize = 4 << 20;

/// The reading end: give it to another thread.
///
/// Reads end with `Ok(0)` only after the whole blob was received and its size
/// and digest were right; everything else is an error, the end of the
/// transfer's future included.
#[derive(Debug)]
pub struct BlobReader {
    queue: mpsc::Receiver<Message>,
    room: Arc<Semaphore>,
    /// Tells the transfer, by its end, that nobody reads any more.
    _presence: oneshot::Sender<()>,
    current: Bytes,
    /// Room that the current chunk takes.
    held: u32,
    state: State,
}

#[derive(Debug)]
enum Message {
    Chunk(Bytes, u32),
    End,
    Failed(String),
}

#[derive(Debug)]
enum State {
    Open,
    Ended,
    Failed(String),
}

impl BlobStream {
    /// Splits into a reader and the transfer that feeds it.
    ///
    /// The transfer has to be driven (awaited) for the reader to see anything;
    /// its result tells what went wrong, where the reader only knows that
    /// something did. `progress` is called with the bytes received so far.
    /// `max_bytes` bounds what is in between.
    ///
    /// The transfer ends with [`RegistryError::Cancelled`] if the reader is
    /// dropped before the end.
    pub fn into_reader(
        self,
        max_bytes: usize,
        progress: impl FnMut(u64) + Send,
    ) -> (BlobReader, impl Future<Output = Result<u64, RegistryError>> + Send) {
        let (sender, queue) = mpsc::channel();
        let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        let room = Arc::new(Semaphore::new(max_bytes as usize));
        let (presence, absence) = oneshot::channel();
        let feeder = Feeder { sender, room: Arc::clone(&room), max_bytes };
        let reader =
            BlobReader { queue, room, _presence: presence, current: Bytes::new(), held: 0, state: State::Open };
        (reader, feeder.run(self, absence, progress))
    }
}

struct Feeder {
    sender: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    max_bytes: u32,
}

impl Feeder {
    async fn run(
        self,
        mut stream: BlobStream,
        mut absence: oneshot::Receiver<()>,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<u64, RegistryError> {
        loop {
            // A silent server must not keep a transfer that nobody reads.
            let next = tokio::select! {
                biased;
                _ = &mut absence => return Err(RegistryError::Cancelled),
                next = stream.next() => next,
            };
            match next {
                Ok(Some(chunk)) => {
                    self.push(chunk).await?;
                    progress(stream.received());
                }
                Ok(None) => {
                    self.sender.send(Message::End).map_err(|_| RegistryError::Cancelled)?;
                    return Ok(stream.received());
                }
                Err(error) => {
                    // A reader that is gone need not be told.
                    let _ = self.sender.send(Message::Failed(error.to_string()));
                    return Err(error);
                }
            }
        }
    }

    async fn push(&self, chunk: Bytes) -> Result<(), RegistryError> {
        // A chunk larger than the whole bound takes all of it.
        let wanted = u32::try_from(chunk.len()).unwrap_or(u32::MAX).min(self.max_bytes);
        let permit = self.room.acquire_many(wanted).await.map_err(|_| RegistryError::Cancelled)?;
        permit.forget();
        self.sender.send(Message::Chunk(chunk, wanted)).map_err(|_| RegistryError::Cancelled)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        // Wakes a transfer that waits for room.
        self.room.close();
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && matches!(self.state, State::Open) {
            self.room.add_permits(self.held as usize);
            self.held = 0;
            match self.queue.recv() {
                Ok(Message::Chunk(chunk, held)) => (self.current, self.held) = (chunk, held),
                Ok(Message::End) => self.state = State::Ended,
                Ok(Message::Failed(text)) => self.state = State::Failed(text),
                Err(mpsc::RecvError) => self.state = State::Failed(RegistryError::Cancelled.to_string()),
            }
        }
        match &self.state {
            State::Failed(text) if self.current.is_empty() => Err(io::Error::other(text.clone())),
            _ => Ok(&self.current),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
