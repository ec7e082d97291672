//! Inspect metadata: decode, encode, decode gives the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_sif::inspect::InspectMetadata;

fuzz_target!(|bytes: &[u8]| {
    let Ok(metadata) = InspectMetadata::parse(bytes) else { return };
    for text in [metadata.to_json(), metadata.to_json_pretty()] {
        assert_eq!(InspectMetadata::parse(text.as_bytes()).expect("what was written is read"), metadata);
    }
});
