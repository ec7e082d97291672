//! A config of any bytes gives an error or a launch that a process can be
//! started with; its inner object parses to the same launch again.
#![no_main]

use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;
use sctl_oci::{Config, Launch, Timestamp};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(time) = text.parse::<Timestamp>()
    {
        assert_eq!(time.rfc3339().parse(), Ok(time));
        let _ = time.label();
    }
    let _ = Launch::parse(bytes);
    let Ok(config) = Config::parse(bytes) else { return };
    assert_eq!(Launch::parse(config.inner.as_bytes()).expect("parsed before"), config.launch);
    let _ = (config.architecture(), config.check_platform(&"arm/v7".parse().expect("a platform")));
    let argv = config.launch.argv(["x"]).expect("an argument");
    assert!(argv.iter().all(|item| !item.as_bytes().contains(&0)));
    for (name, value) in &config.launch.env {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    }
});
