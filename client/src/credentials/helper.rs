//! Credential helpers: programs that know passwords, run as the caller.

use std::{
    io::{self, Read as _, Write as _},
    process::{Command, Stdio},
};

use sctl_proto::v1::{
    Credentials,
    credentials::{Basic, Kind},
};
use serde::Deserialize;

use crate::{
    failure::reason,
    output::{printable, verbose, warning},
};

/// Longest answer of a helper in bytes: tokens of some clouds take kilobytes.
const MAX_ANSWER: u64 = 256 << 10;

/// What helpers say when they know nothing about a registry.
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks `docker-credential-SUFFIX` for the credentials of `server`. A helper
/// that fails is a warning: the image may be public.
pub fn get(suffix: &str, server: &str) -> Option<Credentials> {
    // The name comes from a file and must not become a path.
    if suffix.is_empty() || suffix.contains('/') {
        warning!("The credential helper {:?} is not used: it is not a name", printable(suffix));
        return None;
    }
    let program = format!("docker-credential-{suffix}");
    match ask(&program, server) {
        Ok(credentials) => {
            verbose!("{program} has {} credentials for {server}", if credentials.is_some() { "the" } else { "no" });
            credentials
        }
        Err(error) => {
            warning!("Unable to use {}: {}; going on without it", printable(&program), printable(&reason(&error)));
            None
        }
    }
}

fn ask(program: &str, server: &str) -> io::Result<Option<Credentials>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()) {
            // It may know its answer without reading the question.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut answer)?;
    }
    let status = child.wait()?;
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        return if text.contains(NOT_FOUND) {
            Ok(None)
        } else {
            let line = text.lines().next().unwrap_or_default().trim();
            Err(io::Error::other(if line.is_empty() { status.to_string() } else { line.to_owned() }))
        };
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| io::Error::other("its answer cannot be understood"))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let kind = if answer.username == "<token>" {
        Kind::IdentityToken(answer.secret)
    } else {
        Kind::Basic(Basic { username: answer.username, password: answer.secret })
    };
    Ok(Some(Credentials { kind: Some(kind) }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn answer(script: &str) -> io::Result<Option<Kind>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker-credential-x");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        for _ in 0..50 {
            // A fork of another test may still hold it open for writing.
            match ask(path.to_str().unwrap(), "r.example") {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                other => return other.map(|credentials| credentials.and_then(|credentials| credentials.kind)),
            }
        }
        panic!("the script stays busy");
    }

    #[test]
    fn answers_of_helpers_are_understood() {
        let basic = answer(r#"printf '{"ServerURL":"%s","Username":"u","Secret":"s"}' "$(cat)""#).unwrap();
        assert_eq!(basic, Some(Kind::Basic(Basic { username: "u".to_owned(), password: "s".to_owned() })));
        let token = answer(r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"s"}'"#).unwrap();
        assert_eq!(token, Some(Kind::IdentityToken("s".to_owned())));
        assert_eq!(answer("echo credentials not found in native keychain; exit 1").unwrap(), None);
        assert_eq!(answer("echo locked; exit 1").unwrap_err().to_string(), "locked");
        assert!(answer("echo junk").is_err());
        assert!(get("../x", "r.example").is_none());
        assert!(get("surely-not-installed-anywhere", "r.example").is_none());
    }
}
