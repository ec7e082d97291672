//! The Singularity Image Format: one file of data objects, found by a table
//! of descriptors.
//!
//! # Layout
//! All integers are little-endian and packed; texts are filled up with NUL.
//!
//! ```text
//! 0        128                 4096                  4096 + 585·N
//! | header | zeros             | N descriptors       | data objects … |
//! ```
//!
//! | offset | size | header field |
//! |---|---|---|
//! | 0 | 32 | launch script: 31 bytes at most, then NUL |
//! | 32 | 10 | magic `SIF_MAGIC` and NUL |
//! | 42 | 3 | version `01` and NUL |
//! | 45 | 3 | architecture of the primary partition: two digits and NUL |
//! | 48 | 16 | id, a UUID |
//! | 64, 72 | i64 | created, modified: Unix seconds |
//! | 80, 88 | i64 | free descriptors, all descriptors (N) |
//! | 96, 104 | i64 | offset and size of the table |
//! | 112, 120 | i64 | offset and size of the data |
//!
//! | offset | type | descriptor field |
//! |---|---|---|
//! | 0 | i32 | data type |
//! | 4 | u8 | non-zero if used |
//! | 5 | u32 | id, from 1 |
//! | 9 | u32 | group, with the four highest bits set |
//! | 13 | u32 | link: 0, an id, or a group with the four highest bits set |
//! | 17, 25, 33 | i64 | offset, size, size with the padding before it |
//! | 41, 49 | i64 | created, modified |
//! | 57, 65 | i64 | uid, gid: written as 0 |
//! | 73 | 128 | name |
//! | 201 | 384 | what else the type needs |
//!
//! Partitions start at multiples of 4,096 bytes, so that they can be mapped;
//! other objects follow one another without padding. Files of old writers
//! align everything and start their data at 32,768.
//!
//! Here lives the container format alone. What is in a partition, and what a
//! signature says, is known elsewhere.
//!
//! # Source
//! The SIF reference of the project, §1–3, whose test vectors this package
//! reproduces.
#![forbid(unsafe_code)]

mod builder;
mod descriptor;
mod error;
mod header;
mod id;
pub mod inspect;
mod kinds;
mod probe;
mod reader;

pub use builder::{Builder, Extra, Layout, NewObject, Options, PartitionSlot, Piece};
pub use descriptor::{Descriptor, Link, Partition};
pub use error::{ReadError, WriteError};
pub use header::{Header, LAUNCH_SCRIPT, ZERO_TIME};
pub use id::SifId;
pub use kinds::{Arch, DataType, FsType, PartitionKind};
pub use probe::{Format, PROBE_LEN, SquashfsCompression, probe};
pub use reader::{MAX_METADATA_BYTES, SifFile};
