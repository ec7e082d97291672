//! `build OUT docker://…`

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use sctl_common::Uri;

use super::{Context, order, pull};
use crate::{cli::Task, failure::Failure, output::prompt, target::Target};

/// Makes a SIF from an image of a registry: a pull to a named file.
///
/// # Errors
/// As for a pull; a target that the caller wants to keep.
pub fn build(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let path = PathBuf::from(&task.args[0]);
    let spec = task.args[1].to_string_lossy();
    if !Uri::looks_like_one(&spec) {
        let failure = Failure::new(format!("Unable to build from {spec}"));
        return Err(match std::fs::metadata(Path::new(&task.args[1])) {
            Ok(_) => failure.cause("only docker:// sources can be built yet, no definition files or images"),
            Err(_) => failure.cause("it is neither a file nor a source such as docker://debian:12"),
        });
    }
    let uri = order::parse_uri(&spec)?;
    let mut overwrite = task.settings.switch("force");
    if !overwrite && is_file(&path) {
        overwrite = may_overwrite(&path)?;
    }
    let target = Target::check(path, overwrite)?;
    let order = order::order(context, &task.settings, uri, &spec)?;
    pull::fetch(context, &order, &target, &format!("While performing build: unable to get {spec}"))
}

/// Anything but a directory, which no answer would allow to be replaced.
fn is_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir())
}

/// Asks whether an existing target may go.
fn may_overwrite(path: &Path) -> Result<bool, Failure> {
    let unattended = || {
        Failure::new(format!(
            "While checking build target: build target '{}' already exists. Use --force if you want to overwrite it",
            path.display()
        ))
    };
    match prompt::ask("Build target already exists. Do you want to overwrite? [N/y] ")? {
        Some(answer) if prompt::yes_or_no(&answer, false)? => Ok(true),
        Some(_) => Err(Failure::new("Stopping build.")),
        None if io::stdin().is_terminal() => Err(Failure::new("Stopping build.")),
        None => {
            // The question has no answer to end its line.
            crate::output::print("\n")?;
            Err(unattended())
        }
    }
}
