//! Words that every package of sctl shares.
//!
//! Here live the types that carry what was checked once at the edge: digests,
//! image references, platforms, conversion profiles, limits and error kinds.
//! Nothing here does I/O, and nothing here knows a file format.
#![forbid(unsafe_code)]

mod digest;
mod error_kind;
mod limits;
mod name;
mod platform;
mod profile;
mod reference;

pub use digest::{DiffId, Digest, DigestError, Sha256};
pub use error_kind::ErrorKind;
pub use limits::Limits;
pub use name::{EntryName, EntryNameError};
pub use platform::{Platform, PlatformError};
pub use profile::{CONVERTER_VERSION, Compression, METADATA_VERSION, Profile, ProfileError};
pub use reference::{Reference, ReferenceError, Transport, Uri, UriError};
