//! Pull, convert and cache: what the daemon does.
//!
//! The broker half runs inside the daemon: it knows callers, rights and the
//! cache, starts jobs, publishes what they made, and reads no image bytes. The
//! job half runs in processes of its own ([`job`]): it speaks to registries
//! and works on untrusted bytes, and knows nothing but the descriptors it was
//! given.
#![forbid(unsafe_code)]

mod admin;
mod api;
pub mod audit;
pub mod cache;
mod failure;
pub mod job;
pub mod metadata;
pub mod mount;
mod pull;
pub mod registry;

pub use admin::{JobInfo, JobWork, UnmountTarget, UnmountedImage};
pub use api::{
    CacheCleaned, CacheEntry, CacheInfo, Caller, Engine, EntryKind, MountWish, Notice, NoticeLevel, OpenTarget, Opened,
    PullEvent, PullEvents, PullJob, ResolvedLayer, Stage, Ticket,
};
pub use failure::{Failure, is_no_space};
pub use pull::{Broker, BrokerOptions, JobUser, Network};
