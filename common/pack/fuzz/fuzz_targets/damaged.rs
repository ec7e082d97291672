//! The pack of a real layer whose index was changed here and there is refused,
//! or merges and assembles without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_pack_fuzz::{
    layers::{Entry, layer},
    pack, unwrap, use_pack, wrap,
};

fuzz_target!(|input: (Vec<(u16, u8)>, Vec<Entry>)| {
    let (changes, entries) = input;
    let Some(pack) = pack(&layer(&entries)) else { return };
    let (data, mut raw) = unwrap(&pack);
    for (at, value) in changes.iter().take(6) {
        let at = usize::from(*at) % raw.len();
        raw[at] ^= value;
    }
    use_pack(wrap(data, &raw));
});
