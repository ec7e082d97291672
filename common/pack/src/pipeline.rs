//! Blocks compressed by several threads and appended in order.
//!
//! One producer fills blocks, any number of workers compress them, and the
//! calling thread appends them in the order in which they were filled. Blocks
//! carry both their buffers and go round: the producer takes an empty one,
//! the appender gives it back. Their number bounds memory, and since workers
//! take them in order, the one that the appender waits for is always under
//! way. Whoever stops drops its ends of the channels, which stops the others.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, Scope, ScopedJoinHandle},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sctl_common::Profile;
use sctl_squashfs::{BlockCompressor, BlockSize, CodecError};

/// Bytes of buffers that are under way at most, unless a handful of blocks
/// needs more.
const BUFFER_BUDGET: usize = 24 << 20;

/// Blocks without which the stages would wait for one another.
const MIN_BLOCKS: usize = 4;

/// Blocks that may wait between the stages, so that none of them stands still
/// while another one's thread waits for its turn on a processor.
const BLOCKS_AHEAD: usize = 14;

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
    output: Vec<u8>,
    size: Option<BlockSize>,
    sequence: u64,
    number: u32,
}

/// The producer's end.
pub(crate) struct Feeder {
    free: Receiver<Block>,
    jobs: Sender<Block>,
    sequence: u64,
}

impl Feeder {
    /// Takes an empty block; waits for one if all are under way.
    pub(crate) fn take(&mut self) -> Result<Block, PipelineError> {
        let mut block = self.free.recv().map_err(|_| PipelineError::Stopped)?;
        block.input.clear();
        Ok(block)
    }

    /// Sends a filled block on its way; `number` comes back to the appender.
    pub(crate) fn send(&mut self, mut block: Block, number: u32) -> Result<(), PipelineError> {
        block.sequence = self.sequence;
        block.number = number;
        self.sequence += 1;
        self.jobs.send(block).map_err(|_| PipelineError::Stopped)
    }
}

/// Runs `produce` on a thread of its own, compresses what it sends on
/// `threads` more, and calls `append` on this one, in order.
///
/// # Errors
/// The first error of a worker or of `append`, else that of `produce`.
pub(crate) fn run<T, E, P, A>(profile: &Profile, threads: usize, produce: P, mut append: A) -> Result<T, E>
where
    T: Send,
    E: From<PipelineError> + Send,
    P: FnOnce(Feeder) -> Result<T, E> + Send,
    A: FnMut(u32, BlockSize, &[u8]) -> Result<(), E>,
{
    let threads = threads.max(1);
    let by_memory = BUFFER_BUDGET / (2 * profile.block_size.max(1) as usize);
    let blocks = (BLOCKS_AHEAD + 2 * threads).min(by_memory).max(MIN_BLOCKS);
    let (free_in, free_out) = bounded(blocks);
    let (jobs_in, jobs_out) = bounded::<Block>(blocks);
    let (done_in, done_out) = bounded(blocks);
    for _ in 0..blocks {
        // There is room for all of them, and the receiver is in this scope.
        let _ = free_in.send(Block::default());
    }
    thread::scope(|scope| {
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (jobs, done) = (jobs_out.clone(), done_in.clone());
            workers.push(spawn(scope, "compress", move || work(profile, &jobs, &done))?);
        }
        drop((jobs_out, done_in));
        let feeder = Feeder { free: free_out, jobs: jobs_in, sequence: 0 };
        let producer = spawn(scope, "produce", move || produce(feeder))?;
        let appended = append_in_order(done_out, free_in, blocks, &mut append);
        let produced = producer.join().unwrap_or_else(|_| Err(PipelineError::Panicked("produce").into()));
        for worker in workers {
            // They end by themselves now, and have reported what went wrong.
            let _ = worker.join();
        }
        appended.and(produced)
    })
}

/// Starts a thread with a name, which tools show.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, PipelineError> {
    thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, body).map_err(|_| PipelineError::Panicked(name))
}

fn work(profile: &Profile, jobs: &Receiver<Block>, done: &Sender<Result<Block, PipelineError>>) {
    let compress = AssertUnwindSafe(|| {
        let mut compressor = BlockCompressor::new(profile.compression).map_err(PipelineError::Codec)?;
        while let Ok(mut block) = jobs.recv() {
            let size = compressor.compress(&block.input, &mut block.output).map_err(PipelineError::Codec)?;
            block.size = Some(size);
            if done.send(Ok(block)).is_err() {
                break;
            }
        }
        Ok(())
    });
    // A worker that vanished with its block would leave the appender waiting.
    let result = catch_unwind(compress).unwrap_or(Err(PipelineError::Panicked("compress")));
    if let Err(error) = result {
        // Nobody listens if another error came first.
        let _ = done.send(Err(error));
    }
}

fn append_in_order<E, A>(
    done: Receiver<Result<Block, PipelineError>>,
    free: Sender<Block>,
    blocks: usize,
    append: &mut A,
) -> Result<(), E>
where
    E: From<PipelineError>,
    A: FnMut(u32, BlockSize, &[u8]) -> Result<(), E>,
{
    let mut waiting: VecDeque<Option<Block>> = VecDeque::with_capacity(blocks);
    let mut next = 0;
    while let Ok(result) = done.recv() {
        let block = result.map_err(E::from)?;
        // At most `blocks` are under way, so the place is near.
        let place = (block.sequence - next) as usize;
        if waiting.len() <= place {
            waiting.resize_with(place + 1, || None);
        }
        waiting[place] = Some(block);
        while let Some(Some(_)) = waiting.front() {
            let Some(Some(block)) = waiting.pop_front() else { break };
            next += 1;
            if let Some(size) = block.size {
                append(block.number, size, &block.output)?;
            }
            // The producer may be done already.
            let _ = free.send(block);
        }
    }
    Ok(())
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

    fn send_all(mut feeder: Feeder, count: u32) -> Result<u32, TestError> {
        for number in 0..count {
            let mut block = feeder.take()?;
            block.input.extend_from_slice(&number.to_le_bytes().repeat(1 + (number as usize * 37) % 900));
            feeder.send(block, number)?;
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
                |feeder| send_all(feeder, 300),
                |number, size, bytes| {
                    seen.push((number, size, bytes.to_vec()));
                    Ok(())
                },
            );
            assert_eq!(result.unwrap(), 300);
            assert!(seen.iter().map(|block| block.0).eq(0..300));
            assert_eq!(expected.get_or_insert_with(|| seen.clone()), &seen);
        }
    }

    #[test]
    fn an_error_at_any_place_stops_everything() {
        for at in 0..40 {
            let result: Result<u32, TestError> = run(
                &profile(),
                2,
                |feeder| send_all(feeder, 40),
                |number, _, _| if number == at { Err(TestError::Own("append")) } else { Ok(()) },
            );
            assert!(matches!(result, Err(TestError::Own("append"))), "{at}: {result:?}");
            let result: Result<u32, TestError> =
                run(&profile(), 2, |feeder| send_all(feeder, at).and(Err(TestError::Own("produce"))), |_, _, _| Ok(()));
            assert!(matches!(result, Err(TestError::Own("produce"))), "{at}: {result:?}");
        }
    }

    #[test]
    fn panics_and_codec_errors_become_errors() {
        let panicking: Result<u32, TestError> = run(
            &profile(),
            2,
            |feeder| {
                send_all(feeder, 3)?;
                panic!("as the test wants it")
            },
            |_, _, _| Ok(()),
        );
        assert!(matches!(panicking, Err(TestError::Pipeline(PipelineError::Panicked("produce")))));
        // An empty block cannot be compressed.
        let refused: Result<(), TestError> = run(
            &profile(),
            2,
            |mut feeder| {
                for number in 0..100 {
                    let block = feeder.take()?;
                    feeder.send(block, number)?;
                }
                Ok(())
            },
            |_, _, _| Ok(()),
        );
        assert!(matches!(refused, Err(TestError::Pipeline(PipelineError::Codec(_)))), "{refused:?}");
    }
}
