//! Docker's `config.json`, as far as it concerns credentials.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sctl_common::Reference;
use sctl_proto::v1::{
    Credentials,
    credentials::{Basic, Kind},
};
use serde::Deserialize;

use super::helper;
use crate::failure::{Failure, reason};

/// No configuration with credentials is larger.
const MAX_LEN: u64 = 4 << 20;

/// Key of Docker Hub, which predates its present name.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Other names of Docker Hub in keys.
const HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// The parts of the file that hold or lead to credentials.
#[derive(Debug, Default, Deserialize)]
pub struct DockerConfig {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

/// One registry's entry; empty if a helper knows it.
#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or understood. Its contents are not shown.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let unable = || Failure::new(format!("Unable to use the authentication file {}", path.display()));
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(unable().cause(reason(&error))),
        };
        let mut text = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut text).map_err(|error| unable().cause(reason(&error)))?;
        if text.len() as u64 > MAX_LEN {
            return Err(unable().cause("it is too large"));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            // serde's own text may quote a secret.
            unable().cause(format!(
                "it is not valid JSON of this kind at line {}, column {}",
                error.line(),
                error.column()
            ))
        })
    }

    /// The credentials for a reference's registry.
    pub fn lookup(&self, reference: &Reference) -> Option<Credentials> {
        let host = reference.registry();
        let hosts: &[&str] = if host == "docker.io" { &HUB_HOSTS } else { &[host] };
        let server = if host == "docker.io" { HUB_KEY } else { host };
        let helpers = self.cred_helpers.iter().flatten();
        for (key, suffix) in helpers {
            if hosts.contains(&host_of(key).as_str()) {
                return helper::get(suffix, server);
            }
        }
        self.entry(reference, hosts)
            .and_then(Entry::credentials)
            .or_else(|| helper::get(self.creds_store.as_deref().filter(|store| !store.is_empty())?, server))
    }

    /// The most specific entry: the repository, the name spaces above it, the
    /// host, then keys that are URLs.
    fn entry(&self, reference: &Reference, hosts: &[&str]) -> Option<&Entry> {
        let auths = self.auths.as_ref()?;
        let get = |key: &str| auths.get(key).and_then(Option::as_ref);
        for host in hosts {
            let mut path = Some(reference.repository());
            while let Some(prefix) = path {
                if let Some(entry) = get(&format!("{host}/{prefix}")) {
                    return Some(entry);
                }
                path = prefix.rsplit_once('/').map(|(above, _)| above);
            }
        }
        if hosts.len() > 1
            && let Some(entry) = get(HUB_KEY)
        {
            return Some(entry);
        }
        hosts.iter().find_map(|host| get(host)).or_else(|| {
            let named = |key: &str| key.contains("://") && hosts.contains(&host_of(key).as_str());
            auths.iter().find(|(key, _)| named(key)).and_then(|(_, entry)| entry.as_ref())
        })
    }
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Some(Credentials { kind: Some(Kind::RegistryToken(token)) });
        }
        if let Some(token) = given(&self.identitytoken) {
            return Some(Credentials { kind: Some(Kind::IdentityToken(token)) });
        }
        let (username, password) = match (given(&self.auth), given(&self.username), given(&self.password)) {
            (Some(auth), _, _) => decode(&auth)?,
            (None, Some(username), Some(password)) => (username, password),
            _ => return None,
        };
        Some(Credentials { kind: Some(Kind::Basic(Basic { username, password })) })
    }
}

/// `base64("user:password")`; passwords may hold colons, and some writers fill
/// up with NUL.
fn decode(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.trim_matches('\0').to_owned()))
}

/// Host and port of a key that may be a URL.
fn host_of(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, reference: &str) -> Option<Kind> {
        let config: DockerConfig = serde_json::from_str(json).unwrap();
        config.lookup(&Reference::parse(reference).unwrap()).and_then(|credentials| credentials.kind)
    }

    fn user(kind: Option<Kind>) -> Option<String> {
        match kind? {
            Kind::Basic(basic) => Some(format!("{}/{}", basic.username, basic.password)),
            Kind::IdentityToken(token) => Some(format!("identity {token}")),
            Kind::RegistryToken(token) => Some(format!("registry {token}")),
        }
    }

    #[test]
    fn keys_are_found_in_their_many_forms() {
        let auth = |key: &str, auth: &str| format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
        for (key, reference, hit) in [
            ("https://index.docker.io/v1/", "ubuntu", true),
            ("docker.io", "me/x", true),
            ("registry-1.docker.io", "me/x", true),
            ("https://index.docker.io/v2/", "me/x", true),
            ("docker.io/me", "me/x", true),
            ("docker.io/you", "me/x", false),
            ("localhost:5000", "localhost:5000/x", true),
            ("localhost", "localhost:5000/x", false),
            ("https://r.example", "r.example/x", true),
            ("https://r.example/v1/", "r.example/x", true),
            ("http://R.example/", "r.example/x", true),
            ("r.example/a/b", "r.example/a/b/c", true),
            ("r.example/a/b", "r.example/a/bc", false),
            ("index.docker.io", "r.example/x", false),
        ] {
            let seen = user(found(&auth(key, "dTpwOnc="), reference));
            assert_eq!(seen, hit.then(|| "u/p:w".to_owned()), "{key} {reference}");
        }
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let json = r#"{"auths":{"r.example":{"auth":"YTpi"},"r.example/n":{"auth":"Yzpk"}}}"#;
        assert_eq!(user(found(json, "r.example/n/x")).unwrap(), "c/d");
        assert_eq!(user(found(json, "r.example/m/x")).unwrap(), "a/b");
    }

    #[test]
    fn tokens_win_over_passwords_and_odd_entries_are_none() {
        for (entry, expected) in [
            (r#"{"auth":"YTpi","identitytoken":"t"}"#, Some("identity t")),
            (r#"{"registrytoken":"t","identitytoken":"u"}"#, Some("registry t")),
            (r#"{"username":"a","password":"b"}"#, Some("a/b")),
            (r#"{"auth":"YTpiAA=="}"#, Some("a/b")),
            (r#"{"auth":"!!"}"#, None),
            (r#"{"auth":"YWI="}"#, None),
            (r#"{}"#, None),
            ("null", None),
        ] {
            let json = format!(r#"{{"auths":{{"r.example":{entry}}},"experimental":"x"}}"#);
            assert_eq!(user(found(&json, "r.example/x")).as_deref(), expected, "{entry}");
        }
        assert_eq!(found(r#"{"auths":null,"credHelpers":null,"credsStore":""}"#, "x"), None);
    }

    #[test]
    fn errors_do_not_show_what_the_file_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        std::fs::write(&path, r#"{"auths":"c2VjcmV0"}"#).unwrap();
        let text = DockerConfig::read(&path).unwrap_err().to_string();
        assert!(!text.contains("c2Vj") && text.contains("line 1"), "{text}");
        assert!(DockerConfig::read(&dir.path().join("none")).unwrap().is_none());
    }
}
