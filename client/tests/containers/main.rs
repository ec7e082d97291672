//! Containers as a user sees them: exit codes, mounts, environment, processes.

mod mounts;
mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{Bench, USER, ready, stderr, stdout};

/// The same image as a directory and as squashfs: both must behave alike.
fn both(bench: &Bench) -> [PathBuf; 2] {
    [bench.path("tree"), bench.squashfs("tree", "image.squashfs")]
}

fn home() -> String {
    let output = Command::new("sh").args(["-c", &format!("echo ~{USER}")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Processes of the user that serve FUSE.
fn servers() -> usize {
    let alive = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tsctl-fuse\n") && !status.contains("State:\tZ")
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| alive(&entry.file_name().to_string_lossy())).count()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn privileged_exit_codes_and_signals_pass() {
    if !ready("privileged_exit_codes_and_signals_pass") {
        return;
    }
    let bench = Bench::new();
    for image in both(&bench) {
        for options in [&[][..], &["--pid"], &["--containall"], &["--pid", "--no-init"]] {
            let code = |script: &str| bench.sh(options, &image, script).status;
            assert_eq!(code("exit 0").code(), Some(0), "{image:?} {options:?}");
            assert_eq!(code("exit 7").code(), Some(7), "{image:?} {options:?}");
            // runuser tells the death of its child as a shell does. PID 1 of a
            // namespace cannot kill itself.
            if !options.contains(&"--no-init") {
                let status = code("kill -TERM $$");
                assert!(status.code() == Some(143) || status.signal() == Some(15), "{image:?} {options:?} {status}");
            }
        }
        let fails = |program: &str| {
            let output = bench.command(["exec".as_ref(), image.as_os_str(), program.as_ref()]).output().unwrap();
            assert_eq!(output.status.code(), Some(255), "{program}");
            stderr(&output)
        };
        assert_eq!(fails("nosuch"), "FATAL:   \"nosuch\": executable file not found in $PATH\n");
        assert!(fails("/no/such").contains("no such file or directory"));
        assert!(fails("/etc/passwd").contains("cause: Permission denied"));
    }
}

#[test]
fn privileged_signals_from_outside_reach_the_payload() {
    if !ready("privileged_signals_from_outside_reach_the_payload") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    for options in [&[][..], &["--pid"]] {
        let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        // Not by runuser, which passes on no signal: the pid must be known.
        let mut command = Command::new("setpriv");
        let id = |flag: &str| {
            let output = Command::new("id").args([flag, USER]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        command.args(["--reuid", &id("-u"), "--regid", &id("-g"), "--clear-groups"]);
        command.arg(bench.path("sctl")).arg("exec").args(options).arg(&image).args(["sh", "-c", script]);
        let Ok(mut child) = command.env_clear().current_dir("/").stdout(Stdio::piped()).spawn() else {
            eprintln!("SKIPPED privileged_signals_from_outside_reach_the_payload: setpriv is not installed");
            return;
        };
        let mut out = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        out.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(3)), "{options:?}");
    }
}

#[test]
fn privileged_the_payload_has_no_privileges_and_nothing_of_ours() {
    if !ready("privileged_the_payload_has_no_privileges_and_nothing_of_ours") {
        return;
    }
    let bench = Bench::new();
    for image in both(&bench) {
        for options in [&[][..], &["--containall"]] {
            let status = stdout(&bench.sh(options, &image, "cat /proc/self/status"));
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{set} of {image:?}: {status}");
            }
            assert!(status.contains("NoNewPrivs:\t1\n"));
            assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
            // `ls` itself has the directory open.
            let fds = stdout(&bench.sh(
                options,
                &image,
                "cd /proc/self/fd; for f in *; do [ -e $f ] && echo $f; done; exit 0",
            ));
            let fds: Vec<&str> = fds.split_whitespace().filter(|fd| fd.parse::<u32>().unwrap() < 10).collect();
            assert_eq!(fds, ["0", "1", "2"], "{image:?} {options:?}");
            let children = stdout(&bench.sh(options, &image, "cat /proc/$$/task/$$/children; exit 0"));
            assert_eq!(children.split_whitespace().count(), 1, "only `cat` itself: {children:?}");
        }
        let mounts = stdout(&bench.sh(&[], &image, "cat /proc/self/mountinfo"));
        assert_eq!(mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count(), 1, "{mounts}");
        let first = mounts.lines().next().unwrap();
        assert!(first.contains(" / ro,nosuid,nodev"), "{first}");
        let output = bench.sh(&[], &image, "touch /x; touch /bin/x; touch /home/x; exit 0");
        assert_eq!(stderr(&output).matches("Read-only file system").count(), 3, "{}", stderr(&output));
    }
}

#[test]
fn privileged_defaults_are_mounted() {
    if !ready("privileged_defaults_are_mounted") {
        return;
    }
    let bench = Bench::new();
    let home = home();
    for image in both(&bench) {
        let script = "id -un; id -gn; pwd; echo $HOME; touch ~/.sctl-test && rm ~/.sctl-test && echo home; \
                      touch /tmp/.sctl-test-$$ && rm /tmp/.sctl-test-$$ && echo tmp; ls /proc/self/status; ls -d /sys/class";
        let output = bench.command(["exec".as_ref(), image.as_os_str(), "sh".as_ref(), "-c".as_ref(), script.as_ref()]);
        let mut output = output;
        let text = stdout(&output.current_dir(&home).output().unwrap());
        let lines: Vec<&str> = text.lines().collect();
        let expected = [USER, USER, &home, &home, "home", "tmp", "/proc/self/status", "/sys/class"];
        assert_eq!(lines, expected, "{image:?}");
        let text = stdout(&bench.sh(
            &["--no-home", "--no-mount", "tmp,cwd"],
            &image,
            &format!("ls -d {home} 2>&1; ls /tmp | wc -l"),
        ));
        assert!(text.contains("No such file") && text.ends_with("\n0\n"), "{text}");
        let contained = stdout(&bench.sh(
            &["--contain"],
            &image,
            "pwd; ls -a ~ | wc -l; ls /tmp | wc -l; ls /dev | wc -l; cat /dev/null; echo x > /tmp/x; cat /tmp/x",
        ));
        assert_eq!(contained.lines().take(3).collect::<Vec<_>>(), [&home[..], "2", "0"]);
        assert!(contained.ends_with("\nx\n"), "{contained}");
        let pid = stdout(&bench.sh(&["--containall"], &image, "echo $$; ps | wc -l; readlink /proc/self/ns/pid"));
        assert!(pid.starts_with("2\n"), "{pid}");
    }
}

#[test]
fn privileged_binds_make_their_places() {
    if !ready("privileged_binds_make_their_places") {
        return;
    }
    let bench = Bench::new();
    bench.write("host/file", "from the host\n");
    fs::create_dir(bench.path("host/mine")).unwrap();
    let host = bench.path("host").display().to_string();
    let file = format!("{host}/file");
    for image in both(&bench) {
        let bind = |spec: &str, script: &str| bench.sh(&["--bind", spec], &image, script);
        let show = |spec: &str, path: &str| {
            stdout(&bind(spec, &format!("cat {path}; ls /bin/busybox /etc/passwd > /dev/null")))
        };
        assert_eq!(show(&format!("{host}:/data"), "/data/file"), "from the host\n");
        assert_eq!(show(&format!("{host}:/new/place"), "/new/place/file"), "from the host\n");
        assert_eq!(show(&format!("{host}:/bin/dir"), "/bin/dir/file"), "from the host\n");
        assert_eq!(show(&format!("{file}:/etc/added"), "/etc/added"), "from the host\n");
        assert_eq!(show(&format!("{file}:/etc/passwd"), "/etc/passwd"), "from the host\n");
        let both = format!("{host}:/new,{file}:/etc/deep/er/file,{host}:/new2/x/y,{file}:/new2/x/z");
        let script = "cat /new/file /etc/deep/er/file /new2/x/y/file /new2/x/z; touch /new2/x/n 2>&1; id -un";
        let text = stdout(&bind(&both, script));
        assert_eq!(text.matches("from the host").count(), 4, "{text}");
        assert!(text.contains("Read-only") && text.ends_with(&format!("{USER}\n")), "{text}");
        let refused = bind(&format!("{host}:/tmp/nowhere/at/all"), "true");
        assert_eq!(refused.status.code(), Some(255));
        assert!(stderr(&refused).contains("destination /tmp/nowhere/at/all doesn't exist in container"));
        let refused = bind(&format!("{file}:/data"), "true");
        assert!(stderr(&refused).contains("/data is a directory in the container, not a file"), "{}", stderr(&refused));
        let refused = bind("/no/such/source:/data", "true");
        assert_eq!(stderr(&refused), "FATAL:   mount source /no/such/source doesn't exist\n");
        // In what the caller has bound, missing places are made.
        let mine = format!("{host}/mine");
        let nested = format!("{mine}:/Q,{file}:/Q/made/file,{host}:/Q/dir");
        assert!(stderr(&bind(&nested, "true")).contains("cannot make /Q/dir in the container"), "it is root's");
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(show(&nested, "/Q/made/file /Q/dir/file"), "from the host\nfrom the host\n");
        assert!(fs::metadata(format!("{mine}/made/file")).unwrap().is_file());
        let work = format!("{mine}/work");
        fs::create_dir(&work).unwrap();
        fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
        let below_work = ["--contain", "--workdir", &work, "--bind", &format!("{host}:/tmp/new")];
        assert_eq!(stdout(&bench.sh(&below_work, &image, "cat /tmp/new/file")), "from the host\n");
        for made in fs::read_dir(&mine).unwrap() {
            fs::remove_dir_all(made.unwrap().path()).unwrap();
        }
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o755)).unwrap();
        // All of the host, and not what the launcher has mounted over it.
        assert_eq!(
            show(&format!("/:/all,{host}:/data"), "/all/etc/hostname"),
            fs::read_to_string("/etc/hostname").unwrap()
        );
        assert_eq!(stdout(&bind("/:/all,/..:/again", "test -e /again/proc/self && echo ok")), "ok\n");
        let covered = bind(&format!("{host}:/"), "true");
        assert_eq!(covered.status.code(), Some(255));
        assert!(stderr(&covered).contains("mount destination / is the container's root"), "{}", stderr(&covered));
        // The first one counts, and the other one is told of.
        let twice = bind(&format!("{file}:/etc/twice,/etc/hostname:/etc/twice"), "cat /etc/twice");
        assert_eq!(stdout(&twice), "from the host\n");
        let warning = "WARNING: While bind mounting '/etc/hostname:/etc/twice': destination /etc/twice is already";
        assert!(stderr(&twice).starts_with(warning), "{}", stderr(&twice));
        let read_only = bind(&format!("{host}:/data:ro"), "touch /data/x");
        assert!(stderr(&read_only).contains("Read-only"));
    }
}

#[test]
fn privileged_links_of_an_image_lead_nowhere_outside() {
    if !ready("privileged_links_of_an_image_lead_nowhere_outside") {
        return;
    }
    let bench = Bench::new();
    bench.write("host/file", "from the host\n");
    let (host, outside) = (bench.path("host"), bench.path("outside"));
    fs::create_dir(&outside).unwrap();
    bench.link(outside.to_str().unwrap(), "tree/absolute");
    bench.link("../../../../../../../../../../../..", "tree/above");
    bench.link("/proc/self/root", "tree/magic");
    bench.link("/run/sub", "tree/inside");
    bench.link("ring", "tree/ring");
    for image in both(&bench) {
        let bind =
            |place: &str, script: &str| bench.sh(&["--bind", &format!("{}:{place}", host.display())], &image, script);
        // Followed inside of the container, where the place is made.
        for (place, seen) in [
            ("/absolute/x", format!("{}/x/file", outside.display())),
            ("/absolute", format!("{}/file", outside.display())),
            ("/above/data", "/data/file".to_owned()),
            ("/inside", "/run/sub/file".to_owned()),
            ("/above/above/new", "/new/file".to_owned()),
        ] {
            let output = bind(place, &format!("cat {seen}"));
            // Below /tmp the place would be in the host's, which stays as it is.
            let text = stderr(&output);
            assert!(output.status.success() || text.contains("doesn't exist in container"), "{place}: {text}");
        }
        assert!(!bind("/ring/x", "true").status.success());
        assert!(!bind("/magic/data", "true").status.success() || image.is_file());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
    }
}

#[test]
fn privileged_environment_follows_the_rules() {
    if !ready("privileged_environment_follows_the_rules") {
        return;
    }
    let bench = Bench::new();
    let config = r#"{"Env":["PATH=/opt/bin:/bin","A=image","Q=a \"b\" $c `d`"],"Entrypoint":["/bin/env"]}"#;
    let own = bench.own_sif("own.sif", config);
    for dir in ["actions", "env", "libs"] {
        fs::create_dir_all(bench.path("tree/.singularity.d").join(dir)).unwrap();
    }
    bench.script(
        "tree/.singularity.d/env/10-docker2singularity.sh",
        "export PATH=/opt/bin:/bin\nexport A=${A:-image}\nexport Q='a \"b\" $c `d`'\n",
    );
    bench.script(
        "tree/.singularity.d/env/99-base.sh",
        "export LD_LIBRARY_PATH=/.singularity.d/libs PS1='Singularity> '\n",
    );
    let third = bench.squashfs("tree", "third.squashfs");
    for image in [own, third] {
        let mut command =
            bench.command(["exec".as_ref(), "--env".as_ref(), "OPT=o".as_ref(), image.as_os_str(), "env".as_ref()]);
        command.env("A", "host").env("B", "host b").env("APPTAINERENV_C", "injected $x").env("SINGULARITYENV_A2", "s");
        command.env("SINGULARITYENV_PREPEND_PATH", "/first").env("LD_LIBRARY_PATH", "/host");
        let text = stdout(&command.output().unwrap());
        let get = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        assert_eq!(get("A"), Some("image"), "{image:?}: {text}");
        assert_eq!(get("B"), Some("host b"), "{image:?}");
        assert_eq!(get("C"), Some("injected $x"), "{image:?}");
        assert_eq!(get("A2"), Some("s"), "{image:?}");
        assert_eq!(get("OPT"), Some("o"), "{image:?}");
        assert_eq!(get("Q"), Some("a \"b\" $c `d`"), "{image:?}");
        assert_eq!(get("LD_LIBRARY_PATH"), Some("/.singularity.d/libs"), "{image:?}");
        let path = "/first:/opt/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin";
        assert_eq!(get("PATH"), Some(path), "{image:?}");
        assert_eq!(get("SINGULARITY_CONTAINER"), Some(image.to_str().unwrap()));
        assert_eq!(get("HOME"), Some(home().as_str()));
        assert!(!text.contains("SCTL_VALUE") && !text.contains("ENV_"), "{text}");
        let output = bench.command(["exec".as_ref(), image.as_os_str(), "nosuch".as_ref()]).output().unwrap();
        assert_eq!(stderr(&output), "FATAL:   \"nosuch\": executable file not found in $PATH\n", "{image:?}");
        assert_eq!(output.status.code(), Some(255));
    }
}

#[test]
fn privileged_argv_is_exact_and_needs_no_shell() {
    if !ready("privileged_argv_is_exact_and_needs_no_shell") {
        return;
    }
    let bench = Bench::new();
    fs::remove_file(bench.path("tree/bin/sh")).unwrap();
    let config = r#"{"Entrypoint":["/bin/busybox","printf","<%s>"],"Cmd":["the","cmd"]}"#;
    let image = bench.own_sif("own.sif", config);
    let run = |args: &[&str]| {
        let args = [&["run", image.to_str().unwrap()], args].concat();
        stdout(&bench.command(args).output().unwrap())
    };
    assert_eq!(run(&[]), "<the><cmd>");
    assert_eq!(run(&["", "a b", "$HOME", "'", "\"", "*", "--x"]), "<><a b><$HOME><'><\"><*><--x>");
    // Without a shell an image of others cannot set its environment.
    bench.script("tree/.singularity.d/env/90-environment.sh", "export X=1\n");
    let third = bench.squashfs("tree", "third.squashfs");
    let output = bench.command(["exec".as_ref(), third.as_os_str(), "/bin/true".as_ref()]).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(stderr(&output).starts_with("FATAL:   /bin/sh does not exist in container\n"), "{}", stderr(&output));
    // With no scripts there is no need for one.
    let plain = bench.own_sif("plain.sif", "{}");
    assert!(bench.command(["exec".as_ref(), plain.as_os_str(), "/bin/true".as_ref()]).status().unwrap().success());
    let output = bench.command(["run".as_ref(), plain.as_os_str()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn privileged_runscripts_and_shells() {
    if !ready("privileged_runscripts_and_shells") {
        return;
    }
    let bench = Bench::new();
    let plain = bench.path("tree");
    let mut command = bench.command(["run".as_ref(), plain.as_os_str(), "-c".as_ref(), "echo $0".as_ref()]);
    let output = command.output().unwrap();
    assert_eq!(stdout(&output), "/bin/sh\n");
    assert_eq!(stderr(&output), "INFO:    No runscript found in container, executing /bin/sh\n");
    let mut command = bench.command(["shell".as_ref(), plain.as_os_str()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"echo $0 $SHELL $PS1\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "/bin/sh /bin/sh Singularity>\n");
    bench.script("tree/.singularity.d/runscript", "#!/bin/sh\necho \"run:$X:$*\"\n");
    bench.script("tree/.singularity.d/env/90-environment.sh", "export X=set\n");
    for image in both(&bench) {
        let output = bench.command(["run".as_ref(), image.as_os_str(), "a b".as_ref(), "c".as_ref()]).output().unwrap();
        assert_eq!(stdout(&output), "run:set:a b c\n", "{image:?}");
    }
}

#[test]
fn privileged_the_server_ends_with_the_container() {
    if !ready("privileged_the_server_ends_with_the_container") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    let count = |name: &str| name.contains(bench.path("").to_str().unwrap());
    let mine = || {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                let Ok(fds) = fs::read_dir(entry.path().join("fd")) else { return false };
                fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| count(&path.to_string_lossy())))
            })
            .count()
    };
    // What is left in the background keeps the image, and nothing else.
    let output = bench.sh(&[], &image, "(sleep 1; cat /bin/busybox | wc -c) > /dev/null 2>&1 & echo started");
    assert_eq!(stdout(&output), "started\n");
    assert!(mine() >= 1, "the server is there as long as it is needed");
    assert!(servers() >= 1);
    wait_until("the server is gone", || mine() == 0);
    // A pipe ends with the payload, whoever serves the files.
    let start = Instant::now();
    let mut child = bench
        .command([
            "exec".as_ref(),
            image.as_os_str(),
            "sh".as_ref(),
            "-c".as_ref(),
            "sleep 5 > /dev/null 2>&1 & echo x".as_ref(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), start.elapsed() < Duration::from_secs(4)), ("x\n", true));
    assert!(child.wait().unwrap().success());
}

#[test]
fn privileged_a_killed_server_gives_errors_and_no_hang() {
    if !ready("privileged_a_killed_server_gives_errors_and_no_hang") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    let script = "echo ready; read x; exec /bin/nosuch";
    let mut command =
        bench.command(["exec".as_ref(), image.as_os_str(), "sh".as_ref(), "-c".as_ref(), script.as_ref()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let holds = fs::read_dir(entry.path().join("fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == image)));
        let pid = entry.file_name().to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw);
        if let (true, Some(pid)) = (holds, pid) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert_eq!(killed, 1, "one process has the image open");
    drop(child.stdin.take());
    let start = Instant::now();
    wait_until("the payload sees an error", || child.try_wait().unwrap().is_some());
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!child.wait().unwrap().success());
}

#[test]
fn privileged_many_start_at_once() {
    if !ready("privileged_many_start_at_once") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    let children: Vec<_> = (0..50)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            bench
                .command(["exec".as_ref(), image.as_os_str(), "sh".as_ref(), "-c".as_ref(), script.as_ref()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(number as i32));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{number}\n"));
    }
}

#[test]
fn privileged_writable_tmpfs_is_thrown_away() {
    if !ready("privileged_writable_tmpfs_is_thrown_away") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    let output = bench.sh(
        &["--writable-tmpfs"],
        &image,
        "echo new > /bin/new && cat /bin/new && rm /bin/true && ! ls /bin/true 2>/dev/null",
    );
    if stderr(&output).contains("Unable to make the container writable") {
        eprintln!("SKIPPED privileged_writable_tmpfs_is_thrown_away: no overlay in user namespaces here");
        return;
    }
    assert_eq!(stdout(&output), "new\n");
    assert_eq!(stdout(&bench.sh(&[], &image, "ls /bin/new 2>/dev/null; ls /bin/true")), "/bin/true\n");
}

#[test]
fn privileged_odd_surroundings_are_survived() {
    if !ready("privileged_odd_surroundings_are_survived") {
        return;
    }
    let bench = Bench::new();
    for image in both(&bench) {
        let bare = |before: &str| {
            let sctl = bench.path("sctl");
            let line = format!("{before} {} exec {} sh -c 'pwd; id -u'", sctl.display(), image.display());
            Command::new("runuser").args(["-u", USER, "--", "sh", "-c", &line]).current_dir("/").output().unwrap()
        };
        assert!(stdout(&bare("exec env -i")).ends_with('\n'));
        assert!(bare("exec <&- 2>&-; ").status.success());
        let gone = bare("mkdir /tmp/.sctl-gone-$$; cd /tmp/.sctl-gone-$$; rmdir /tmp/.sctl-gone-$$;");
        assert_eq!(stdout(&gone).lines().next(), Some(home().as_str()));
        assert!(stderr(&gone).contains("Error changing the container working directory"), "{}", stderr(&gone));
        let output = bench.sh(&["--pwd", "/nowhere"], &image, "true");
        assert_eq!(output.status.code(), Some(255));
    }
}

#[test]
fn privileged_what_is_missing_is_named() {
    if !ready("privileged_what_is_missing_is_named") {
        return;
    }
    let bench = Bench::new();
    let image = bench.squashfs("tree", "image.squashfs");
    let sctl = bench.path("sctl");
    let line =
        |before: &str, run: &str| format!("{before} && {run} {} exec {} /bin/true", sctl.display(), image.display());
    let no_fuse = "mount -t tmpfs none /mnt && for n in null zero; do touch /mnt/$n && mount --bind /dev/$n /mnt/$n; \
                   done && mount --bind /mnt /dev && mount --make-rprivate /";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &line(no_fuse, &format!("exec runuser -u {USER} --"))])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("FATAL:   Unable to open /dev/fuse\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains("modprobe fuse"));
    let no_namespaces = "echo 0 > /proc/sys/user/max_user_namespaces";
    let output = Command::new("unshare")
        .args(["-Ur", "sh", "-c", &line(no_namespaces, "exec")])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("FATAL:   Unable to create a user namespace\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains("user.max_user_namespaces"), "{}", stderr(&output));
}

#[test]
fn privileged_damaged_images_are_refused() {
    if !ready("privileged_damaged_images_are_refused") {
        return;
    }
    let bench = Bench::new();
    let good = fs::read(bench.squashfs("tree", "image.squashfs")).unwrap();
    let bad = bench.path("bad.squashfs");
    for len in [96, 4096, good.len() / 2] {
        fs::write(&bad, &good[..len.max(2048)]).unwrap();
        let output = bench.sh(&[], &bad, "true");
        assert_eq!(output.status.code(), Some(255), "{len}");
        assert!(stderr(&output).starts_with("FATAL:   Unable to"), "{}", stderr(&output));
        assert!(stderr(&output).contains("\n  cause: "), "{}", stderr(&output));
    }
    // Tables that point anywhere: whatever happens, it ends.
    for at in (8..96).step_by(8) {
        let mut image = good.clone();
        image[at..at + 8].copy_from_slice(&0x00ff_ffff_ffff_ff00u64.to_le_bytes());
        fs::write(&bad, &image).unwrap();
        let start = Instant::now();
        bench.sh(&[], &bad, "ls -R /bin /etc; true");
        assert!(start.elapsed() < Duration::from_secs(10), "{at}");
    }
}
