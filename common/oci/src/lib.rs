//! OCI and Docker image documents: index, manifest and config.
//!
//! Here is what registries, archives and layouts say about an image: parsing
//! that forgives what real registries get wrong (nulls, missing members,
//! unknown ones) and nothing that could mislead (sizes, digests, ambiguous
//! documents, layer counts); the choice of a platform; and the argv and
//! environment that a config asks for. No network, no files, no tar.
//!
//! The structures are our own rather than those of the `oci-spec` crate:
//! that one refuses `null` where Docker writes it, drops the config's exact
//! bytes, which a SIF carries, and knows no Docker media types.
//!
//! # Source
//! OCI image-spec 1.1 (`descriptor.md`, `image-index.md`, `manifest.md`,
//! `config.md`) and Docker's image manifest version 2, schema 2.
#![forbid(unsafe_code)]

mod config;
mod descriptor;
mod document;
mod error;
mod image;
mod launch;
mod lenient;
pub mod media_type;
mod select;
mod timestamp;

pub use config::Config;
pub use descriptor::{Descriptor, EntryPlatform};
pub use document::{Document, Index, Manifest};
pub use error::{ImageError, ParseError, SelectError};
pub use image::{Layer, layers};
pub use launch::Launch;
pub use select::{MAX_INDEX_DEPTH, Selection};
pub use timestamp::{Timestamp, TimestampError};
