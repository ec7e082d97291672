//! A throw-away writable layer over the image.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use sctl_sys::mount::{self, MountAttributes};

use super::make_directory;

/// Mounts an overlay over `image`, which becomes its lower layer; the upper one
/// is in `session`, a tmpfs. Both must be attached.
///
/// # Errors
/// As the calls that mount: kernels before 5.11 allow no overlay in a user
/// namespace.
pub fn over(image: &OwnedFd, session: &OwnedFd) -> io::Result<OwnedFd> {
    let (upper, work) = (make_directory(session, "upper")?, make_directory(session, "work")?);
    // Options are texts, and only this names a directory whatever its path is.
    let path = |fd: &OwnedFd| CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (lower, upper, work) = (path(image)?, path(&upper)?, path(&work)?);
    let options = [
        (c"source", Some(c"sctl")),
        (c"lowerdir", Some(lower.as_c_str())),
        (c"upperdir", Some(upper.as_c_str())),
        (c"workdir", Some(work.as_c_str())),
        // Without privileges the overlay's own notes can only be user xattrs.
        (c"userxattr", None),
    ];
    let overlay = mount::new_filesystem(c"overlay", &options, MountAttributes::NO_SUID | MountAttributes::NO_DEV)?;
    mount::attach(&overlay, image)?;
    Ok(overlay)
}
