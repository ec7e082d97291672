//! What an image says about itself: from the metadata object of a SIF, or
//! from the files that the object is made from.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use sctl_sif::{
    Format, FsType, PROBE_LEN, SifFile,
    inspect::{App, Attributes},
};

use super::files::{Directory, ImageFiles, Squashfs};
use crate::failure::{Failure, reason};

/// Where an image keeps its own descriptions.
const HOME: &str = ".singularity.d";

/// Reads everything that an image says about itself.
///
/// # Errors
/// `Failed to open image …` with the reason.
pub fn read(path: &Path) -> Result<Attributes, Failure> {
    let failed = |failure: Failure| Failure {
        message: format!("Failed to open image {}", path.display()),
        causes: std::iter::once(failure.message).chain(failure.causes).filter(|cause| !cause.is_empty()).collect(),
        ..failure
    };
    let system = |error: std::io::Error| failed(Failure::new(reason(&error)));
    let meta = std::fs::metadata(path).map_err(system)?;
    if meta.is_dir() {
        let directory = Directory::open(path).map_err(system)?;
        return from_files(&directory).map_err(failed);
    }
    if !meta.is_file() {
        return Err(failed(Failure::new("it is neither a file nor a directory")));
    }
    let file = OpenOptions::new()
        .read(true)
        // What has become a pipe since must not hang us.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(system)?;
    from_image(file).map_err(failed)
}

fn from_image(mut file: File) -> Result<Attributes, Failure> {
    let unreadable = |error: std::io::Error| Failure::new("it cannot be read").cause(reason(&error));
    let mut head = Vec::new();
    (&file).take(PROBE_LEN as u64).read_to_end(&mut head).map_err(unreadable)?;
    let len = file.seek(std::io::SeekFrom::End(0)).map_err(unreadable)?;
    match sctl_sif::probe(&head) {
        Some(Format::Sif) => from_sif(file),
        Some(Format::Squashfs { offset }) => from_files(&Squashfs::open(file, offset, len)?),
        Some(Format::Ext3 { .. }) => Err(Failure::new("ext3 images are not supported")),
        None => Err(Failure::new("it is no container image")),
    }
}

fn from_sif(mut file: File) -> Result<Attributes, Failure> {
    let damaged = |error: sctl_sif::ReadError| Failure::new(error.to_string()).source(&error);
    let sif = SifFile::read(&mut file).map_err(damaged)?;
    let mut attributes = match sif.inspect_metadata(&mut file).map_err(damaged)? {
        Some(metadata) => metadata.data.attributes,
        None => {
            let partition =
                sif.primary_partition().ok_or_else(|| Failure::new("it has no partition with a root file system"))?;
            if partition.partition().is_none_or(|partition| partition.fs != FsType::Squashfs) {
                return Err(Failure::new("its root file system is no squashfs"));
            }
            let (start, end) = (partition.offset(), partition.offset() + partition.size());
            let reader = file.try_clone().map_err(|error| Failure::new(reason(&error)))?;
            from_files(&Squashfs::open(reader, start, end)?)?
        }
    };
    if attributes.deffile.is_empty()
        && let Some(text) = sif.def_file(&mut file).map_err(damaged)?
    {
        attributes.deffile = String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned();
    }
    Ok(attributes)
}

/// Collects the same from the files of the image.
fn from_files(files: &dyn ImageFiles) -> Result<Attributes, Failure> {
    let text = |path: &str| text(files, &format!("{HOME}/{path}"));
    let mut runscript = text("runscript")?;
    if runscript.is_empty() {
        // Where the oldest images have it.
        runscript = self::text(files, "singularity")?;
    }
    Ok(Attributes {
        apps: apps(files)?,
        environment: environment(files, &format!("{HOME}/env"), |name| {
            (name.starts_with("10-docker") && name.ends_with(".sh"))
                || (name.starts_with('9') && name.ends_with("-environment.sh"))
        })?,
        labels: labels(files, &format!("{HOME}/labels.json"))?,
        runscript,
        test: text("test")?,
        helpfile: text("runscript.help")?,
        deffile: text("Singularity")?,
        startscript: text("startscript")?,
    })
}

fn apps(files: &dyn ImageFiles) -> Result<BTreeMap<String, App>, Failure> {
    let mut apps = BTreeMap::new();
    for name in files.list("scif/apps")? {
        let home = format!("scif/apps/{name}/scif");
        let text = |file: &str| text(files, &format!("{home}/{file}"));
        let app = App {
            environment: environment(files, &format!("{home}/env"), |name| name.ends_with(".sh"))?,
            labels: labels(files, &format!("{home}/labels.json"))?,
            runscript: text("runscript")?,
            startscript: text("startscript")?,
            test: text("test")?,
            helpfile: text("runscript.help")?,
        };
        apps.insert(name, app);
    }
    Ok(apps)
}

fn environment(
    files: &dyn ImageFiles,
    directory: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut scripts = BTreeMap::new();
    for name in files.list(directory)?.into_iter().filter(|name| wanted(name)) {
        let path = format!("{directory}/{name}");
        let script = text(files, &path)?;
        scripts.insert(format!("/{path}"), script);
    }
    Ok(scripts)
}

fn labels(files: &dyn ImageFiles, path: &str) -> Result<BTreeMap<String, String>, Failure> {
    let Some(bytes) = files.read(path)? else { return Ok(BTreeMap::new()) };
    let values: BTreeMap<String, serde_json::Value> = match serde_json::from_slice(&bytes) {
        Ok(values) => values,
        // Images of the oldest writers have an empty file.
        Err(_) if bytes.trim_ascii().is_empty() => return Ok(BTreeMap::new()),
        Err(error) => return Err(Failure::new(format!("/{path} is not valid JSON")).source(&error)),
    };
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(values.into_iter().map(|(key, value)| (key, text(value))).collect())
}

/// A file as text without newlines at its end; empty if there is none.
fn text(files: &dyn ImageFiles, path: &str) -> Result<String, Failure> {
    let bytes = files.read(path)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_without_running_anything() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(".singularity.d/runscript", "#!/bin/sh\nexec x\n");
        write(".singularity.d/labels.json", "{\"b\":\"2\",\"n\":1}");
        write(".singularity.d/env/10-docker2singularity.sh", "export A=1\n");
        write(".singularity.d/env/90-environment.sh", "export B=1\n");
        write(".singularity.d/env/99-base.sh", "no\n");
        write("scif/apps/foo/scif/runscript", "app\n");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(".singularity.d/test")).unwrap();
        let found = read(dir.path()).unwrap();
        assert_eq!(found.runscript, "#!/bin/sh\nexec x");
        assert_eq!(found.labels["n"], "1");
        assert_eq!(found.environment.len(), 2);
        assert_eq!(found.environment["/.singularity.d/env/90-environment.sh"], "export B=1");
        assert_eq!(found.apps["foo"].runscript, "app");
        assert_eq!(found.test, "", "links do not lead out of the image");
    }

    #[test]
    fn what_is_no_image_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let junk = dir.path().join("junk");
        std::fs::write(&junk, vec![b'x'; 5000]).unwrap();
        for (path, cause) in [
            (junk, "it is no container image"),
            (dir.path().join("none"), "No such file or directory"),
            ("/dev/null".into(), "it is neither a file nor a directory"),
        ] {
            let failure = read(&path).unwrap_err();
            assert_eq!(failure.message, format!("Failed to open image {}", path.display()));
            assert_eq!(failure.causes, [cause]);
        }
    }
}
