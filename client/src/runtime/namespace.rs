//! Entering namespaces, and telling why that is not allowed.

use std::{io, path::Path};

use sctl_sys::ns::{self, Namespaces};

use super::identity::Identity;
use crate::failure::Failure;

/// Enters a new user namespace in which the caller keeps its ids.
///
/// # Errors
/// A [`Failure`] that names the setting which forbids it, if one is known.
pub fn enter_user(caller: &Identity) -> Result<(), Failure> {
    let fail = |error: &io::Error| forbidden("Unable to create a user namespace", error);
    ns::unshare(Namespaces::USER).map_err(|error| fail(&error))?;
    let ids = (caller.uid, caller.gid);
    ns::map_single_ids(ids, ids).map_err(|error| fail(&error))
}

/// Enters the other namespaces.
///
/// # Errors
/// As [`enter_user`].
pub fn enter_others(kinds: Namespaces) -> Result<(), Failure> {
    ns::unshare(kinds).map_err(|error| forbidden("Unable to create namespaces", &error))
}

/// A failure of something that a user namespace should have allowed.
pub fn forbidden(what: &str, error: &io::Error) -> Failure {
    let failure = Failure::new(what).source(error);
    match hint(error, |name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The AppArmor profile that the package installs, which allows this program
/// its user namespaces where others have none.
const PROFILE: &str = "/etc/apparmor.d/sctl";

/// Looks for the setting that forbids user namespaces.
fn hint(error: &io::Error, setting: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is = |name: &str, value: &str| setting(name).is_some_and(|text| text.trim() == value);
    if is("kernel/unprivileged_userns_clone", "0") {
        return Some("an administrator has to set kernel.unprivileged_userns_clone = 1 with sysctl".to_owned());
    }
    if is("user/max_user_namespaces", "0") {
        return Some("an administrator has to set user.max_user_namespaces above 0 with sysctl".to_owned());
    }
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    if denied && is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Some(format!(
            "this host allows user namespaces by AppArmor profile only \
             (kernel.apparmor_restrict_unprivileged_userns = 1): an administrator has to install {PROFILE}, which \
             comes with the package, load it with `apparmor_parser -r {PROFILE}`, and keep this program where the \
             profile says"
        ));
    }
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => Some(
            "too many namespaces are in use: an administrator can raise user.max_user_namespaces and \
             user.max_mnt_namespaces with sysctl"
                .to_owned(),
        ),
        _ if denied => Some(
            "user namespaces are forbidden here: look at kernel.unprivileged_userns_clone, \
             user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns, at SELinux, \
             and at the seccomp profile if this is a container"
                .to_owned(),
        ),
        Some(libc::EINVAL | libc::ENOSYS) => Some("the kernel was built without user namespaces".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_it_is_named() {
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        for (name, value, sysctl) in [
            ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone"),
            ("user/max_user_namespaces", "0\n", "user.max_user_namespaces"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "kernel.apparmor_restrict_unprivileged_userns"),
        ] {
            let text = hint(&denied, |asked| (asked == name).then(|| value.to_owned())).unwrap();
            assert!(text.contains(sysctl), "{name}: {text}");
            assert_eq!(text.contains("/etc/apparmor.d/sctl"), name.contains("apparmor"), "{name}: {text}");
        }
        let profiles = |asked: &str| asked.ends_with("unprivileged_userns").then(|| "1".to_owned());
        let wrapped = io::Error::new(denied.kind(), "cannot write /proc/self/uid_map");
        assert!(hint(&wrapped, profiles).unwrap().contains("/etc/apparmor.d/sctl"));
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(!hint(&full, profiles).unwrap().contains("apparmor"), "whoever has the profile has other troubles");
        assert!(hint(&full, |_| None).unwrap().contains("user.max_user_namespaces"));
        assert_eq!(hint(&io::Error::from_raw_os_error(libc::EIO), |_| None), None);
    }
}
