//! A manifest response of any bytes gives an error or checked descriptors,
//! and every platform gets an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_common::{Digest, Limits};
use sctl_oci::{Document, Selection};

fuzz_target!(|bytes: &[u8]| {
    let header = bytes.first().and_then(|byte| sctl_oci::media_type::ACCEPT.get(usize::from(*byte)).copied());
    let body = if header.is_some() { &bytes[1..] } else { bytes };
    match Document::parse(body, header) {
        Ok(Document::Index(index)) => {
            for platform in ["amd64", "amd64/v3", "arm", "arm/v7", "arm64", "riscv64"] {
                let platform = platform.parse().expect("a platform");
                match index.select(&platform) {
                    Ok(Selection::Manifest(entry)) => assert!(index.manifests.contains(entry)),
                    Ok(Selection::Indexes(entries)) => assert!(!entries.is_empty()),
                    Err(error) => assert!(error.to_string().len() < 1 << 20),
                }
            }
        }
        Ok(Document::Manifest(manifest)) => {
            let _ = manifest.check(&Limits::default()).map_err(|error| (error.to_string(), error.hint()));
            for descriptor in manifest.layers.iter().chain([&manifest.config]) {
                assert!(i64::try_from(descriptor.size).is_ok());
                if let Some(data) = &descriptor.data {
                    assert_eq!(Digest::of(data), descriptor.digest);
                }
            }
        }
        Err(error) => drop((error.to_string(), error.kind())),
    }
});
