//! What administrators see and do.

use std::time::Duration;

use sctl_common::Reference;

use crate::cache::ImageKey;

/// What a job process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobWork {
    /// It asks a registry what a reference means.
    Resolve,
    /// It fetches and packs a layer.
    Layer {
        /// Which one, from 1, the lowest first.
        number: usize,
        /// Of how many.
        count: usize,
    },
    /// It assembles an image.
    Assemble,
}

/// A job process that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// Its process id.
    pub pid: i32,
    /// What it does.
    pub work: JobWork,
    /// For which image: the reference of the pull that started it.
    pub reference: Reference,
    /// Who waits for it, ascending.
    pub uids: Vec<u32>,
    /// How long it has run.
    pub running: Duration,
    /// Bytes that it has fetched, or written of the image.
    pub done_bytes: u64,
    /// Bytes that it will have, if known.
    pub total_bytes: Option<u64>,
}

/// Which images are to be unmounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnmountTarget {
    /// All that this reference led to.
    Reference(Reference),
    /// The one whose key begins with these hex digits.
    Key(String),
}

/// An image that the daemon has unmounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmountedImage {
    /// Names it in the cache.
    pub key: ImageKey,
    /// Names that led to it, the newest last.
    pub references: Vec<String>,
    /// Containers have mounts of it, which they keep until they end.
    pub held_by_clients: bool,
}
