//! From the options of `exec`, `run` and `shell` to what the launcher is
//! asked for.

mod bind;
mod env;

use std::{
    ffi::{OsStr, OsString},
    net::IpAddr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::{
    cli::Settings,
    config::Config,
    failure::{Failure, reason},
    flavour::Flavour,
    output::{info, warning},
    runtime::request::{Bind, Home, LaunchOptions, NoMount},
};

/// Longest host name of the kernel in bytes.
const HOST_NAME_MAX: usize = 64;

/// Resolves options that depend on each other and checks their values.
///
/// # Errors
/// Values that make no sense, files that cannot be read, options that need
/// what this host or this version does not have.
pub fn launch_options(flavour: Flavour, settings: &Settings, config: &Config) -> Result<LaunchOptions, Failure> {
    gpu(settings)?;
    let compat = settings.switch("compat");
    let all = compat || settings.switch("containall");
    let (no_mount, site_binds) = mounts(settings, config)?;
    let hostname = hostname(settings)?;
    Ok(LaunchOptions {
        flavour,
        binds: binds(settings)?,
        site_binds,
        contain: all || settings.switch("contain"),
        cleanenv: all || settings.switch("cleanenv"),
        env: env::gather(settings.values("env"), settings.values("env-file"))?.into_list(),
        home: home(settings)?,
        no_mount,
        cwd: settings.value("cwd").map(PathBuf::from),
        workdir: settings.value("workdir").map(|path| absolute("--workdir", path)).transpose()?,
        scratch: list(settings, "scratch").into_iter().map(|path| Path::new("/").join(path)).collect(),
        writable_tmpfs: compat || settings.switch("writable-tmpfs"),
        no_umask: compat || settings.switch("no-umask"),
        pid: all || settings.switch("pid"),
        no_init: compat || settings.switch("no-init"),
        ipc: all || settings.switch("ipc"),
        uts: settings.switch("uts") || hostname.is_some(),
        hostname,
        net: network(settings)?,
        dns: dns(settings)?,
    })
}

fn binds(settings: &Settings) -> Result<Vec<Bind>, Failure> {
    let mut binds = Vec::new();
    for spec in settings.values("bind") {
        binds.extend(bind::parse_bind(spec)?);
    }
    // The variable holds one mount on each line.
    for lines in settings.values("mount") {
        for line in lines.as_bytes().split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            binds.push(bind::parse_mount(OsStr::from_bytes(line))?);
        }
    }
    Ok(binds)
}

fn mounts(settings: &Settings, config: &Config) -> Result<(NoMount, Vec<Bind>), Failure> {
    let mut site_binds = Vec::new();
    for spec in &config.bind_paths {
        site_binds.extend(bind::parse_bind(spec.as_ref())?);
    }
    let mut no_mount = NoMount::default();
    for name in list(settings, "no-mount") {
        match name.to_str() {
            Some("proc") => no_mount.proc = true,
            Some("sys") => no_mount.sys = true,
            Some("dev") => no_mount.dev = true,
            Some("devpts") => no_mount.devpts = true,
            Some("home") => no_mount.home = true,
            Some("tmp") => no_mount.tmp = true,
            Some("cwd") => no_mount.cwd = true,
            // Mounts of the host are never taken over.
            Some("hostfs") => {}
            Some("bind-paths") => site_binds.clear(),
            Some(path) if path.starts_with('/') => site_binds.retain(|bind| bind.destination != Path::new(path)),
            _ => warning!("Ignoring unknown mount type '{}'", name.to_string_lossy()),
        }
    }
    Ok((no_mount, site_binds))
}

fn home(settings: &Settings) -> Result<Home, Failure> {
    if settings.switch("no-home") {
        return Ok(Home::None);
    }
    let Some(value) = settings.value("home") else { return Ok(Home::Default) };
    let bad = |why: &str| {
        Failure::new(format!("Invalid value {:?} of the option --home", value.to_string_lossy())).cause(why)
    };
    let parts: Vec<&[u8]> = value.as_bytes().split(|&byte| byte == b':').collect();
    let (source, destination) = match parts[..] {
        [source] => (source, source),
        [source, destination] => (source, destination),
        _ => return Err(bad("home argument has incorrect number of elements")),
    };
    let source = absolute("--home", OsStr::from_bytes(source))?;
    let destination = if parts.len() == 1 { source.clone() } else { PathBuf::from(OsStr::from_bytes(destination)) };
    if !destination.is_absolute() {
        return Err(bad("the destination is not an absolute path"));
    }
    Ok(Home::Custom { source, destination })
}

fn hostname(settings: &Settings) -> Result<Option<String>, Failure> {
    let Some(name) = settings.text("hostname")? else { return Ok(None) };
    let good = name.len() <= HOST_NAME_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if good {
        Ok(Some(name.to_owned()))
    } else {
        Err(Failure::new(format!("Invalid value {name:?} of the option --hostname"))
            .cause(format!("a host name has at most {HOST_NAME_MAX} letters, digits, dots and dashes")))
    }
}

fn network(settings: &Settings) -> Result<bool, Failure> {
    let names = settings.text("network")?;
    match (settings.switch("net"), names) {
        (false, None) => Ok(false),
        (net, Some("none")) => {
            if !net {
                info!("Setting --net (required by --network)");
            }
            Ok(true)
        }
        (_, names) => Err(Failure::new(format!("The network {} is not available", names.unwrap_or("bridge")))
            .cause("networks need privileges, and containers here never have any")
            .hint("use --net --network none for a network namespace without connections")),
    }
}

fn dns(settings: &Settings) -> Result<Vec<String>, Failure> {
    list(settings, "dns")
        .into_iter()
        .map(|name| {
            let text = name.to_string_lossy().trim().to_owned();
            match text.parse::<IpAddr>() {
                Ok(_) => Ok(text),
                Err(_) => Err(Failure::new(format!("DNS nameserver {text} is not a valid IP address"))),
            }
        })
        .collect()
}

/// Libraries of GPUs are not bound yet: a job that needs them must not start
/// as if they were there.
fn gpu(settings: &Settings) -> Result<(), Failure> {
    for (option, device, files) in [("nv", "/dev/nvidiactl", "nv"), ("rocm", "/dev/kfd", "rocm")] {
        if !settings.switch(option) || settings.switch(&format!("no-{option}")) {
            continue;
        }
        if Path::new(device).exists() {
            return Err(Failure::new(format!("The option --{option} is not supported yet"))
                .cause("the libraries of the host's GPU driver cannot be bound")
                .hint(format!("without --{option} the devices are visible; bind the libraries with --bind")));
        }
        warning!("Could not find any {files} files on this host!");
    }
    Ok(())
}

/// Values of an option that are separated by commas.
fn list(settings: &Settings, long: &str) -> Vec<OsString> {
    settings
        .values(long)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter(|part| !part.is_empty())
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}

fn absolute(option: &str, path: &OsStr) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(format!("Invalid value {:?} of the option {option}", path.to_string_lossy())).cause(reason(&error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{self, Environment, Request},
        flavour::Invocation,
    };

    fn options_with(args: &[&str], env: &[(&str, &str)]) -> Result<LaunchOptions, Failure> {
        let mut line: Vec<OsString> = vec!["exec".into()];
        line.extend(args.iter().map(Into::into));
        line.extend(["i.sif".into(), "true".into()]);
        let invocation = Invocation::from_argv0("apptainer".as_ref());
        match cli::parse(invocation, &line, &Environment::of(env)) {
            Ok(Request::Do(task)) => launch_options(Flavour::Apptainer, &task.settings, &Config::default()),
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn options(args: &[&str]) -> LaunchOptions {
        options_with(args, &[]).unwrap()
    }

    #[test]
    fn containall_is_the_sum_of_its_parts() {
        let all = options(&["-C"]);
        assert!(all.contain && all.pid && all.ipc && all.cleanenv && !all.uts && !all.no_umask);
        let contain = options(&["-c"]);
        assert!(contain.contain && !contain.pid && !contain.cleanenv);
        let compat = options(&["--compat"]);
        assert!(compat.contain && compat.no_init && compat.no_umask && compat.writable_tmpfs);
    }

    #[test]
    fn homes() {
        let custom =
            |source: &str, destination: &str| Home::Custom { source: source.into(), destination: destination.into() };
        assert_eq!(options(&[]).home, Home::Default);
        assert_eq!(options(&["--no-home"]).home, Home::None);
        assert_eq!(options(&["-H", "/a"]).home, custom("/a", "/a"));
        assert_eq!(options(&["-H", "/a:/b"]).home, custom("/a", "/b"));
        let failure = options_with(&["-H", "a:b:c"], &[]).unwrap_err();
        assert_eq!(failure.causes, ["home argument has incorrect number of elements"]);
    }

    #[test]
    fn mounts_of_sites_can_be_left_out() {
        assert_eq!(options(&[]).site_binds.len(), 2);
        assert_eq!(options(&["--no-mount", "bind-paths"]).site_binds.len(), 0);
        assert_eq!(options(&["--no-mount", "/etc/hosts,tmp,what"]).site_binds.len(), 1);
        assert!(options(&["--no-mount", "/etc/hosts,tmp,what"]).no_mount.tmp);
    }

    #[test]
    fn networks_other_than_none_are_refused() {
        assert!(options(&["--net", "--network", "none"]).net);
        assert!(options(&["--network=none"]).net);
        assert!(!options(&[]).net);
        for args in [&["--net"][..], &["--network", "bridge"]] {
            assert!(options_with(args, &[]).unwrap_err().message.contains("bridge"), "{args:?}");
        }
    }

    #[test]
    fn names_and_addresses_are_checked() {
        let named = options(&["--hostname", "node-1.x"]);
        assert!(named.uts && named.hostname.as_deref() == Some("node-1.x"));
        assert!(options_with(&["--hostname", "a b"], &[]).is_err());
        assert_eq!(options(&["--dns", "1.1.1.1,::1"]).dns, ["1.1.1.1", "::1"]);
        assert!(options_with(&["--dns", "x"], &[]).is_err());
        assert_eq!(options(&["-S", "/a,b"]).scratch, [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn binds_of_variables_and_options_add_up() {
        let env = [
            ("APPTAINER_BIND", "/a"),
            ("APPTAINER_BINDPATH", "/b"),
            ("APPTAINER_MOUNT", "src=/c,dst=/c\nsrc=/d,dst=/d"),
        ];
        let options = options_with(&["-B", "/e:/f:ro"], &env).unwrap();
        let destinations: Vec<_> = options.binds.iter().map(|bind| bind.destination.to_str().unwrap()).collect();
        assert_eq!(destinations, ["/a", "/b", "/f", "/c", "/d"]);
    }
}
