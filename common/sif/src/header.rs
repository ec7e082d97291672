//! The header: the first 128 bytes.

use crate::{Arch, ReadError, SifId};

/// First line of every SIF: makes it a program that runs itself.
pub const LAUNCH_SCRIPT: &[u8] = b"#!/usr/bin/env run-singularity\n";

/// "No time": 1 January of year 1, not 1970.
pub const ZERO_TIME: i64 = -62_135_596_800;

pub(crate) const HEADER_LEN: usize = 128;
pub(crate) const LAUNCH_LEN: usize = 32;
pub(crate) const TABLE_OFFSET: u64 = 4096;
const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
const VERSION: &[u8; 3] = b"01\0";

/// The global header of a SIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The 32 bytes of the launch script, NUL-filled.
    pub launch_script: [u8; LAUNCH_LEN],
    /// Architecture of the primary partition.
    pub arch: Arch,
    /// The id.
    pub id: SifId,
    /// Unix seconds, or [`ZERO_TIME`].
    pub created: i64,
    /// Unix seconds, or [`ZERO_TIME`].
    pub modified: i64,
    /// Descriptors that are not used, as the file claims.
    pub descriptors_free: u64,
    /// Entries of the descriptor table.
    pub descriptors_total: u64,
    /// Where the descriptor table starts.
    pub table_offset: u64,
    /// Bytes of the descriptor table.
    pub table_size: u64,
    /// Where data objects start.
    pub data_offset: u64,
    /// Bytes of all data objects with their padding.
    pub data_size: u64,
}

impl Header {
    /// Says whether the file is meant to be the same wherever it is made.
    pub fn is_deterministic(&self) -> bool {
        self.id.is_nil() && self.created == ZERO_TIME && self.modified == ZERO_TIME
    }

    /// The version, as `sif header` shows it.
    pub const fn version(&self) -> &'static str {
        "01"
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..32].copy_from_slice(&self.launch_script);
        out[32..42].copy_from_slice(MAGIC);
        out[42..45].copy_from_slice(VERSION);
        out[45..48].copy_from_slice(&self.arch.raw());
        out[48..64].copy_from_slice(self.id.as_bytes());
        out[64..72].copy_from_slice(&self.created.to_le_bytes());
        out[72..80].copy_from_slice(&self.modified.to_le_bytes());
        let numbers = [
            self.descriptors_free,
            self.descriptors_total,
            self.table_offset,
            self.table_size,
            self.data_offset,
            self.data_size,
        ];
        for (slot, number) in out[80..].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ReadError> {
        let magic: [u8; 10] = field(bytes, 32);
        if magic != *MAGIC {
            return Err(ReadError::BadMagic { found: magic });
        }
        let version: [u8; 3] = field(bytes, 42);
        if version != *VERSION {
            return Err(ReadError::BadVersion { found: version });
        }
        let number = |at: usize, name: &'static str| {
            let value = i64::from_le_bytes(field(bytes, at));
            u64::try_from(value).map_err(|_| ReadError::BadHeader { field: name, value })
        };
        Ok(Self {
            launch_script: field(bytes, 0),
            arch: Arch::from_raw(field(bytes, 45)),
            id: SifId::from_bytes(field(bytes, 48)),
            created: i64::from_le_bytes(field(bytes, 64)),
            modified: i64::from_le_bytes(field(bytes, 72)),
            descriptors_free: number(80, "count of free descriptors")?,
            descriptors_total: number(88, "count of descriptors")?,
            table_offset: number(96, "descriptor table offset")?,
            table_size: number(104, "descriptor table size")?,
            data_offset: number(112, "data offset")?,
            data_size: number(120, "data size")?,
        })
    }
}

/// The `N` bytes at `at`.
///
/// # Panics
/// If they are not there; callers pass constant places of fixed-size records.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
