//! Gets kernel mounts ready, before the daemon has threads.

use std::time::Duration;

use sctl_engine::{
    JobUser,
    mount::{HelperUser, MountOptions, Slots, Unavailable},
};

use crate::{Mode, Settings};

/// Slots and how to use them, or why there are none.
pub type PreparedMounts = Result<(Slots, MountOptions), Unavailable>;

/// Moves the daemon into a mount namespace of its own with places to mount
/// images at, if it is to mount any.
///
/// Call it while the process has a single thread: others would stay outside.
///
/// # Privileges
/// Root's, in system mode; none are used otherwise.
pub fn prepare_mounts(settings: &Settings) -> PreparedMounts {
    let unavailable = |text: &str| Unavailable(text.to_owned());
    let config = &settings.config.mount;
    if settings.mode != Mode::System {
        return Err(unavailable("a user's own daemon makes no kernel mounts"));
    }
    if !config.enabled {
        return Err(unavailable("kernel mounts are switched off in the daemon's configuration (mount.enabled)"));
    }
    let no_user = |error| Unavailable(format!("there is no user for the mount helper: {error}"));
    let helper = JobUser::lookup(&config.helper_user).map_err(no_user)?;
    // Who shares its uid with a job could be traced by it.
    if JobUser::lookup(&settings.config.job_user).is_ok_and(|job| job.uid == helper.uid || job.gid == helper.gid) {
        return Err(unavailable("the mount helper's user is also that of jobs"));
    }
    let slots = Slots::prepare(&config.slots_dir, config.max, helper.gid)
        .map_err(|error| Unavailable(format!("there is no place to mount images at: {error}")))?;
    let options = MountOptions {
        share: config.share,
        idmapped: config.idmapped,
        idle: Duration::from_secs(config.idle_seconds),
        max_per_user: config.max_per_user,
        helper: HelperUser { uid: helper.uid, gid: helper.gid },
        // This very program, even if its file was replaced since.
        program: "/proc/self/exe".into(),
    };
    Ok((slots, options))
}
