//! The caller's credentials for a registry.
//!
//! They are looked up here, as the caller, and go to the daemon with one
//! request; the daemon reads no file of anybody. The first source that knows
//! the registry wins: options and variables, the file of `--authfile`, the
//! files of the established tools, Docker's own.

mod docker_config;
mod helper;

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use sctl_common::Reference;
use sctl_proto::v1::{
    Credentials,
    credentials::{Basic, Kind},
};

use self::docker_config::DockerConfig;
use crate::{
    cli::{Environment, Settings},
    failure::Failure,
    flavour::Flavour,
    output::{prompt, verbose, warning},
};

/// Gathers the credentials for `reference`. `None` means anonymous.
///
/// # Errors
/// A named file that cannot be used, an input that ends at a prompt.
pub fn gather(
    flavour: Flavour,
    settings: &Settings,
    environment: &Environment,
    reference: &Reference,
) -> Result<Option<Credentials>, Failure> {
    let username = settings.text("docker-username")?.map(str::to_owned);
    let password = settings.text("docker-password")?.map(str::to_owned);
    if settings.switch("docker-login") {
        return login(username).map(Some);
    }
    match (username, password) {
        (Some(username), Some(password)) => return Ok(Some(basic(username, password))),
        (Some(_), None) => verbose!("A user name without a password is not used"),
        // In double quotes a shell makes nothing of the user of NVIDIA's registry.
        (None, Some(_)) if reference.registry() == "nvcr.io" => {
            warning!(
                "The password is not used, because the user name is empty: nvcr.io needs '$oauthtoken' in single quotes"
            );
        }
        (None, Some(_)) => verbose!("A password without a user name is not used"),
        (None, None) => {}
    }
    if let Some(path) = settings.value("authfile") {
        let path = Path::new(path);
        let config = DockerConfig::read(path)?.ok_or_else(|| {
            Failure::new(format!("Unable to use the authentication file {}", path.display()))
                .cause("No such file or directory")
        })?;
        return Ok(config.lookup(reference));
    }
    for path in default_files(flavour, environment) {
        match DockerConfig::read(&path) {
            Ok(Some(config)) => {
                if let Some(found) = config.lookup(reference) {
                    verbose!("Using the credentials for {} in {}", reference.registry(), path.display());
                    return Ok(Some(found));
                }
            }
            Ok(None) => {}
            Err(failure) => warning!("{failure}; going on without it"),
        }
    }
    Ok(None)
}

fn login(username: Option<String>) -> Result<Credentials, Failure> {
    let ended = || Failure::new("Unable to read credentials").cause("the input has ended");
    let username = match username {
        Some(username) => username,
        None => prompt::ask("Enter Docker Username: ")?.ok_or_else(ended)?.trim().to_owned(),
    };
    let password = prompt::ask_secret("Enter Docker Password: ")?.ok_or_else(ended)?;
    Ok(basic(username, password))
}

fn basic(username: String, password: String) -> Credentials {
    Credentials { kind: Some(Kind::Basic(Basic { username, password })) }
}

/// Files that may hold credentials, the first ones first.
fn default_files(flavour: Flavour, environment: &Environment) -> Vec<PathBuf> {
    let home = home(environment);
    let mut files = Vec::new();
    let apptainer = environment
        .get("APPTAINER_CONFIGDIR")
        .map(PathBuf::from)
        .or_else(|| home.as_ref().map(|home| home.join(".apptainer")));
    let singularity = home.as_ref().map(|home| home.join(".singularity"));
    let own = match flavour {
        Flavour::Singularity => [singularity, apptainer],
        Flavour::Apptainer | Flavour::Sctl => [apptainer, singularity],
    };
    files.extend(own.into_iter().flatten().map(|directory| directory.join("docker-config.json")));
    let docker = environment.get("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home.map(|home| home.join(".docker")));
    files.extend(docker.map(|directory| directory.join("config.json")));
    files
}

/// The caller's home directory.
pub fn home(environment: &Environment) -> Option<PathBuf> {
    environment.get("HOME").map(PathBuf::from).or_else(|| {
        let account = sctl_sys::proc::account(rustix::process::geteuid().as_raw()).ok()??;
        Some(OsString::from_vec(account.home).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_the_name_of_the_program() {
        let environment = Environment::of(&[("HOME", "/h")]);
        let of = |flavour| default_files(flavour, &environment);
        assert_eq!(
            of(Flavour::Apptainer),
            ["/h/.apptainer/docker-config.json", "/h/.singularity/docker-config.json", "/h/.docker/config.json"]
                .map(PathBuf::from)
        );
        assert_eq!(of(Flavour::Singularity)[0], Path::new("/h/.singularity/docker-config.json"));
        let moved = Environment::of(&[("HOME", "/h"), ("APPTAINER_CONFIGDIR", "/c"), ("DOCKER_CONFIG", "/d")]);
        assert_eq!(default_files(Flavour::Sctl, &moved)[0], Path::new("/c/docker-config.json"));
        assert_eq!(default_files(Flavour::Sctl, &moved)[2], Path::new("/d/config.json"));
    }

    #[test]
    fn the_first_file_that_knows_the_registry_wins() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let write = |path: &str, json: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, json).unwrap();
        };
        // "a:b" and "c:d"
        write(".docker/config.json", r#"{"auths":{"r.example":{"auth":"YTpi"},"s.example":{"auth":"YTpi"}}}"#);
        write(".apptainer/docker-config.json", r#"{"auths":{"r.example":{"auth":"Yzpk"}}}"#);
        let environment = Environment::of(&[("HOME", home)]);
        let gather = |reference: &str| {
            let reference = Reference::parse(reference).unwrap();
            gather(Flavour::Apptainer, &Settings::default(), &environment, &reference).unwrap()
        };
        assert_eq!(gather("r.example/x"), Some(basic("c".to_owned(), "d".to_owned())));
        assert_eq!(gather("s.example/x"), Some(basic("a".to_owned(), "b".to_owned())));
        assert_eq!(gather("t.example/x"), None);
        write(".apptainer/docker-config.json", "not json");
        assert_eq!(gather("r.example/x"), Some(basic("a".to_owned(), "b".to_owned())), "a broken file is passed over");
    }
}
