//! What can go wrong with a SIF.

use std::io;

use sctl_common::ErrorKind;

/// Says why a file cannot be read as a SIF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Another kind of file.
    #[error("not a SIF file (magic is \"{}\")", found.escape_ascii())]
    BadMagic {
        /// What stands in its place.
        found: [u8; 10],
    },
    /// A later version of the format.
    #[error("SIF version \"{}\" is not supported (expected \"01\")", found.escape_ascii())]
    BadVersion {
        /// What stands in its place.
        found: [u8; 3],
    },
    /// A header field that no file can have.
    #[error("the SIF header's {field} is {value}, which cannot be")]
    BadHeader {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The file ends before something that the header promises.
    #[error("{what} ends at byte {end}, past the end of the file ({file_len} bytes)")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        file_len: u64,
    },
    /// More descriptors than anyone needs.
    #[error("the SIF has room for {found} descriptors, more than the limit of {limit}")]
    TooManyDescriptors {
        /// What the header says.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A descriptor field that no file can have.
    #[error("descriptor {index} has {field} {value}, which cannot be")]
    BadDescriptor {
        /// Place in the table, from 0.
        index: u64,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A data object that is not in the file.
    #[error("data object {id} ends at byte {end}, past the end of the file ({file_len} bytes)")]
    OutOfBounds {
        /// The object's id.
        id: u32,
        /// Where it would end.
        end: u64,
        /// Where the file ends.
        file_len: u64,
    },
    /// Two objects with one id.
    #[error("two data objects have id {id}")]
    DuplicateId {
        /// The id.
        id: u32,
    },
    /// Two objects, or an object and the tables, share bytes: one could be
    /// signed and the other not.
    #[error("data object {id} overlaps {other}")]
    Overlap {
        /// The object's id.
        id: u32,
        /// What it overlaps.
        other: String,
    },
    /// Two partitions claim to be the one to run.
    #[error("data objects {first} and {second} both claim to be the primary partition")]
    TwoPrimaries {
        /// One.
        first: u32,
        /// The other.
        second: u32,
    },
    /// An object is too large to be read into memory.
    #[error("data object {id} has {size} bytes, more than the limit of {limit}")]
    ObjectTooLarge {
        /// The object's id.
        id: u32,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// An object's JSON cannot be read.
    #[error("data object {id} is not the JSON it should be")]
    Json {
        /// The object's id.
        id: u32,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The file could not be read.
    #[error("cannot read {what}")]
    Io {
        /// What was being read.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    /// What kind of failure this is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::BadMagic { .. } => ErrorKind::InvalidInput,
            Self::BadVersion { .. } => ErrorKind::Unsupported,
            Self::TooManyDescriptors { .. } | Self::ObjectTooLarge { .. } => ErrorKind::LimitExceeded,
            Self::Io { .. } => ErrorKind::Internal,
            Self::BadHeader { .. }
            | Self::Truncated { .. }
            | Self::BadDescriptor { .. }
            | Self::OutOfBounds { .. }
            | Self::DuplicateId { .. }
            | Self::Overlap { .. }
            | Self::TwoPrimaries { .. }
            | Self::Json { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Says why a SIF cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Every descriptor is in use.
    #[error("no descriptor is free for another data object (all {capacity} are used)")]
    Full {
        /// How many there are.
        capacity: u32,
    },
    /// The table would be absurd.
    #[error("a SIF cannot have {capacity} descriptors")]
    BadCapacity {
        /// How many were asked for.
        capacity: u32,
    },
    /// The launch script does not fit.
    #[error("the launch script has {len} bytes, more than 31")]
    LaunchScript {
        /// Its length.
        len: usize,
    },
    /// The name does not fit.
    #[error("the name of a data object has {len} bytes, more than 128")]
    Name {
        /// Its length.
        len: usize,
    },
    /// The group does not fit beside its marker.
    #[error("object group {group} is out of range")]
    Group {
        /// The group.
        group: u32,
    },
    /// A file can have one only.
    #[error("image already contains a primary partition")]
    SecondPrimary,
    /// A partition's size is not known yet, so nothing can follow it.
    #[error("a partition has been started and not finished")]
    PartitionOpen,
    /// The file would pass the format's signed 64-bit offsets.
    #[error("the file would be larger than the format allows")]
    TooLarge,
}
