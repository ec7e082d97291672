//! Any bytes given as the index of a pack are refused, or merge and assemble
//! without a panic. Digest and lengths are mended, so that the bytes are looked
//! at.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sctl_pack_fuzz::{pack, unwrap, use_pack, wrap};

fuzz_target!(|input: (u16, &[u8])| {
    static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| pack(b"").expect("nothing can be packed"));
    let mut data = unwrap(&EMPTY).0.to_vec();
    data.resize(data.len() + usize::from(input.0) % 20_000, 7);
    // A digest in front of everything needs no guessing.
    use_pack(wrap(&data, &[&[0; 32], input.1].concat()));
});
