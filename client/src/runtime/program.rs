//! From what was asked for to the program that is executed, once the new root
//! is in place: everything here looks at `/` as the container sees it.

use std::{
    convert::Infallible,
    ffi::{CString, OsStr, OsString},
    io::{self, Read as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD};
use sctl_oci::Launch;
use sctl_sys::proc;

use super::{
    environment::{Facts, Forwarded, Variables, compose},
    image::host_arch,
    request::Action,
    script::{self, Target},
};
use crate::{
    failure::Failure,
    output::{info, warning},
};

/// What is executed, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    argv: Vec<OsString>,
    env: Variables,
}

const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// Where images of the first generation have their runscript.
const OLD_RUNSCRIPT: &str = "/singularity";
const SCRIPTS: &str = "/.singularity.d/env";

impl Program {
    /// Decides what to execute. `launch` is what an image of our own making
    /// says about itself.
    ///
    /// # Errors
    /// A [`Failure`] if the image lacks the shell that would be needed.
    pub fn new(
        action: &Action,
        launch: Option<&Launch>,
        forwarded: &Forwarded,
        facts: &Facts,
    ) -> Result<Self, Failure> {
        let scripted = launch.is_none() && Path::new(SCRIPTS).is_dir();
        let (argv, target) = match action {
            Action::Exec { argv } => (argv.clone(), Target::Arguments),
            Action::Run { args } => match launch {
                Some(launch) => (command_line(launch, args)?, Target::Arguments),
                None if scripted && Path::new(RUNSCRIPT).exists() => (args.clone(), Target::Runscript),
                None => (without_launch(args)?, Target::Arguments),
            },
            Action::Shell { shell } => (interactive(shell.as_deref())?, Target::Arguments),
        };
        let mut program = if scripted {
            if !is_executable(Path::new(script::SHELL)) {
                return Err(Failure::new(format!("{} does not exist in container", script::SHELL))
                    .cause("the image sets its environment by shell scripts in /.singularity.d/env")
                    .hint("install a shell in the image, or convert it again from its OCI source"));
            }
            let script = script::make(forwarded, facts, target);
            Self { argv: script.argv(&argv), env: script.env }
        } else {
            let image = launch.map(|launch| launch.env.as_slice()).unwrap_or_default();
            let image = image.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            Self { env: compose(image, forwarded, facts), argv }
        };
        if let (Action::Shell { .. }, false) = (action, scripted) {
            program.env.insert("SHELL".into(), program.argv[0].clone());
        }
        Ok(program)
    }

    /// Says where the program starts.
    pub fn set_directory(&mut self, directory: &Path) {
        self.env.insert("PWD".into(), directory.into());
    }

    /// Executes it; returns only if that fails. `served` says that the image's
    /// files come from a server.
    ///
    /// # Errors
    /// A [`Failure`] that names the program and says why it cannot run.
    pub fn exec(self, served: bool) -> Result<Infallible, Failure> {
        let Self { mut argv, env } = self;
        let Some(name) = argv.first().cloned() else { return Err(Failure::new("no program to execute")) };
        let strings = |list: &[OsString]| -> Result<Vec<CString>, Failure> {
            let nul = |_| Failure::new("an argument holds a NUL byte");
            list.iter().map(|text| CString::new(text.as_bytes()).map_err(nul)).collect()
        };
        // Neither names nor values of an environment can hold a NUL, as the
        // kernel gave them or the image's config was checked for it.
        let env: Vec<CString> = env
            .into_iter()
            .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
            .collect();
        let path = env
            .iter()
            .find_map(|pair| pair.to_bytes().strip_prefix(b"PATH="))
            .map(|path| OsString::from_vec(path.to_vec()))
            .unwrap_or_default();
        let mut denied = None;
        for candidate in candidates(&name, &path) {
            let program = CString::new(candidate.as_os_str().as_bytes())
                .map_err(|_| Failure::new("the program's name holds a NUL byte"))?;
            if served && is_executable(&candidate) {
                read_ahead(&candidate);
            }
            let error = proc::exec(&program, &strings(&argv)?, &env);
            match error.raw_os_error() {
                Some(libc::ENOEXEC) => {
                    check_machine(&candidate)?;
                    // A script without a first line: every shell runs it so.
                    argv.splice(..1, [script::SHELL.into(), candidate.clone().into()]);
                    let error = proc::exec(c"/bin/sh", &strings(&argv)?, &env);
                    return Err(cannot_execute(&name, &candidate, &error));
                }
                Some(libc::ENOENT | libc::ENOTDIR) if !candidate.exists() => {}
                // Of a directory and of what may not be executed PATH may
                // have a better one further on.
                Some(libc::EACCES) => denied = denied.or(Some((candidate, error))),
                _ => return Err(cannot_execute(&name, &candidate, &error)),
            }
        }
        Err(match denied {
            Some((candidate, error)) => cannot_execute(&name, &candidate, &error),
            None if has_slash(&name) => {
                Failure::new(format!("{}: no such file or directory in container", quoted(&name)))
            }
            None => Failure::new(format!("{}: executable file not found in $PATH", quoted(&name))),
        })
    }
}

/// Has the kernel read, ahead of its use and in large pieces, what it needs to
/// start the program: the file itself, its loader and the C library beside the
/// loader. Over FUSE, page by page as a program faults them in, each would be
/// many questions to the image's server.
fn read_ahead(program: &Path) {
    let Some(head) = advise(program) else { return };
    let Some(loader) = loader(&head).map(PathBuf::from) else { return };
    advise(&loader);
    // Loaders are found through links; libraries lie where they lead to.
    if let Some(libraries) = loader.canonicalize().ok().as_deref().and_then(Path::parent) {
        advise(&libraries.join("libc.so.6"));
    }
}

/// Largest file that is read ahead as a whole.
const MAX_AHEAD: u64 = 2 << 20;

/// Asks for the whole file, and gives its beginning.
fn advise(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    let found = file.metadata().ok()?;
    if !found.is_file() || found.len() > MAX_AHEAD {
        return None;
    }
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed).ok()?;
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// A name as messages show it.
fn quoted(name: &OsStr) -> String {
    format!("\"{}\"", crate::output::printable(&name.to_string_lossy()))
}

fn has_slash(name: &OsStr) -> bool {
    name.as_bytes().contains(&b'/')
}

/// Where `name` may be found, in order.
fn candidates(name: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if has_slash(name) {
        return vec![name.into()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    path.as_bytes()
        .split(|&byte| byte == b':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(OsStr::from_bytes(dir)).join(name))
        .collect()
}

/// ENTRYPOINT and CMD of the image with the caller's arguments.
fn command_line(launch: &Launch, args: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let owned = |items: &[String]| -> Vec<OsString> { items.iter().map(OsString::from).collect() };
    let mut argv = owned(&launch.entrypoint);
    if !args.is_empty() {
        argv.extend(args.iter().cloned());
    } else if launch.cmd.is_empty() && argv.is_empty() {
        return interactive(None);
    } else {
        argv.extend(owned(&launch.cmd));
    }
    Ok(argv)
}

/// What `run` does with an image that says nothing about it.
fn without_launch(args: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let old = Path::new(OLD_RUNSCRIPT);
    let program = if is_executable(old) && old.is_file() {
        OLD_RUNSCRIPT
    } else if is_executable(Path::new(script::SHELL)) {
        info!("No runscript found in container, executing /bin/sh");
        script::SHELL
    } else {
        return Err(Failure::error("No runscript and no /bin/sh executable found in container, aborting"));
    };
    Ok([OsString::from(program)].into_iter().chain(args.iter().cloned()).collect())
}

fn interactive(shell: Option<&OsStr>) -> Result<Vec<OsString>, Failure> {
    if let Some(shell) = shell {
        if is_executable(Path::new(shell)) {
            return Ok(vec![shell.to_owned()]);
        }
        warning!("{} is not executable in container, trying others", quoted(shell));
    }
    if is_executable(Path::new("/bin/bash")) {
        return Ok(vec!["/bin/bash".into(), "--norc".into()]);
    }
    if is_executable(Path::new(script::SHELL)) {
        return Ok(vec![script::SHELL.into()]);
    }
    Err(Failure::error("/bin/sh does not exist in container"))
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// Why `candidate` could not be executed.
fn cannot_execute(name: &OsStr, candidate: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("{}: cannot be executed", quoted(name))).source(error);
    if error.raw_os_error() != Some(libc::ENOENT) {
        return failure;
    }
    // The file is there, so it is something that it needs.
    match interpreter(candidate) {
        Some(Interpreter::Script(shell)) => {
            let failure = failure.cause(format!("its interpreter {} does not exist in container", quoted(&shell)));
            if shell.as_bytes().ends_with(b"\r") {
                failure.hint("its lines end as in DOS; convert it, with dos2unix for example")
            } else {
                failure
            }
        }
        Some(Interpreter::Loader(loader)) => failure
            .cause(format!("its loader {} does not exist in container", quoted(&loader)))
            .hint("a shared library is likely missing in the image"),
        None => failure.hint("a shared library is likely missing in the image"),
    }
}

enum Interpreter {
    Script(OsString),
    Loader(OsString),
}

/// How much of a file is looked at to learn what it needs.
const HEAD: u64 = 8 << 10;

fn read_head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// What the kernel would have started to run the file.
fn interpreter(path: &Path) -> Option<Interpreter> {
    let head = read_head(path)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        // A carriage return belongs to the name, for the kernel too.
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let line = line.split(|&byte| byte == b'\n').next()?;
        let program = line.split(is_blank).find(|word| !word.is_empty())?;
        return Some(Interpreter::Script(OsStr::from_bytes(program).to_owned()));
    }
    loader(&head).map(Interpreter::Loader)
}

/// The PT_INTERP segment of a little-endian ELF file that begins with `head`.
fn loader(head: &[u8]) -> Option<OsString> {
    let wide = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', class @ (1 | 2), 1] => *class == 2,
        _ => return None,
    };
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        usize::try_from(bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))).ok()
    };
    let (table, size, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        if number(at, 4)? != 3 {
            continue;
        }
        let (start, len) = if wide {
            (number(at.checked_add(8)?, 8)?, number(at.checked_add(32)?, 8)?)
        } else {
            (number(at.checked_add(4)?, 4)?, number(at.checked_add(16)?, 4)?)
        };
        let path = head.get(start..start.checked_add(len)?)?;
        return Some(OsStr::from_bytes(path.split(|&byte| byte == 0).next()?).to_owned());
    }
    None
}

/// Refuses a program of another machine with the text that users know.
fn check_machine(path: &Path) -> Result<(), Failure> {
    let Some(head) = read_head(path).filter(|head| head.len() >= 20 && head.starts_with(b"\x7fELF")) else {
        return Ok(());
    };
    let little = head[5] == 1;
    let machine =
        if little { u16::from_le_bytes([head[18], head[19]]) } else { u16::from_be_bytes([head[18], head[19]]) };
    let arch = sctl_sif::Arch::from_elf(head[4] == 2, little, machine);
    let name = arch.map_or_else(|| format!("machine {machine}"), |arch| arch.name().to_owned());
    Err(Failure::new(format!("image targets '{name}', cannot run on '{}'", host_arch())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(entrypoint: &[&str], cmd: &[&str]) -> Launch {
        let owned = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        Launch { entrypoint: owned(entrypoint), cmd: owned(cmd), env: Vec::new() }
    }

    #[test]
    fn arguments_replace_cmd_and_follow_entrypoint() {
        let cases = [
            (launch(&["ep", "-x"], &[]), vec![], vec!["ep", "-x"]),
            (launch(&["ep"], &[]), vec!["a b"], vec!["ep", "a b"]),
            (launch(&[], &["cmd", "$x"]), vec![], vec!["cmd", "$x"]),
            (launch(&[], &["cmd"]), vec!["prog", ""], vec!["prog", ""]),
            (launch(&["ep"], &["cmd"]), vec![], vec!["ep", "cmd"]),
            (launch(&["ep"], &["cmd"]), vec!["'"], vec!["ep", "'"]),
            (launch(&[], &[]), vec!["prog"], vec!["prog"]),
        ];
        for (launch, args, expected) in cases {
            let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
            assert_eq!(command_line(&launch, &args).unwrap(), expected, "{launch:?} {args:?}");
        }
    }

    #[test]
    fn programs_are_looked_for_in_path_only_by_plain_name() {
        let path = OsStr::new("/a::/b/");
        assert_eq!(candidates(OsStr::new("x"), path), [PathBuf::from("/a/x"), PathBuf::from("/b/x")]);
        assert_eq!(candidates(OsStr::new("./x"), path), [PathBuf::from("./x")]);
        assert!(candidates(OsStr::new(""), path).is_empty());
    }

    #[test]
    fn the_loader_of_a_program_is_found() {
        let head = read_head(&std::env::current_exe().unwrap()).unwrap();
        let found = loader(&head).unwrap();
        assert!(found.as_bytes().starts_with(b"/lib"), "{found:?}");
        for len in 0..200 {
            // Whatever is cut off, nothing panics.
            let _ = loader(&head[..len]);
        }
    }
}
