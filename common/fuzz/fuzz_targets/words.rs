//! Digests, references, URIs, platforms, names and compressions: parse, show,
//! parse gives the same value, and no text panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_common::{Compression, Digest, EntryName, Platform, Reference, Uri};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(name) = EntryName::parse(bytes) {
        assert!(!name.as_bytes().contains(&b'/'));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = Reference::parse(text) {
        let canonical = reference.to_string();
        assert_eq!(Reference::parse(&canonical).as_ref(), Ok(&reference), "{canonical}");
        // These go into paths and headers.
        assert!(canonical.bytes().all(|byte| byte.is_ascii_graphic()), "{canonical}");
        assert!(!reference.repository().split('/').any(|part| matches!(part, "" | "." | "..")), "{canonical}");
    }
    if let Ok(uri) = Uri::parse(text) {
        let file = uri.default_file_name();
        assert!(!file.contains('/') && file.ends_with(".sif"), "{file}");
    }
    let _ = Uri::looks_like_one(text);
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform.clone()));
        assert!(!platform.acceptable_variants().is_empty());
    }
    if let Ok(compression) = text.parse::<Compression>() {
        assert_eq!(compression.to_string().parse(), Ok(compression));
    }
});
