//! Giving capabilities up.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Highest number that the kernel's 64-bit sets can hold.
const MAX_CAPABILITY: u32 = 63;

/// Gives up every capability in every set: bounding, ambient, inheritable,
/// permitted and effective. What the process executes has none either, and
/// cannot get one from a file or from uid 0.
///
/// # Errors
/// `EPERM` if the bounding set is not empty and the process lacks
/// `CAP_SETPCAP`.
pub fn drop_all() -> io::Result<()> {
    // The bounding set goes first: emptying it needs CAP_SETPCAP.
    empty_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// Gives up every capability but `CAP_SYS_ADMIN`, which is kept for use by
/// this program alone: what it executes gets none.
///
/// # Errors
/// As [`drop_all`].
pub fn keep_mount_administration() -> io::Result<()> {
    empty_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::SYS_ADMIN,
            permitted: CapabilitySet::SYS_ADMIN,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

fn empty_bounding_set() -> io::Result<()> {
    for number in 0..=MAX_CAPABILITY {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // One past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Makes sure that neither this process nor what it executes ever gains
/// privileges by executing a file.
///
/// # Errors
/// As `prctl(2)`: never on a kernel since 3.5.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}
