//! Reading any bytes as a SIF gives an error or a file whose objects lie
//! inside it, apart from each other, and can be read; it never panics.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use sctl_sif::{PROBE_LEN, SifFile, SquashfsCompression, probe};

fuzz_target!(|bytes: &[u8]| {
    let _ = probe(&bytes[..bytes.len().min(PROBE_LEN)]);
    let mut file = Cursor::new(bytes);
    let Ok(sif) = SifFile::read(&mut file) else { return };
    let mut ends = Vec::new();
    for descriptor in sif.descriptors() {
        assert!(descriptor.end() <= bytes.len() as u64);
        let object = sif.read_object(&mut file, descriptor, 1 << 20);
        if let Ok(object) = &object {
            assert_eq!(object.len() as u64, descriptor.size());
            let _ = SquashfsCompression::probe(object);
        }
        let _ = (descriptor.type_label(), descriptor.link().to_string(), format!("{descriptor:?}"));
        assert_eq!(sif.by_id(descriptor.id()), Some(descriptor));
        if descriptor.size() > 0 {
            ends.push((descriptor.offset(), descriptor.end()));
        }
    }
    ends.sort_unstable();
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    let _ = sif.inspect_metadata(&mut file);
    let _ = (sif.oci_config(&mut file), sif.def_file(&mut file), sif.primary_partition());
});
