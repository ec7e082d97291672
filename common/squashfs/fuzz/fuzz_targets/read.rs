//! Property: no bytes make the reader panic, hang, or take much memory.
#![no_main]

mod walk;

libfuzzer_sys::fuzz_target!(|image: &[u8]| walk::walk(image));
