//! `pull [OUT] URI`

use std::path::{Path, PathBuf};

use sctl_common::Uri;

use super::{Context, order, until_interrupted};
use crate::{
    cli::{Settings, Task},
    daemon::{self, Daemon, DeliveredImage, Kind, Order, Wish},
    delivered,
    failure::Failure,
    output::{
        info,
        progress::{PullReport, Purpose},
        size_text, verbose,
    },
    target::Target,
};

/// Pulls an image into a file of the caller.
///
/// # Errors
/// A target that cannot be written is told before any network use.
pub fn pull(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let (out, text) = match &task.args[..] {
        [uri] => (None, uri),
        [out, uri, ..] => (Some(PathBuf::from(out)), uri),
        [] => return Err(Failure::new("No transport type URI supplied")),
    };
    let text = text.to_str().ok_or_else(|| Failure::new(format!("Bad URI {}", text.to_string_lossy())))?;
    let uri = order::parse_uri(text).map_err(|failure| match out.as_ref().and_then(|out| out.to_str()) {
        Some(first) if Uri::looks_like_one(first) && !Uri::looks_like_one(text) => {
            failure.hint(format!("the file comes first, the image behind it: pull {text} {first}"))
        }
        _ => failure,
    })?;
    let settings = &task.settings;
    let path = file_name(settings, out, &uri.default_file_name());
    let target = Target::check(path, settings.switch("force"))?;
    let order = order::order(context, settings, uri, text)?;
    fetch(context, &order, &target, &format!("Unable to pull {text}"))
}

/// Where the file goes: an argument, `--name`, or a name from the URI; below
/// `--dir`.
fn file_name(settings: &Settings, out: Option<PathBuf>, default: &str) -> PathBuf {
    let name = settings.value("name").map(PathBuf::from).or(out).unwrap_or_else(|| PathBuf::from(default));
    match settings.value("dir") {
        Some(directory) => Path::new(directory).join(name),
        None => name,
    }
}

/// Pulls into the cache and writes the caller's copy. `failed` begins the
/// message of a failed pull.
///
/// # Errors
/// Those of the daemon and of the file system.
pub fn fetch(context: &Context<'_>, order: &Order, target: &Target, failed: &str) -> Result<(), Failure> {
    let daemon = Daemon::choose(context.flavour, context.environment)?;
    // Before the runtime exists: starting a daemon forks.
    drop(daemon.stream()?);
    daemon::block_on(until_interrupted(async {
        let mut report = PullReport::new(Purpose::File);
        let done = daemon.pull(order, failed, &mut report).await?;
        let opened = daemon.open_ticket(done.ticket, Wish::SifOnly)?;
        let copy = target.write(&opened.file).await?;
        // A daemon of one's own mounts nothing, so nobody would ask.
        if daemon.kind() != Kind::User && !done.image_key.is_empty() {
            let image = DeliveredImage {
                reference: order.uri.reference.to_string(),
                platform: order.platform_text(),
                image_key: done.image_key,
            };
            delivered::remember(context.environment, &copy, image);
        }
        verbose!("Fetched {}, reused {}", size_text(done.fetched_bytes), size_text(done.reused_bytes));
        Ok(())
    }))?;
    info!("Build complete: {}", target.path().display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        cli::{self, Request},
        flavour::Invocation,
    };

    #[test]
    fn names_come_from_arguments_options_and_the_uri() {
        for (args, expected) in [
            (&["docker://a/b"][..], "b_latest.sif"),
            (&["o.sif", "docker://a/b"], "o.sif"),
            (&["--name", "n.sif", "docker://a/b"], "n.sif"),
            (&["--dir", "/d", "docker://a/b"], "/d/b_latest.sif"),
            (&["--dir", "/d", "o.sif", "docker://a/b"], "/d/o.sif"),
            (&["--dir", "/d", "/e/o.sif", "docker://a/b"], "/e/o.sif"),
        ] {
            let mut line: Vec<OsString> = vec!["pull".into()];
            line.extend(args.iter().map(Into::into));
            let invocation = Invocation::from_argv0("sctl".as_ref());
            let Ok(Request::Do(task)) = cli::parse(invocation, &line, &Default::default()) else { panic!() };
            let out = (task.args.len() == 2).then(|| PathBuf::from(&task.args[0]));
            assert_eq!(file_name(&task.settings, out, "b_latest.sif"), Path::new(expected), "{args:?}");
        }
    }
}
