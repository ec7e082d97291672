//! A stack of layers with all kinds of entries is refused as a whole, or its
//! image reads back completely.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_pack_fuzz::{
    layers::{Entry, layer},
    pack_and_read,
};

fuzz_target!(|layers: Vec<Vec<Entry>>| {
    let layers: Vec<Vec<u8>> = layers.iter().take(5).map(|entries| layer(entries)).collect();
    pack_and_read(&layers.iter().map(|layer| &layer[..]).collect::<Vec<_>>());
});
