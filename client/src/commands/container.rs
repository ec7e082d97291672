//! `exec`, `run` and `shell`: finds the image and hands over to the launcher.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use sctl_common::Uri;

use super::{Context, order};
use crate::{
    cli::{Action, Task},
    config::Config,
    daemon::{self, Daemon, OpenedSif, Wish},
    delivered::{self, Recalled},
    failure::{Failure, reason},
    options,
    output::{
        info, printable,
        progress::{PullReport, Purpose},
        verbose, warning,
    },
    runtime::{
        self,
        request::{self, ImageSource, LaunchRequest},
    },
};

/// Starts a container; returns only if that fails.
///
/// # Errors
/// Everything before the program of the container runs.
pub fn start(context: &Context<'_>, task: &Task, config: &Config) -> Result<(), Failure> {
    let (image, args) = task.args.split_first().ok_or_else(|| Failure::new("no image was given"))?;
    let action = match task.action {
        Action::Exec => request::Action::Exec { argv: args.to_vec() },
        Action::Shell => {
            if !args.is_empty() {
                warning!("Parameters to shell command are ignored");
            }
            request::Action::Shell { shell: task.settings.value("shell").map(OsStr::to_owned) }
        }
        _ => request::Action::Run { args: args.to_vec() },
    };
    // First what needs nobody's help.
    let options = options::launch_options(context.flavour, &task.settings, config)?;
    let wish = if options.writable_tmpfs { Wish::WritableMount } else { Wish::Mount };
    let image = open(context, task, image, wish)?;
    runtime::launch(LaunchRequest { action, image, options }).map(|never| match never {})
}

fn open(context: &Context<'_>, task: &Task, image: &OsString, wish: Wish) -> Result<ImageSource, Failure> {
    match image.to_str() {
        Some(text) if text.starts_with("instance://") => {
            Err(Failure::new(format!("Unable to join {text}")).cause("instances are not supported yet"))
        }
        Some(text) if Uri::looks_like_one(text) => from_registry(context, task, text, wish),
        _ => from_file(context, Path::new(image), wish),
    }
}

/// An image of a registry: from the cache if the caller holds a lease, else
/// pulled first.
fn from_registry(context: &Context<'_>, task: &Task, text: &str, wish: Wish) -> Result<ImageSource, Failure> {
    let uri = order::parse_uri(text)?;
    let name: OsString = uri.default_file_name().into();
    let daemon = Daemon::choose(context.flavour, context.environment)?;
    // An order that leaves nothing in the cache finds nothing there either,
    // and another compressor means another file.
    let settings = &task.settings;
    if !settings.switch("disable-cache") && settings.value("compression").is_none() {
        // Before credentials are gathered: a lease needs none, and a helper may
        // take longer than the whole start.
        let platform = order::platform(settings, &uri.reference)?;
        let platform = platform.map(|platform| platform.to_string()).unwrap_or_default();
        if let Some(opened) = daemon.open_leased(&uri.reference.to_string(), &platform, wish)? {
            info!("Using cached SIF image");
            return Ok(source(opened, name));
        }
    }
    let order = order::order(context, settings, uri, text)?;
    // Connected once outside the runtime, because starting a daemon forks.
    drop(daemon.stream()?);
    let done = daemon::block_on(async {
        let mut report = PullReport::new(Purpose::Container);
        daemon.pull(&order, &format!("Unable to pull {}", order.text), &mut report).await
    })?;
    if !done.image_cached && !order.disable_cache {
        info!("Image cached as SIF at {}", done.path);
    }
    verbose!("The image is {}", done.manifest_digest);
    Ok(source(daemon.open_ticket(done.ticket, wish)?, name))
}

fn source(opened: OpenedSif, name: OsString) -> ImageSource {
    let OpenedSif { file, path, mount } = opened;
    ImageSource::Sif { file, path, name, mount: mount.and_then(|mount| mount.map_err(|why| over_fuse(&why)).ok()) }
}

/// Says why the faster way is not taken.
fn over_fuse(why: &str) {
    verbose!("The image is served over FUSE: {}", printable(why));
}

/// The caller's own file or directory, opened as the caller.
fn from_file(context: &Context<'_>, path: &Path, wish: Wish) -> Result<ImageSource, Failure> {
    let unable = || Failure::new(format!("Could not open image {}", path.display()));
    let real = std::fs::canonicalize(path).map_err(|error| unable().cause(reason(&error)))?;
    let meta = std::fs::metadata(&real).map_err(|error| unable().cause(reason(&error)))?;
    if meta.is_dir() {
        return Ok(ImageSource::Directory { path: real });
    }
    if !meta.is_file() {
        return Err(unable().cause("it is neither a file nor a directory"));
    }
    let file: File = OpenOptions::new()
        .read(true)
        // What has become a pipe since must not hang us.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(&real)
        .map_err(|error| unable().cause(reason(&error)))?;
    let name = path.file_name().or_else(|| real.file_name()).unwrap_or_default().to_owned();
    Ok(match mounted(context, &file, wish) {
        Some((file, mount)) => ImageSource::Sif { file, path: real, name, mount: Some(mount) },
        None => ImageSource::Sif { file, path: real, name, mount: None },
    })
}

/// The cache's own file, and a mount of it, of the image that `file` is an
/// unchanged copy of. Both together: what the launcher reads of the image is
/// then of the same file as what it mounts.
fn mounted(context: &Context<'_>, file: &File, wish: Wish) -> Option<(File, OwnedFd)> {
    let daemon = Daemon::choose_to_mount(context.flavour, context.environment)?;
    let open = || -> Result<(File, OwnedFd), String> {
        let recalled = delivered::recall(context.environment, file)?;
        let (Recalled::Unchanged(image) | Recalled::Touched(image)) = &recalled;
        let opened = daemon.open_delivered(image.clone(), wish)?;
        let mount = opened.mount.unwrap_or_else(|| Err("none was asked for".to_owned()))?;
        if let Recalled::Touched(image) = recalled {
            verbose!("The image was renamed or touched: comparing it with the cache");
            if !delivered::same_contents(file, &opened.file).unwrap_or(false) {
                return Err(delivered::CHANGED.to_owned());
            }
            delivered::remember(context.environment, file, image);
        }
        Ok((opened.file, mount))
    };
    open().map_err(|why| over_fuse(&why)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Environment, flavour::Flavour};

    #[test]
    fn own_images_are_opened_or_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let environment = Environment::of(&[("SCTL_SOCKET", socket.to_str().unwrap())]);
        let context = Context { flavour: Flavour::Sctl, environment: &environment };
        let from_file = |path: &Path| from_file(&context, path, Wish::Mount);
        std::fs::write(dir.path().join("a.sif"), "x").unwrap();
        std::os::unix::fs::symlink("a.sif", dir.path().join("b.sif")).unwrap();
        match from_file(&dir.path().join("b.sif")).unwrap() {
            ImageSource::Sif { path, name, .. } => {
                assert!(path.ends_with("a.sif"));
                assert_eq!(name, "b.sif");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(from_file(dir.path()).unwrap(), ImageSource::Directory { .. }));
        let failure = from_file(&dir.path().join("none")).unwrap_err();
        assert!(failure.message.starts_with("Could not open image "), "{failure}");
        assert_eq!(failure.causes, ["No such file or directory"]);
        assert!(from_file(Path::new("/dev/null")).is_err());
    }
}
