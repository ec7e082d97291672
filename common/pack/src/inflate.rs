//! Blob bytes to tar bytes: gzip, zstd or neither, told by the first bytes.
//!
//! Gzip is judged as the Go library judges it, since that is what wrote and
//! reads nearly every layer: members follow one another until the blob ends,
//! and anything behind the last one that is not a member is an error.

use std::io::{self, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::error::PackError;

/// Bytes of blob that are read at once.
const INPUT_LEN: usize = 128 << 10;

/// Largest window of a zstd frame that is accepted, as a power of two: 128 MiB,
/// what decoders accept unless told otherwise. More would let a small blob
/// claim gigabytes of memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Decompresses a blob into buffers that the caller provides.
pub(crate) struct Inflater<R> {
    input: Input<R>,
    format: Option<Format>,
}

enum Format {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

struct Gzip {
    decoder: Decompress,
    crc: Crc,
    in_member: bool,
}

struct Zstd {
    decoder: Decoder<'static>,
    in_frame: bool,
}

impl<R: Read> Inflater<R> {
    pub(crate) fn new(blob: R) -> Self {
        Self { input: Input::new(blob), format: None }
    }

    /// Bytes of the blob consumed so far.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.input.consumed
    }

    /// Fills `out` from its start and says how many bytes that gave; fewer
    /// than its length only at the end of the stream.
    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<usize, PackError> {
        if self.format.is_none() {
            self.format = Some(detect(&mut self.input)?);
        }
        match &mut self.format {
            Some(Format::Gzip(gzip)) => gzip.fill(&mut self.input, out),
            Some(Format::Zstd(zstd)) => zstd.fill(&mut self.input, out),
            Some(Format::Plain) | None => fill_plain(&mut self.input, out),
        }
    }
}

fn detect<R: Read>(input: &mut Input<R>) -> Result<Format, PackError> {
    const LONGEST_MAGIC: usize = 10;
    input.gather(LONGEST_MAGIC)?;
    Ok(match input.bytes() {
        [0x1f, 0x8b, ..] => {
            Format::Gzip(Box::new(Gzip { decoder: Decompress::new(false), crc: Crc::new(), in_member: false }))
        }
        // A zstd frame, or a skippable frame in front of one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = Decoder::new().map_err(|source| PackError::Zstd { source })?;
            decoder
                .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                .map_err(|source| PackError::Zstd { source })?;
            Format::Zstd(Box::new(Zstd { decoder, in_frame: false }))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(PackError::UnsupportedCompression { name: "xz" }),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
            return Err(PackError::UnsupportedCompression { name: "bzip2" });
        }
        _ => Format::Plain,
    })
}

fn fill_plain<R: Read>(input: &mut Input<R>, out: &mut [u8]) -> Result<usize, PackError> {
    let buffered = input.bytes();
    let mut filled = buffered.len().min(out.len());
    out[..filled].copy_from_slice(&buffered[..filled]);
    input.consume(filled);
    while filled < out.len() {
        match input.read_past_buffer(&mut out[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

impl Gzip {
    fn fill<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize, PackError> {
        let mut filled = 0;
        while filled < out.len() {
            if !self.in_member {
                if !input.has_more()? {
                    break;
                }
                read_header(input)?;
                self.decoder.reset(false);
                self.crc.reset();
                self.in_member = true;
            }
            let (before_in, before_out) = (self.decoder.total_in(), self.decoder.total_out());
            let status = self
                .decoder
                .decompress(input.bytes(), &mut out[filled..], FlushDecompress::None)
                .map_err(|_| PackError::BadGzip { what: "damaged deflate data", blob_offset: input.consumed })?;
            // Both are bounded by the lengths of the slices.
            let taken = (self.decoder.total_in() - before_in) as usize;
            let given = (self.decoder.total_out() - before_out) as usize;
            input.consume(taken);
            self.crc.update(&out[filled..filled + given]);
            filled += given;
            if status == Status::StreamEnd {
                self.read_trailer(input)?;
                self.in_member = false;
            } else if taken == 0 && given == 0 && !input.refill()? {
                return Err(PackError::TruncatedBlob { format: "gzip", blob_bytes: input.consumed });
            }
        }
        Ok(filled)
    }

    fn read_trailer<R: Read>(&self, input: &mut Input<R>) -> Result<(), PackError> {
        let mut trailer = [0; 8];
        for byte in &mut trailer {
            *byte = gzip_byte(input)?;
        }
        let [a, b, c, d, e, f, g, h] = trailer;
        let error = |what| PackError::BadGzip { what, blob_offset: input.consumed };
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(error("wrong checksum"));
        }
        if u32::from_le_bytes([e, f, g, h]) != self.crc.amount() {
            return Err(error("wrong length in the trailer"));
        }
        Ok(())
    }
}

fn gzip_byte<R: Read>(input: &mut Input<R>) -> Result<u8, PackError> {
    if !input.has_more()? {
        return Err(PackError::TruncatedBlob { format: "gzip", blob_bytes: input.consumed });
    }
    let byte = input.bytes()[0];
    input.consume(1);
    Ok(byte)
}

/// Reads a member's header.
///
/// # Source
/// RFC 1952, section 2.3.
fn read_header<R: Read>(input: &mut Input<R>) -> Result<(), PackError> {
    const HAS_CRC: u8 = 1 << 1;
    const HAS_EXTRA: u8 = 1 << 2;
    const HAS_NAME: u8 = 1 << 3;
    const HAS_COMMENT: u8 = 1 << 4;

    let start = input.consumed;
    let mut crc = Crc::new();
    let mut next = |input: &mut Input<R>| -> Result<u8, PackError> {
        let byte = gzip_byte(input)?;
        crc.update(&[byte]);
        Ok(byte)
    };
    let mut fixed = [0; 10];
    for byte in &mut fixed {
        *byte = next(input)?;
    }
    let [0x1f, 0x8b, 8, flags, ..] = fixed else {
        let what = if start == 0 { "bad header" } else { "bytes behind the last member are no member" };
        return Err(PackError::BadGzip { what, blob_offset: start });
    };
    if flags & HAS_EXTRA != 0 {
        let len = u16::from_le_bytes([next(input)?, next(input)?]);
        for _ in 0..len {
            next(input)?;
        }
    }
    for flag in [HAS_NAME, HAS_COMMENT] {
        if flags & flag != 0 {
            while next(input)? != 0 {}
        }
    }
    if flags & HAS_CRC != 0 {
        // The header's checksum is the low half of a CRC-32 over what precedes it.
        let expected = crc.sum() as u16;
        if u16::from_le_bytes([gzip_byte(input)?, gzip_byte(input)?]) != expected {
            return Err(PackError::BadGzip { what: "wrong checksum of the header", blob_offset: start });
        }
    }
    Ok(())
}

impl Zstd {
    fn fill<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize, PackError> {
        let mut filled = 0;
        while filled < out.len() {
            if !self.in_frame && !input.has_more()? {
                break;
            }
            let mut from = InBuffer::around(input.bytes());
            let mut to = OutBuffer::around(&mut out[filled..]);
            let hint = self.decoder.run(&mut from, &mut to).map_err(|source| PackError::Zstd { source })?;
            let (taken, given) = (from.pos(), to.pos());
            input.consume(taken);
            filled += given;
            self.in_frame = hint != 0;
            if self.in_frame && taken == 0 && given == 0 && !input.refill()? {
                return Err(PackError::TruncatedBlob { format: "zstd", blob_bytes: input.consumed });
            }
        }
        Ok(filled)
    }
}

/// Buffered reading of the blob that counts what was consumed.
struct Input<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    consumed: u64,
}

impl<R: Read> Input<R> {
    fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; INPUT_LEN].into(), start: 0, end: 0, consumed: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        self.consumed += len as u64;
    }

    /// Makes sure that bytes are buffered; `false` at the end of the blob.
    fn has_more(&mut self) -> Result<bool, PackError> {
        if self.start < self.end { Ok(true) } else { self.refill() }
    }

    /// Adds bytes to the buffer; `false` at the end of the blob.
    fn refill(&mut self) -> Result<bool, PackError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let n = read_some(&mut self.reader, &mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n > 0)
    }

    /// Buffers `len` bytes, or all that there are.
    fn gather(&mut self, len: usize) -> Result<(), PackError> {
        while self.end - self.start < len && self.refill()? {}
        Ok(())
    }

    /// Reads on into `out`, once the buffer is used up.
    fn read_past_buffer(&mut self, out: &mut [u8]) -> Result<usize, PackError> {
        let n = read_some(&mut self.reader, out)?;
        self.consumed += n as u64;
        Ok(n)
    }
}

fn read_some<R: Read>(reader: &mut R, out: &mut [u8]) -> Result<usize, PackError> {
    loop {
        match reader.read(out) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(PackError::ReadBlob { source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 1).unwrap()
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 7 % 251) as u8).collect()
    }

    fn inflate<R: Read>(blob: R, chunk: usize) -> Result<Vec<u8>, PackError> {
        let mut inflater = Inflater::new(blob);
        let (mut all, mut out) = (Vec::new(), vec![0; chunk]);
        loop {
            let n = inflater.fill(&mut out)?;
            all.extend_from_slice(&out[..n]);
            if n < out.len() {
                return Ok(all);
            }
        }
    }

    /// Gives one byte at a time.
    struct Trickle<'a>(&'a [u8]);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(out.len()).min(1);
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn members_and_frames_follow_one_another() {
        let (a, b) = (text(300_000), text(1000));
        let all = [&a[..], &b[..]].concat();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        let cases = [
            ("plain", all.clone()),
            ("gzip", gzip(&all)),
            ("gzip members", [gzip(&a), gzip(b""), gzip(&b)].concat()),
            ("zstd", zstd(&all)),
            ("zstd frames", [&skippable[..], &zstd(&a), &skippable, &zstd(&b), &zstd(b"")].concat()),
        ];
        for (name, blob) in cases {
            for chunk in [1 << 20, 4096, 300_000, 301_000, 7] {
                assert!(inflate(&blob[..], chunk).unwrap() == all, "{name} in chunks of {chunk}");
            }
            assert!(inflate(Trickle(&blob), 4096).unwrap() == all, "{name} byte by byte");
        }
        assert_eq!(inflate(&b""[..], 10).unwrap(), b"");
        assert_eq!(inflate(&gzip(b"")[..], 10).unwrap(), b"");
    }

    #[test]
    fn every_truncation_is_an_error() {
        for blob in [gzip(&text(5000)), zstd(&text(5000))] {
            // One byte tells no format; the tar reader refuses what is left.
            for len in 4..blob.len() {
                assert!(inflate(&blob[..len], 4096).is_err(), "accepted {len} bytes");
            }
        }
    }

    #[test]
    fn what_follows_the_last_member_is_judged() {
        let good = gzip(b"hello");
        for (name, tail) in [("zero", &[0][..]), ("zeros", &[0; 1024]), ("text", b"more text than ten bytes")] {
            assert!(inflate(&[&good[..], tail].concat()[..], 4096).is_err(), "accepted {name}");
            assert!(inflate(&[&zstd(b"hello")[..], tail].concat()[..], 4096).is_err(), "accepted {name} behind zstd");
        }
    }

    #[test]
    fn damage_is_found_by_the_checksums() {
        let good = gzip(&text(5000));
        for at in [good.len() - 1, good.len() - 5, good.len() / 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(inflate(&bad[..], 4096).is_err(), "accepted a change at {at}");
        }
    }

    #[test]
    fn header_fields_are_skipped_and_its_checksum_counts() {
        let plain = gzip(b"hello");
        let mut header = vec![0x1f, 0x8b, 8, 0b1_1110, 0, 0, 0, 0, 0, 255, 3, 0, 1, 2, 3];
        header.extend_from_slice(b"name\0comment\0");
        let mut crc = Crc::new();
        crc.update(&header);
        let sum = (crc.sum() as u16).to_le_bytes();
        let blob = [&header[..], &sum, &plain[10..]].concat();
        assert_eq!(inflate(&blob[..], 100).unwrap(), b"hello");
        let bad = [&header[..], &[sum[0] ^ 1, sum[1]], &plain[10..]].concat();
        assert!(inflate(&bad[..], 100).is_err());
    }

    #[test]
    fn other_compressions_are_named() {
        for (blob, expected) in [(&b"\xfd7zXZ\0rest"[..], "xz"), (b"BZh91AY&SYrest", "bzip2")] {
            match inflate(blob, 100) {
                Err(PackError::UnsupportedCompression { name }) => assert_eq!(name, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
