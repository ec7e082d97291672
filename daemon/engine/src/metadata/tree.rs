//! What is added to the merged tree of an image.

use super::scripts;

/// What to do where something is already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Whatever is there gives way, symlinks included; a directory keeps its
    /// entries, with the new mode.
    Always,
    /// Whatever is there stays as it is, symlinks included.
    IfAbsent,
}

/// What an addition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdditionKind {
    /// A directory.
    Directory,
    /// A file with this content.
    File(Vec<u8>),
    /// A symlink to this target.
    Symlink(&'static str),
}

/// One thing to add. It belongs to root and has the image's own time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// Path from the root, without a leading slash.
    pub path: &'static str,
    /// Permission bits, with the sticky bit where there is one.
    pub mode: u16,
    /// What it is.
    pub kind: AdditionKind,
    /// What happens where something is already.
    pub rule: Rule,
}

/// The texts that differ from image to image.
pub(super) struct Texts<'a> {
    pub def_file: &'a str,
    pub labels: &'a str,
    pub runscript: &'a str,
    pub environment: &'a str,
}

/// Mount points that launchers want, with their modes.
const MOUNT_POINTS: [(&str, u16); 10] = [
    ("dev", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("root", 0o700),
    ("home", 0o755),
    ("run", 0o755),
    ("etc", 0o755),
];

/// Files that launchers mount over.
const MOUNT_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

/// Names that older launchers look for in the root.
const ROOT_LINKS: [(&str, &str); 6] = [
    ("singularity", ".singularity.d/runscript"),
    (".run", ".singularity.d/actions/run"),
    (".exec", ".singularity.d/actions/exec"),
    (".shell", ".singularity.d/actions/shell"),
    (".test", ".singularity.d/actions/test"),
    ("environment", ".singularity.d/env/90-environment.sh"),
];

const DIRECTORIES: [&str; 4] =
    [".singularity.d", ".singularity.d/actions", ".singularity.d/env", ".singularity.d/libs"];

/// Everything that is added, each after the directory that it is in.
pub(super) fn additions(texts: Texts<'_>) -> Vec<Addition> {
    use Rule::{Always, IfAbsent};
    let file = |path, mode, text: &str, rule| Addition {
        path,
        mode,
        kind: AdditionKind::File(text.as_bytes().to_vec()),
        rule,
    };
    let directory = |path, mode, rule| Addition { path, mode, kind: AdditionKind::Directory, rule };
    let mut out: Vec<Addition> = MOUNT_POINTS.iter().map(|&(path, mode)| directory(path, mode, IfAbsent)).collect();
    out.extend(MOUNT_FILES.map(|path| file(path, 0o644, "", IfAbsent)));
    out.extend(DIRECTORIES.map(|path| directory(path, 0o755, Always)));
    out.extend(scripts::actions().iter().map(|(name, text)| {
        let path = match *name {
            "exec" => ".singularity.d/actions/exec",
            "run" => ".singularity.d/actions/run",
            "shell" => ".singularity.d/actions/shell",
            "start" => ".singularity.d/actions/start",
            _ => ".singularity.d/actions/test",
        };
        file(path, 0o755, text, Always)
    }));
    out.extend([
        file(".singularity.d/env/01-base.sh", 0o755, scripts::BASE, Always),
        file(scripts::OCI_ENVIRONMENT, 0o755, texts.environment, Always),
        // Replaced too: what `inspect` shows has to be what is there.
        file(scripts::CUSTOM_ENVIRONMENT, 0o755, scripts::CUSTOM_ENVIRONMENT_TEXT, Always),
        file(".singularity.d/env/94-appsbase.sh", 0o755, scripts::APPS_BASE, Always),
        file(".singularity.d/env/95-apps.sh", 0o755, scripts::APPS, Always),
        file(".singularity.d/env/99-base.sh", 0o755, scripts::LAST, Always),
        file(".singularity.d/env/99-runtimevars.sh", 0o755, scripts::RUNTIME_VARIABLES, Always),
        file(".singularity.d/runscript", 0o755, texts.runscript, Always),
        file(".singularity.d/startscript", 0o755, scripts::STARTSCRIPT, Always),
        file(".singularity.d/labels.json", 0o644, texts.labels, Always),
        file(".singularity.d/Singularity", 0o644, texts.def_file, Always),
    ]);
    out.extend(ROOT_LINKS.map(|(path, target)| Addition {
        path,
        mode: 0o777,
        kind: AdditionKind::Symlink(target),
        rule: IfAbsent,
    }));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_addition_comes_once_and_after_its_directory() {
        let all = additions(Texts { def_file: "d", labels: "{}", runscript: "r", environment: "e" });
        for (at, addition) in all.iter().enumerate() {
            let path = addition.path;
            assert!(!path.starts_with('/') && !path.ends_with('/'), "{path}");
            assert!(all[..at].iter().all(|before| before.path != path), "{path} comes twice");
            if let Some((parent, _)) = path.rsplit_once('/') {
                let parent = all[..at].iter().find(|before| before.path == parent);
                assert!(parent.is_some_and(|parent| parent.kind == AdditionKind::Directory), "{path}");
            }
        }
    }

    #[test]
    fn links_in_the_root_lead_to_additions() {
        let all = additions(Texts { def_file: "", labels: "", runscript: "", environment: "" });
        for (link, target) in ROOT_LINKS {
            assert!(all.iter().any(|addition| addition.path == target), "{link}");
        }
    }
}
