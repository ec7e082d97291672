//! Any bytes sent to mount.sock are refused, or name an image by a reference
//! and, for a copy, a key that both survive being written and read again. No
//! bytes panic, and none name anything else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sctl_common::Reference;
use sctl_daemon::parse_open_message;
use sctl_engine::{OpenTarget, cache::ImageKey};

fuzz_target!(|message: &[u8]| {
    let Some((target, _)) = parse_open_message(message) else { return };
    assert!(message.len() <= sctl_proto::MAX_OPEN_MESSAGE);
    let (reference, key) = match target {
        OpenTarget::Ticket(_) => return,
        OpenTarget::Image { reference, .. } => (reference, None),
        OpenTarget::Delivered { reference, key, .. } => (reference, Some(key)),
    };
    let text = reference.to_string();
    assert_eq!(Reference::parse(&text).as_ref(), Ok(&reference), "{text}");
    if let Some(key) = key {
        assert_eq!(ImageKey::parse(&key.to_string()), Some(key));
    }
});
