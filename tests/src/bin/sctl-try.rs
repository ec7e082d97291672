//! The main job, shown to a new user: pull an image, convert it, run it.
//!
//! Without arguments an image is made of programs of this host and served by a
//! registry on loopback that ends with this program, so that it works where no
//! public registry can be reached. With arguments they are an image's URI and
//! a command: the same steps on that image.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use sctl_tests::{
    hub::{Hub, Manners},
    image::Image,
    layer::{Entry, Layer},
};
use serde_json::json;

/// Programs of this host that the image is made of, if they are there.
const PROGRAMS: [&str; 7] =
    ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/echo", "/usr/bin/id", "/usr/bin/uname", "/usr/bin/env"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let hub = Hub::start(Manners::default());
    let (uri, commands): (String, Vec<Vec<String>>) = match arguments.split_first() {
        Some((uri, command)) => (uri.clone(), vec![command.to_vec()]),
        None => {
            hub.seed(&host_image(), "try/host:latest");
            let words = |line: &str| line.split(' ').map(str::to_owned).collect();
            let commands = vec![words("id"), words("uname -sm"), words("cat /etc/motd"), words("ls /")];
            (format!("docker://{}", hub.reference("try/host:latest")), commands)
        }
    };
    let own = std::env::current_exe().expect("a program knows its own path");
    let sctl = own.with_file_name("sctl");
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("cannot make a temporary folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let sif = folder.path().join("try.sif");
    let sif_text = sif.display().to_string();
    let mut pull = vec!["pull", sif_text.as_str(), uri.as_str()];
    if arguments.is_empty() {
        // The loopback registry speaks plain HTTP.
        pull.insert(1, "--no-https");
    }
    let mut good = show(&sctl, &pull) && show(&sctl, &["inspect", &sif_text]);
    for command in &commands {
        let mut line = vec![if command.is_empty() { "run" } else { "exec" }, sif_text.as_str()];
        line.extend(command.iter().map(String::as_str));
        good = good && show(&sctl, &line);
    }
    good = good && show(&sctl, &["cache", "info"]);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a command as a user would type it, runs it, and says whether it
/// succeeded.
fn show(sctl: &Path, arguments: &[&str]) -> bool {
    println!("\n$ sctl {}", arguments.join(" "));
    match Command::new(sctl).args(arguments).status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cannot run {}: {error}", sctl.display());
            false
        }
    }
}

/// An image of this host's own programs and the libraries that they need.
fn host_image() -> Image {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in PROGRAMS.map(PathBuf::from) {
        if !program.exists() {
            continue;
        }
        if let Ok(output) = Command::new("ldd").arg(&program).output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        }
        files.insert(program);
    }
    let mut entries = vec![
        Entry::dir("etc"),
        Entry::file("etc/motd", "Hello from inside the image.\n"),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Entry::file("etc/group", "root:x:0:\n"),
    ];
    for path in files {
        let Ok(content) = fs::read(&path) else { continue };
        let mode = fs::metadata(&path).map_or(0o755, |meta| meta.permissions().mode() & 0o777);
        entries.push(Entry::file(path.display().to_string(), content).mode(mode));
    }
    Image::new(vec![Layer::new(&entries)]).config(json!({
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "Cmd": ["/bin/sh"],
        "Labels": {"org.opencontainers.image.title": "programs of this host"},
    }))
}
