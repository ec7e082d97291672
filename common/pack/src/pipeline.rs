//! Blocks compressed by several threads and appended in order.
//!
//! There are as many threads as processors, and none of them waits while there
//! is anything that it could do. The calling thread is the *producer*: it
//! takes empty blocks, fills them and sends them off. All others take what
//! there is to do, the most urgent first: append the block whose turn it is,
//! compress one, or prepare the next chunk of what the producer reads. And
//! when the producer would have to wait, for an empty block or for a chunk, it
//! does the same. So the stages share out the processors by themselves,
//! whichever of them is the slowest, and threads do not take turns on one
//! processor, which costs each of them what it had in that processor's cache.
//!
//! Blocks carry both their buffers and go round; their number bounds memory.
//! The one whose turn it is to be appended is always under way or at hand, so
//! whoever waits is woken.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use sctl_common::Profile;
use sctl_squashfs::{BlockCompressor, BlockSize, CodecError};

use crate::error::PackError;
use crate::tar::Chunk;

/// Bytes of buffers that are under way at most, unless a handful of blocks
/// needs more.
const BUFFER_BUDGET: usize = 24 << 20;

/// Blocks without which the stages would wait for one another.
const MIN_BLOCKS: usize = 4;

/// Blocks beside those that threads have in hand: what one stage may be ahead
/// of another, so that none stands still because another one does.
const BLOCKS_AHEAD: usize = 14;

/// Chunks that may be ready before the producer wants them.
const CHUNKS_AHEAD: usize = 4;

/// Why the pipeline itself failed.
#[derive(Debug)]
pub(crate) enum PipelineError {
    /// A block could not be compressed.
    Codec(CodecError),
    /// A thread could not be started, or panicked.
    Panicked(&'static str),
    /// Another stage has stopped; its own error tells why.
    Stopped,
}

/// A block on its way round.
#[derive(Default)]
pub(crate) struct Block {
    /// Bytes to compress.
    pub(crate) input: Vec<u8>,
    /// Whether the digest of what comes of them is wanted.
    pub(crate) wants_digest: bool,
    output: Vec<u8>,
    size: Option<BlockSize>,
    digest: Option<[u8; 32]>,
    sequence: u64,
    number: u32,
}

/// A block as it is to be stored.
pub(crate) struct Stored<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) size: BlockSize,
    /// BLAKE3 of the bytes, if it was wanted.
    pub(crate) digest: Option<[u8; 32]>,
}

/// A chunk, or `None` at the end.
pub(crate) type ChunkResult = Result<Option<Chunk>, PackError>;

/// Prepares the next chunk in the buffer of one that was used. It is not asked
/// again after an error or the end.
type Prepare<'a> = &'a mut (dyn FnMut(Chunk) -> ChunkResult + Send);

/// Appends a block; false if that failed and nothing more is to be done.
type Append<'a> = &'a mut (dyn FnMut(u32, Stored<'_>) -> bool + Send);

/// What the producer may ask of the crew.
pub(crate) trait Crew {
    /// Takes an empty block.
    fn take(&self) -> Result<Block, PipelineError>;

    /// Sends a filled block on its way; `number` comes back to whoever appends
    /// it.
    fn send(&self, block: Block, number: u32) -> Result<(), PipelineError>;

    /// Takes the last chunk back and gives the next one; `None` at the end.
    fn next_chunk(&self, used: Chunk) -> ChunkResult;
}

struct Shared<'a> {
    profile: &'a Profile,
    state: Mutex<State<'a>>,
    /// Wakes workers.
    work: Condvar,
    /// Wakes the producer.
    produce: Condvar,
    /// The producer's own.
    compressor: Mutex<Option<BlockCompressor>>,
}

struct State<'a> {
    /// What was used last is in some cache still, and is used first.
    free: Vec<Block>,
    /// To be compressed.
    jobs: VecDeque<Block>,
    /// Compressed; the first place is that of the block to be appended next.
    done: VecDeque<Option<Block>>,
    sent: u64,
    appended: u64,
    /// Away while somebody appends.
    append: Option<Append<'a>>,
    /// Away while somebody prepares a chunk, and after the last one.
    prepare: Option<Prepare<'a>>,
    chunks: VecDeque<ChunkResult>,
    used_chunks: Vec<Chunk>,
    /// Workers that wait.
    idle: usize,
    /// The producer will send nothing more.
    all_sent: bool,
    /// Nothing more is to be done; why, unless another one's error tells.
    stopped: bool,
    error: Option<PipelineError>,
}

/// Something that any thread may do.
enum Task<'a> {
    Append(Append<'a>, Block),
    Compress(Block),
    Prepare(Prepare<'a>, Chunk),
}

impl<'a> State<'a> {
    /// The most urgent thing to do.
    fn task(&mut self) -> Option<Task<'a>> {
        if self.stopped {
            return None;
        }
        if let (Some(Some(_)), true) = (self.done.front(), self.append.is_some())
            && let (Some(Some(block)), Some(append)) = (self.done.pop_front(), self.append.take())
        {
            self.appended += 1;
            return Some(Task::Append(append, block));
        }
        if let Some(block) = self.jobs.pop_front() {
            return Some(Task::Compress(block));
        }
        if self.wants_chunks() { self.prepare_task() } else { None }
    }

    /// Whether a chunk may be prepared ahead.
    fn wants_chunks(&self) -> bool {
        self.prepare.is_some() && self.chunks.len() < CHUNKS_AHEAD && !self.all_sent
    }

    fn prepare_task(&mut self) -> Option<Task<'a>> {
        let prepare = self.prepare.take()?;
        Some(Task::Prepare(prepare, self.used_chunks.pop().unwrap_or_default()))
    }

    fn stop(&mut self, error: Option<PipelineError>) {
        self.stopped = true;
        if self.error.is_none() {
            self.error = error;
        }
    }
}

impl<'a> Shared<'a> {
    fn state(&self) -> MutexGuard<'_, State<'a>> {
        // Nothing that could panic is done while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, error: Option<PipelineError>) {
        self.state().stop(error);
        self.work.notify_all();
        self.produce.notify_all();
    }

    /// Does one thing, and puts back what it took for it.
    fn perform(&self, task: Task<'a>, compressor: &mut Option<BlockCompressor>) {
        let name = match &task {
            Task::Append(..) => "writing",
            Task::Compress(_) => "compressing",
            Task::Prepare(..) => "decompressing",
        };
        // Others would wait for what a thread has taken and let fall.
        let performed = catch_unwind(AssertUnwindSafe(|| match task {
            Task::Append(append, block) => self.append(append, block),
            Task::Compress(block) => self.compress(block, compressor),
            Task::Prepare(prepare, used) => {
                self.prepare(prepare, used);
                Ok(())
            }
        }));
        match performed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stop(Some(error)),
            Err(_) => self.stop(Some(PipelineError::Panicked(name))),
        }
    }

    fn append(&self, append: Append<'a>, block: Block) -> Result<(), PipelineError> {
        // Only compressed blocks get here.
        let goes_on = block
            .size
            .is_none_or(|size| append(block.number, Stored { bytes: &block.output, size, digest: block.digest }));
        if !goes_on {
            return Err(PipelineError::Stopped);
        }
        let mut state = self.state();
        state.append = Some(append);
        state.free.push(block);
        drop(state);
        self.produce.notify_all();
        Ok(())
    }

    fn compress(&self, mut block: Block, compressor: &mut Option<BlockCompressor>) -> Result<(), PipelineError> {
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => compressor.insert(BlockCompressor::new(self.profile.compression).map_err(PipelineError::Codec)?),
        };
        let size = compressor.compress(&block.input, &mut block.output).map_err(PipelineError::Codec)?;
        block.size = Some(size);
        // While they are in this processor's cache.
        block.digest = block.wants_digest.then(|| *blake3::hash(&block.output).as_bytes());
        let mut state = self.state();
        // Blocks are few, so the place is near.
        let place = (block.sequence - state.appended) as usize;
        if state.done.len() <= place {
            state.done.resize_with(place + 1, || None);
        }
        state.done[place] = Some(block);
        Ok(())
    }

    fn prepare(&self, prepare: Prepare<'a>, used: Chunk) {
        let chunk = prepare(used);
        let mut state = self.state();
        if matches!(chunk, Ok(Some(_))) {
            state.prepare = Some(prepare);
        }
        state.chunks.push_back(chunk);
        let wake_worker = state.idle > 0 && state.wants_chunks();
        drop(state);
        self.produce.notify_all();
        if wake_worker {
            self.work.notify_one();
        }
    }

    /// Works until everything that was sent is under way to its end.
    fn work(&self, compressor: &mut Option<BlockCompressor>) {
        let mut state = self.state();
        loop {
            if let Some(task) = state.task() {
                drop(state);
                self.perform(task, compressor);
                state = self.state();
            } else if state.stopped || state.all_sent {
                // Whoever has a block in hand, or appends, looks again.
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// The producer's way to something that `ready` finds: until it is there,
    /// it does what there is to do, `urgent` first.
    fn obtain<T>(
        &self,
        mut ready: impl FnMut(&mut State<'a>) -> Option<T>,
        urgent: impl Fn(&mut State<'a>) -> Option<Task<'a>>,
    ) -> Result<T, PipelineError> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return Err(PipelineError::Stopped);
            }
            if let Some(found) = ready(&mut state) {
                return Ok(found);
            }
            if let Some(task) = urgent(&mut state).or_else(|| state.task()) {
                drop(state);
                let mut compressor = self.compressor.lock().unwrap_or_else(PoisonError::into_inner);
                self.perform(task, &mut compressor);
                drop(compressor);
                state = self.state();
            } else {
                state = self.produce.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Crew for Shared<'_> {
    fn take(&self) -> Result<Block, PipelineError> {
        let mut block = self.obtain(|state| state.free.pop(), |_| None)?;
        block.input.clear();
        block.wants_digest = false;
        Ok(block)
    }

    fn send(&self, mut block: Block, number: u32) -> Result<(), PipelineError> {
        let mut state = self.state();
        if state.stopped {
            return Err(PipelineError::Stopped);
        }
        (block.sequence, block.number) = (state.sent, number);
        state.sent += 1;
        state.jobs.push_back(block);
        let wake_worker = state.idle > 0;
        drop(state);
        if wake_worker {
            self.work.notify_one();
        }
        Ok(())
    }

    fn next_chunk(&self, used: Chunk) -> ChunkResult {
        if !used.buffer.is_empty() {
            self.state().used_chunks.push(used);
        }
        let chunk = self.obtain(
            |state| {
                let chunk = state.chunks.pop_front()?;
                let wake_worker = state.idle > 0 && state.wants_chunks();
                Some((chunk, wake_worker))
            },
            |state| if state.chunks.is_empty() { state.prepare_task() } else { None },
        );
        let (chunk, wake_worker) = chunk?;
        if wake_worker {
            self.work.notify_one();
        }
        chunk
    }
}

/// What prepares chunks where the producer asks for none.
pub(crate) fn no_chunks(_: Chunk) -> ChunkResult {
    Ok(None)
}

/// Runs `produce` on this thread, with `threads` - 1 others that help, and
/// calls `append` for each block that it sends, in their order, on any thread.
/// `prepare` makes the chunks that it asks for.
///
/// # Errors
/// The first error of `append` or of the crew, else that of `produce`.
pub(crate) fn run<T, E, F, P, A>(
    profile: &Profile,
    threads: usize,
    mut prepare: F,
    produce: P,
    mut append: A,
) -> Result<T, E>
where
    E: From<PipelineError> + Send,
    F: FnMut(Chunk) -> ChunkResult + Send,
    P: FnOnce(&dyn Crew) -> Result<T, E>,
    A: FnMut(u32, Stored<'_>) -> Result<(), E> + Send,
{
    let threads = threads.max(1);
    let by_memory = BUFFER_BUDGET / (2 * profile.block_size.max(1) as usize);
    let blocks = (BLOCKS_AHEAD + 2 * threads).min(by_memory).max(MIN_BLOCKS);
    let mut failed = None;
    let mut append = |number, block: Stored<'_>| match append(number, block) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    };
    let shared = Shared {
        profile,
        state: Mutex::new(State {
            free: std::iter::repeat_with(Block::default).take(blocks).collect(),
            jobs: VecDeque::with_capacity(blocks),
            done: VecDeque::with_capacity(blocks),
            sent: 0,
            appended: 0,
            append: Some(&mut append),
            prepare: Some(&mut prepare),
            chunks: VecDeque::with_capacity(CHUNKS_AHEAD + 1),
            used_chunks: Vec::with_capacity(CHUNKS_AHEAD + 1),
            idle: 0,
            all_sent: false,
            stopped: false,
            error: None,
        }),
        work: Condvar::new(),
        produce: Condvar::new(),
        compressor: Mutex::new(None),
    };
    let produced = thread::scope(|scope| {
        for _ in 1..threads {
            let worker = thread::Builder::new().name("pack".to_owned());
            if worker.spawn_scoped(scope, || shared.work(&mut None)).is_err() {
                shared.stop(Some(PipelineError::Panicked("start of a thread")));
                break;
            }
        }
        let produced = catch_unwind(AssertUnwindSafe(|| produce(&shared)));
        if matches!(produced, Ok(Ok(_))) {
            shared.state().all_sent = true;
            shared.work.notify_all();
            shared.work(&mut shared.compressor.lock().unwrap_or_else(PoisonError::into_inner));
        } else {
            shared.stop(None);
        }
        produced
    });
    let error = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).error;
    match (failed, error) {
        (Some(error), _) => Err(error),
        (None, Some(error)) => Err(error.into()),
        (None, None) => produced.unwrap_or_else(|_| Err(PipelineError::Panicked("produce").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum TestError {
        Pipeline(PipelineError),
        Own(&'static str),
    }

    impl From<PipelineError> for TestError {
        fn from(error: PipelineError) -> Self {
            Self::Pipeline(error)
        }
    }

    fn profile() -> Profile {
        Profile { block_size: 4096, ..Profile::default() }
    }

    fn send_all(crew: &dyn Crew, count: u32) -> Result<u32, TestError> {
        for number in 0..count {
            let mut block = crew.take()?;
            block.input.extend_from_slice(&number.to_le_bytes().repeat(1 + (number as usize * 37) % 900));
            crew.send(block, number)?;
        }
        Ok(count)
    }

    #[test]
    fn blocks_arrive_in_order_for_any_number_of_threads() {
        let mut expected = None;
        for threads in [1, 2, 3, 16] {
            let mut seen = Vec::new();
            let result: Result<_, TestError> = run(
                &profile(),
                threads,
                no_chunks,
                |crew| send_all(crew, 300),
                |number, block| {
                    seen.push((number, block.size, block.bytes.to_vec()));
                    Ok(())
                },
            );
            assert_eq!(result.unwrap(), 300);
            assert!(seen.iter().map(|block| block.0).eq(0..300));
            assert_eq!(expected.get_or_insert_with(|| seen.clone()), &seen);
        }
    }

    #[test]
    fn chunks_arrive_in_order_up_to_their_end_or_error() {
        for threads in [1, 2, 16] {
            for (chunks, fails) in [(0, false), (1, true), (100, false), (100, true)] {
                let mut prepared = 0u8;
                let prepare = |mut chunk: Chunk| {
                    if prepared == chunks {
                        return if fails { Err(PackError::TooLarge) } else { Ok(None) };
                    }
                    prepared += 1;
                    chunk.buffer = vec![prepared; 8].into();
                    chunk.len = 8;
                    Ok(Some(chunk))
                };
                let result: Result<(u8, bool), TestError> = run(
                    &profile(),
                    threads,
                    prepare,
                    |crew| {
                        let (mut seen, mut chunk) = (0, Chunk::default());
                        loop {
                            let mut block = crew.take()?;
                            match crew.next_chunk(chunk) {
                                Ok(Some(next)) => {
                                    seen += 1;
                                    assert_eq!(next.buffer[..next.len], [seen; 8]);
                                    chunk = next;
                                }
                                Ok(None) => return Ok((seen, false)),
                                Err(error) => return Ok((seen, matches!(error, PackError::TooLarge))),
                            }
                            block.input.extend_from_slice(&chunk.buffer);
                            crew.send(block, u32::from(seen))?;
                        }
                    },
                    |_, _| Ok(()),
                );
                assert_eq!(result.unwrap(), (chunks, fails), "{threads} threads, {chunks} chunks");
            }
        }
    }

    #[test]
    fn an_error_at_any_place_stops_everything() {
        for at in 0..40 {
            let result: Result<u32, TestError> = run(
                &profile(),
                2,
                no_chunks,
                |crew| send_all(crew, 40),
                |number, _| if number == at { Err(TestError::Own("append")) } else { Ok(()) },
            );
            assert!(matches!(result, Err(TestError::Own("append"))), "{at}: {result:?}");
            let result: Result<u32, TestError> = run(
                &profile(),
                2,
                no_chunks,
                |crew| send_all(crew, at).and(Err(TestError::Own("produce"))),
                |_, _| Ok(()),
            );
            assert!(matches!(result, Err(TestError::Own("produce"))), "{at}: {result:?}");
        }
    }

    #[test]
    fn panics_and_codec_errors_become_errors() {
        let panicking: Result<u32, TestError> = run(
            &profile(),
            2,
            no_chunks,
            |crew| {
                send_all(crew, 3)?;
                panic!("as the test wants it")
            },
            |_, _| Ok(()),
        );
        assert!(matches!(panicking, Err(TestError::Pipeline(PipelineError::Panicked("produce")))));
        // An empty block cannot be compressed.
        let refused: Result<(), TestError> = run(
            &profile(),
            2,
            no_chunks,
            |crew| {
                for number in 0..100 {
                    let block = crew.take()?;
                    crew.send(block, number)?;
                }
                Ok(())
            },
            |_, _| Ok(()),
        );
        assert!(matches!(refused, Err(TestError::Pipeline(PipelineError::Codec(_)))), "{refused:?}");
    }
}
