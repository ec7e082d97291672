//! SIF files in a user's own hands, without any daemon: run by their name,
//! looked into, and those that others have made.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
};

use sctl_common::{CONVERTER_VERSION, Digest, METADATA_VERSION};
use sctl_tests::{
    corpus::pseudo_random,
    daemon::{Daemon, User},
    debian,
    programs::{Scratch, have_program, have_root, programs, stderr, stdout, succeeded},
    registry::Registry,
    sif::siftool,
};
use serde_json::{Value, json};

/// What a shell, or a second look at the words, would spoil.
const WORDS: [&str; 12] =
    ["two  words", "", "$HOME `id` $(id)", "'", "\"", "\\", "*", "-n", "--", "a\nb", "--help", "ümlaut"];

/// What `printf '[%s]\n'` makes of `words`.
fn shown(words: &[&str]) -> String {
    words.iter().map(|word| format!("[{word}]\n")).collect()
}

/// Pulls busybox with another config into `folder`, as `user`; the daemon and
/// the registry are gone afterwards. Answers `registry/repository@digest`.
fn pull(user: &User, folder: &Path, config: &Value, name: &str) -> String {
    let registry = Registry::start();
    let image = debian::busybox().config(config.clone());
    let digest = registry.seed(&image, "tool:1");
    let uri = format!("docker://{}", registry.reference("tool:1"));
    succeeded(&Daemon::system("").pull(user, folder, &[name, &uri]));
    format!("{}@{digest}", registry.reference("tool"))
}

/// A program as `user` in `folder`, where `run-singularity` is found in PATH.
fn command(user: &User, folder: &Path, program: &str) -> Command {
    let mut command = user.command(program);
    command.current_dir(folder).env("PATH", format!("{}:/usr/bin:/bin", programs().display()));
    command
}

fn sctl(user: &User, folder: &Path, arguments: &[&str]) -> Output {
    command(user, folder, "sctl").args(arguments).output().expect("run sctl")
}

#[test]
fn privileged_a_sif_runs_by_its_own_name() {
    if !have_root("privileged_a_sif_runs_by_its_own_name") {
        return;
    }
    let scratch = Scratch::new();
    let user = User::a();
    let folder = user.folder(&scratch, "own");
    let path = json!(["PATH=/bin"]);
    let entrypoint = json!(["printf", "[%s]\\n", "of the ENTRYPOINT", "$HOME"]);
    let cmd = json!(["of the CMD", "*"]);
    pull(&user, &folder, &json!({"Env": path, "Entrypoint": entrypoint, "Cmd": cmd}), "both.sif");
    pull(&user, &folder, &json!({"Env": path, "Entrypoint": entrypoint}), "entrypoint.sif");
    let cmd_alone = json!(["printf", "[%s]\\n", "of the CMD", "*"]);
    pull(&user, &folder, &json!({"Env": path, "Cmd": cmd_alone}), "cmd.sif");
    let run = |program: &str, arguments: &[&str]| -> Output {
        command(&user, &folder, program).args(arguments).output().expect("run the SIF")
    };
    let head = ["of the ENTRYPOINT", "$HOME"];
    let with_words = [&head[..], &WORDS].concat();
    let replaced = [&["printf", "[%s]\\n"][..], &WORDS].concat();
    let cases: [(&str, &[&str], String); 6] = [
        ("./both.sif", &[], shown(&[head[0], head[1], "of the CMD", "*"])),
        ("./both.sif", &WORDS, shown(&with_words)),
        ("./entrypoint.sif", &[], shown(&head)),
        ("./entrypoint.sif", &WORDS, shown(&with_words)),
        ("./cmd.sif", &[], shown(&["of the CMD", "*"])),
        ("./cmd.sif", &replaced, shown(&WORDS)),
    ];
    for (program, arguments, expected) in &cases {
        let output = run(program, arguments);
        assert_eq!(succeeded(&output), *expected, "{program} {arguments:?}");
        // Nothing but the program speaks.
        assert_eq!(stderr(&output), "", "{program} {arguments:?}");
    }

    // By other names: links from elsewhere, and a name that PATH leads to.
    let elsewhere = user.folder(&scratch, "a folder");
    symlink("../own/both.sif", elsewhere.join("a tool")).expect("make a link");
    symlink("a tool", elsewhere.join("second")).expect("make a link to the link");
    let by_path = elsewhere.join("second").display().to_string();
    for program in ["../a folder/a tool", "../a folder/second", &by_path] {
        assert_eq!(succeeded(&run(program, &WORDS)), shown(&with_words), "{program}");
    }
    let mut found = command(&user, Path::new("/"), "second");
    found.env("PATH", format!("{}:{}:/usr/bin:/bin", elsewhere.display(), programs().display()));
    assert_eq!(succeeded(&found.args(WORDS).output().expect("run the SIF")), shown(&with_words));

    // What becomes of the program becomes of the SIF.
    for code in [0, 1, 7, 126, 255] {
        let output = run("./cmd.sif", &["sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    }
    let output = run("./cmd.sif", &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(output.status.signal(), Some(15), "{:?} {}", output.status, stderr(&output));
    let output = run("./cmd.sif", &["no-such-program"]);
    assert_eq!(output.status.code(), Some(255));
    assert!(stderr(&output).contains("FATAL:   \"no-such-program\": executable file not found in $PATH"));

    // It is the user's own process, with the user's own input.
    let output = run("./cmd.sif", &["id", "-u"]);
    assert_eq!(succeeded(&output).trim(), user.uid.to_string());
    let input = fs::File::open(folder.join("cmd.sif")).expect("open a file to be read");
    let mut counting = command(&user, &folder, "./cmd.sif");
    let output = counting.args(["busybox", "wc", "-c"]).stdin(input).output().expect("run the SIF");
    let len = fs::metadata(folder.join("cmd.sif")).expect("the SIF is there").len();
    assert_eq!(succeeded(&output).trim(), len.to_string());
}

#[test]
fn privileged_inspect_shows_what_a_pulled_image_says_of_itself() {
    if !have_root("privileged_inspect_shows_what_a_pulled_image_says_of_itself") {
        return;
    }
    let scratch = Scratch::new();
    let user = User::a();
    let folder = user.folder(&scratch, "own");
    let config = json!({
        "Env": ["PATH=/bin", "GREETING=it's \"so\" $far"],
        "Entrypoint": ["/bin/printf", "[%s]\\n"],
        "Cmd": ["two words"],
        "Labels": {"z.last": "of the image", "a.first": "1", "org.label-schema.build-date": "replaced"},
    });
    let from = pull(&user, &folder, &config, "x.sif");
    let (name, digest) = from.split_once('@').expect("a name and a digest");
    let inspect = |options: &[&str]| -> String {
        let output = sctl(&user, &folder, &[&["inspect"], options, &["x.sif"]].concat());
        let text = succeeded(&output);
        assert_eq!(stderr(&output), "", "{options:?}: pure results");
        text
    };
    let labels: BTreeMap<String, String> = [
        ("a.first", "1"),
        ("org.label-schema.build-arch", "amd64"),
        ("org.label-schema.build-date", "Wednesday_3_February_2021_4:5:6_UTC"),
        ("org.label-schema.schema-version", "1.0"),
        ("org.label-schema.usage.singularity.deffile.bootstrap", "docker"),
        ("org.label-schema.usage.singularity.deffile.from", &from),
        ("org.label-schema.usage.singularity.version", &format!("sctl-{CONVERTER_VERSION}.{METADATA_VERSION}")),
        ("org.opencontainers.image.architecture", "amd64"),
        ("org.opencontainers.image.base.digest", digest),
        ("org.opencontainers.image.base.name", name),
        ("org.opencontainers.image.created", "2021-02-03T04:05:06Z"),
        ("z.last", "of the image"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let label_lines: String = labels.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    let deffile = format!("bootstrap: docker\nfrom: {from}\n");
    // What is shown is what is inside.
    let inside = |path: &str| succeeded(&sctl(&user, &folder, &["exec", "x.sif", "cat", path]));
    let runscript = inside("/.singularity.d/runscript");
    assert!(runscript.starts_with("#!/bin/sh\n"), "{runscript}");
    for line in ["OCI_ENTRYPOINT='\"/bin/printf\" \"[%s]\\\\n\"'", "OCI_CMD='\"two words\"'"] {
        assert!(runscript.lines().any(|found| found == line), "{line} is not in: {runscript}");
    }
    let paths = ["/.singularity.d/env/10-docker2singularity.sh", "/.singularity.d/env/90-environment.sh"];
    let scripts = paths.map(|path| (path, inside(path)));
    assert!(scripts[0].1.contains("GREETING="), "{}", scripts[0].1);
    let environment: String = scripts.iter().map(|(path, text)| format!("=== {path} ===\n{text}\n")).collect();
    let startscript = "#!/bin/sh\n".to_owned();

    for (options, expected) in [
        (&[][..], &label_lines),
        (&["--labels"], &label_lines),
        (&["-l"], &label_lines),
        (&["--deffile"], &deffile),
        (&["-d"], &deffile),
        (&["--runscript"], &runscript),
        (&["-r"], &runscript),
        (&["--startscript"], &startscript),
        (&["--environment"], &environment),
        (&["-e"], &environment),
        (&["--test"], &String::new()),
        (&["--helpfile"], &String::new()),
        (&["--list-apps"], &String::new()),
        (&["-l", "-e", "-r", "-d"], &[&deffile[..], &runscript, &environment, &label_lines].concat()),
    ] {
        assert_eq!(inspect(options), *expected, "{options:?}");
    }

    let trimmed = |text: &str| text.trim_end_matches('\n').to_owned();
    let scripts: BTreeMap<&str, String> = scripts.iter().map(|(path, text)| (*path, trimmed(text))).collect();
    let full = json!({
        "environment": scripts,
        "labels": labels,
        "runscript": trimmed(&runscript),
        "deffile": trimmed(&deffile),
        "startscript": trimmed(&startscript),
    });
    let part = |names: &[&str]| -> Value {
        let parts: BTreeMap<&str, &Value> = names.iter().map(|name| (*name, &full[name])).collect();
        json!({"data": {"attributes": parts}, "type": "container"})
    };
    for (options, parts) in [
        (&["--json"][..], &["labels"][..]),
        (&["-j", "--labels"], &["labels"]),
        (&["--json", "--runscript"], &["runscript"]),
        (&["--json", "--environment"], &["environment"]),
        (&["--json", "--deffile", "--labels"], &["deffile", "labels"]),
        (&["--json", "--helpfile"], &[]),
        (&["--all"], &["environment", "labels", "runscript", "deffile", "startscript"]),
        (&["--all", "--json"], &["environment", "labels", "runscript", "deffile", "startscript"]),
    ] {
        let text = inspect(options);
        let parsed: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{options:?}: {error}: {text}"));
        assert_eq!(parsed, part(parts), "{options:?}");
        assert!(text.starts_with("{\n\t\"data\": {\n\t\t\"attributes\": {"), "{options:?}: {text}");
        assert!(text.ends_with("},\n\t\"type\": \"container\"\n}\n"), "{options:?}: {text}");
    }

    let output = sctl(&user, &folder, &["inspect", "none.sif"]);
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(stderr(&output), "FATAL:   Failed to open image none.sif\n  cause: No such file or directory\n");
    assert_eq!(stdout(&output), "");
}

/// An image as Apptainer builds one from a definition file, in a folder.
struct Foreign {
    root: PathBuf,
    /// Files that take several blocks, one block and a part of one.
    data: Vec<(String, Vec<u8>)>,
}

const RUNSCRIPT: &str = "#!/bin/sh\nexec printf '[%s]\\n' \"$GREETING\" \"$@\"\n";
const OCI_SCRIPT: &str =
    "#!/bin/sh\nexport PATH=\"/opt/tool/bin:/bin\"\nexport FROM_IMAGE=\"${FROM_IMAGE:-\"of the image\"}\"\n";
const CUSTOM_SCRIPT: &str =
    "#!/bin/sh\n# Custom environment shell code should follow\n\nGREETING=\"hello, you\"\nexport GREETING\n";
const HELP: &str = "Ask somebody else.\n";
const DEFFILE: &str = "bootstrap: localimage\nfrom: base.sif\n\n%environment\n    GREETING=\"hello, you\"\n";

impl Foreign {
    fn new(scratch: &Scratch) -> Self {
        let root = scratch.join("root");
        let write = |path: &str, content: &[u8], mode: u32| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("it has a parent")).expect("make a folder");
            fs::write(&path, content).expect("write a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set a file's mode");
        };
        write("bin/busybox", &fs::read("/bin/busybox").expect("read busybox"), 0o755);
        for name in ["sh", "cat", "printf", "sha256sum", "env", "id"] {
            symlink("busybox", root.join("bin").join(name)).expect("make a link");
        }
        for folder in ["dev", "proc", "sys", "tmp", "var/tmp", "root", "home", ".singularity.d/libs"] {
            fs::create_dir_all(root.join(folder)).expect("make a folder");
        }
        write("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644);
        write("etc/group", b"root:x:0:\n", 0o644);
        write("opt/tool/bin/tool", b"#!/bin/sh\necho found by PATH\nexit 5\n", 0o755);
        let text: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
        let data = [
            ("data/text", text.into_bytes()),
            ("data/noise", pseudo_random(200_000, 1)),
            ("data/small", b"small".to_vec()),
        ];
        let data: Vec<_> = data.map(|(path, content)| (path.to_owned(), content)).into();
        data.iter().for_each(|(path, content)| write(path, content, 0o644));
        let script = |name: &str, text: &str| write(&format!(".singularity.d/{name}"), text.as_bytes(), 0o755);
        script("env/01-base.sh", "#!/bin/sh\n# \n");
        script("env/10-docker2singularity.sh", OCI_SCRIPT);
        script("env/90-environment.sh", CUSTOM_SCRIPT);
        script(
            "env/94-appsbase.sh",
            "#!/bin/sh\nif test -d \"/scif/apps\"; then\n    SCIF_APPS=/scif/apps\n    export SCIF_APPS\nfi\n",
        );
        script(
            "env/95-apps.sh",
            "#!/bin/sh\nif test -n \"${SINGULARITY_APPNAME:-}\"; then\n    SCIF_APPNAME=\"$SINGULARITY_APPNAME\"\nfi\n",
        );
        script(
            "env/99-base.sh",
            "#!/bin/sh\nif [ -z \"$LD_LIBRARY_PATH\" ]; then\n    LD_LIBRARY_PATH=\"/.singularity.d/libs\"\nelse\n    LD_LIBRARY_PATH=\"$LD_LIBRARY_PATH:/.singularity.d/libs\"\nfi\nPS1=\"Singularity> \"\nexport LD_LIBRARY_PATH PS1\n",
        );
        script(
            "env/99-runtimevars.sh",
            "#!/bin/sh\nif [ -n \"${SING_USER_DEFINED_PATH:-}\" ]; then\n    PATH=\"$SING_USER_DEFINED_PATH\"\nfi\n",
        );
        // Launchers of today leave these alone.
        for action in ["exec", "run", "shell", "start", "test"] {
            script(&format!("actions/{action}"), "#!/bin/sh\necho an action of the image ran\nexit 99\n");
        }
        script("runscript", RUNSCRIPT);
        script("startscript", "#!/bin/sh\n");
        let plain = |name: &str, text: &str| write(&format!(".singularity.d/{name}"), text.as_bytes(), 0o644);
        plain("runscript.help", HELP);
        plain("Singularity", DEFFILE);
        plain("labels.json", "{\n\t\"maker\": \"somebody else\",\n\t\"org.label-schema.schema-version\": \"1.0\"\n}");
        write("scif/apps/foo/scif/runscript", b"#!/bin/sh\necho foo\n", 0o755);
        for (name, target) in [
            ("singularity", ".singularity.d/runscript"),
            (".run", ".singularity.d/actions/run"),
            (".exec", ".singularity.d/actions/exec"),
            (".shell", ".singularity.d/actions/shell"),
            (".test", ".singularity.d/actions/test"),
            ("environment", ".singularity.d/env/90-environment.sh"),
        ] {
            symlink(target, root.join(name)).expect("make a link");
        }
        Self { root, data }
    }

    /// Makes a SIF of it with the tools of others; with `metadata`, as newer
    /// ones do, its description lies beside the partition as well.
    fn build(&self, siftool: &Path, target: &Path, compression: &str, metadata: Option<&Value>) {
        let run = |command: &mut Command| succeeded(&command.output().expect("the tool runs"));
        let beside = |extension: &str| target.with_extension(extension);
        let (deffile, partition, made) = (beside("def"), beside("squashfs"), beside("made"));
        fs::write(&deffile, DEFFILE).expect("write the definition");
        run(Command::new("mksquashfs").args([&self.root, &partition]).args([
            "-comp",
            compression,
            "-all-root",
            "-noappend",
            "-no-progress",
            "-quiet",
        ]));
        run(Command::new(siftool).arg("new").arg(&made));
        let add = |object: &Path, options: &[&str]| {
            run(Command::new(siftool).arg("add").args([&made, object]).args(["--groupid", "1"]).args(options));
        };
        add(&deffile, &["--datatype", "1"]);
        if let Some(metadata) = metadata {
            let object = beside("json");
            fs::write(&object, metadata.to_string()).expect("write the metadata");
            add(&object, &["--datatype", "6", "--filename", "inspect-metadata.json"]);
        }
        add(&partition, &["--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", "2"]);
        // The tool leaves out the first line, which all builders write.
        let mut file = fs::OpenOptions::new().write(true).open(&made).expect("open the SIF");
        file.write_all(b"#!/usr/bin/env run-singularity\n\0").expect("write the first line");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("make it a program");
        drop(file);
        // What this process has open for writing, even in a child of another
        // test's, nobody can execute.
        run(Command::new("cp").args([&made, target]));
    }
}

#[test]
fn privileged_sifs_that_others_made_run_and_are_shown() {
    const TEST: &str = "privileged_sifs_that_others_made_run_and_are_shown";
    if !have_root(TEST) || !have_program(TEST, "mksquashfs") {
        return;
    }
    let Some(siftool) = siftool(TEST) else { return };
    let scratch = Scratch::new();
    let foreign = Foreign::new(&scratch);
    let user = User::a();
    let folder = user.folder(&scratch, "own");
    // Tells which of the two was read.
    let object = json!({"data": {"attributes": {
        "labels": {"maker": "the object beside"},
        "runscript": "of the object",
        "environment": {"/.singularity.d/env/90-environment.sh": "of the object"},
    }}, "type": "container"});
    for (compression, metadata) in [("gzip", None), ("xz", None), ("zstd", Some(&object))] {
        let name = format!("{compression}.sif");
        foreign.build(&siftool, &folder.join(&name), compression, metadata);
        let sctl = |verb: &str, options: &[&str], words: &[&str]| -> Output {
            sctl(&user, &folder, &[&[verb], options, &[&name], words].concat())
        };

        // exec: bytes, PATH of the image, exact words, exit codes.
        for (path, content) in &foreign.data {
            let sum = succeeded(&sctl("exec", &[], &["sha256sum", &format!("/{path}")]));
            assert_eq!(sum, format!("{}  /{path}\n", Digest::of(content).hex()), "{name}");
        }
        let output = sctl("exec", &[], &["tool"]);
        assert_eq!((output.status.code(), &*stdout(&output)), (Some(5), "found by PATH\n"), "{name}: {output:?}");
        let output = sctl("exec", &[], &[&["printf", "[%s]\\n"][..], &WORDS].concat());
        assert_eq!(succeeded(&output), shown(&WORDS), "{name}");
        assert_eq!(stderr(&output), "", "{name}");
        let output = sctl("exec", &[], &["no-such-program"]);
        assert_eq!(output.status.code(), Some(255), "{name}");
        let text = stderr(&output);
        assert!(text.starts_with("FATAL:   \"no-such-program\": executable file not found in $PATH"), "{name}: {text}");
        assert_eq!(succeeded(&sctl("exec", &[], &["id", "-u"])).trim(), user.uid.to_string(), "{name}");

        // Variables of the image win over the host's, the caller's over both.
        let mut exec = command(&user, &folder, "sctl");
        exec.env("FROM_IMAGE", "of the host").env("FROM_HOST", "of the host").env("SINGULARITYENV_MINE", "$so");
        let script = "printf '[%s]\\n' \"$FROM_IMAGE\" \"$FROM_HOST\" \"$MINE\" \"$GREETING\" \"$SCIF_APPS\" \"$LD_LIBRARY_PATH\"";
        exec.args(["exec", "--env", "GREETING=good bye", &name, "sh", "-c", script]);
        let values = ["of the image", "of the host", "$so", "good bye", "/scif/apps", "/.singularity.d/libs"];
        assert_eq!(succeeded(&exec.output().expect("run sctl")), shown(&values), "{name}");

        // run, by either name: the image's own script, in its environment.
        let expected = shown(&[&["hello, you"][..], &WORDS].concat());
        assert_eq!(succeeded(&sctl("run", &[], &WORDS)), expected, "{name}");
        let direct = command(&user, &folder, &format!("./{name}")).args(WORDS).output().expect("run the SIF");
        assert_eq!(succeeded(&direct), expected, "{name}");

        // inspect: from the object if there is one, else from the files.
        let inspect = |options: &[&str]| succeeded(&sctl("inspect", options, &[]));
        assert_eq!(inspect(&["--deffile"]), DEFFILE, "{name}");
        if metadata.is_some() {
            assert_eq!(inspect(&[]), "maker: the object beside\n", "{name}");
            assert_eq!(inspect(&["--runscript"]), "of the object\n", "{name}");
            let environment = "=== /.singularity.d/env/90-environment.sh ===\nof the object\n\n";
            assert_eq!(inspect(&["--environment"]), environment, "{name}");
            continue;
        }
        assert_eq!(inspect(&[]), "maker: somebody else\norg.label-schema.schema-version: 1.0\n", "{name}");
        assert_eq!(inspect(&["--runscript"]), RUNSCRIPT, "{name}");
        assert_eq!(inspect(&["--helpfile"]), HELP, "{name}");
        assert_eq!(inspect(&["--list-apps"]), "foo\n", "{name}");
        assert_eq!(inspect(&["--app", "foo", "--runscript"]), "#!/bin/sh\necho foo\n", "{name}");
        let environment: String = [("10-docker2singularity", OCI_SCRIPT), ("90-environment", CUSTOM_SCRIPT)]
            .map(|(script, text)| format!("=== /.singularity.d/env/{script}.sh ===\n{text}\n"))
            .concat();
        assert_eq!(inspect(&["--environment"]), environment, "{name}");
        let all: Value = serde_json::from_str(&inspect(&["--all"])).expect("it is JSON");
        let attributes = &all["data"]["attributes"];
        assert_eq!(attributes["labels"]["maker"], "somebody else", "{name}");
        assert_eq!(attributes["helpfile"], HELP.trim_end(), "{name}");
        assert_eq!(attributes["apps"]["foo"]["runscript"], "#!/bin/sh\necho foo", "{name}");
    }
}
