//! Image references and source URIs.
//!
//! # Source
//! services.md §1 of the project's references: the Docker reference grammar,
//! with `[v6]:port` hosts accepted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, DigestError};

/// Full name of an image in a registry, canonical: host, path, and a tag or a
/// digest. `ubuntu` becomes `docker.io/library/ubuntu:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Says why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("invalid reference format: the reference is empty")]
    Empty,
    /// Upper case in the repository.
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    /// 64 hex digits are an image ID, not a name.
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    HexName {
        /// The name as given.
        name: String,
    },
    /// The registry's host or port breaks the grammar.
    #[error("invalid reference format: {host:?} is not a registry host")]
    BadHost {
        /// The host as given.
        host: String,
    },
    /// A path component breaks the grammar.
    #[error("invalid reference format: {component:?} is not a repository path component")]
    BadComponent {
        /// The component as given.
        component: String,
    },
    /// The tag breaks the grammar.
    #[error("invalid reference format: {tag:?} is not a tag")]
    BadTag {
        /// The tag as given.
        tag: String,
    },
    /// Host and path together are too long.
    #[error("invalid reference format: repository name has {len} characters, more than 255")]
    TooLong {
        /// Characters found.
        len: usize,
    },
    /// The digest is wrong.
    #[error("invalid reference format")]
    Digest {
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// Parses what follows `docker://`.
    ///
    /// With both a tag and a digest, the digest decides and the tag is kept
    /// for display and file names only, as Docker does.
    ///
    /// # Errors
    /// [`ReferenceError`] names the part that breaks the grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (name_tag, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(Digest::parse(digest).map_err(|source| ReferenceError::Digest { source })?))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it, a port.
        let after_slash = name_tag.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name_tag[after_slash..].find(':') {
            // `[::1]` has colons of its own, but a host needs a path after it.
            Some(colon) => {
                let (name, tag) = name_tag.split_at(after_slash + colon);
                (name, Some(&tag[1..]))
            }
            None => (name_tag, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::BadTag { tag: tag.to_owned() });
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path))
                if host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                if !is_host(host) {
                    return Err(ReferenceError::BadHost { host: host.to_owned() });
                }
                let lower = host.to_ascii_lowercase();
                // Where upper case is all that makes it a host, lower case
                // would name a repository of Docker Hub when read again.
                let is_plain = !lower.contains(['.', ':']) && lower != "localhost";
                (if is_plain { host.to_owned() } else { lower }, path)
            }
            _ => ("docker.io".to_owned(), name),
        };
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            _ => registry,
        };
        if registry == "docker.io" && path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ReferenceError::HexName { name: path.to_owned() });
        }
        for component in path.split('/') {
            if component.bytes().any(|b| b.is_ascii_uppercase()) {
                return Err(ReferenceError::Uppercase);
            }
            if !is_component(component) {
                return Err(ReferenceError::BadComponent { component: component.to_owned() });
            }
        }
        let repository =
            if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        let len = registry.len() + 1 + repository.len();
        if len > 255 {
            return Err(ReferenceError::TooLong { len });
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry, repository, tag, digest })
    }

    /// Host and optional port, in lower case unless it is one word with upper
    /// case in it; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host that serves the API: Docker Hub's differs from its name.
    pub fn api_host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// Path of the repository, such as `library/ubuntu`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag.
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest, else the tag.
    pub fn tag_or_digest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at one manifest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        Self::parse(&text)
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut at = 0;
    loop {
        let run = bytes[at..].iter().take_while(|&&b| is_alnum(b)).count();
        if run == 0 {
            return false;
        }
        at += run;
        if at == bytes.len() {
            return true;
        }
        let separator = bytes[at..].iter().take_while(|&&b| !is_alnum(b)).count();
        let text = &bytes[at..at + separator];
        let good = matches!(text, b"." | b"_" | b"__") || text.iter().all(|&b| b == b'-');
        if !good {
            return false;
        }
        at += separator;
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match rest {
            "" => return true,
            _ => match rest.strip_prefix(':') {
                Some(port) => ("localhost", Some(port)),
                None => return false,
            },
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    let good_port = port
        .is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    good_port
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// Where an image comes from, by the part before the colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A registry that speaks the OCI distribution API.
    Docker,
}

/// A source URI, such as `docker://ubuntu:24.04`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// How to get it.
    pub transport: Transport,
    /// What to get.
    pub reference: Reference,
    /// The text as the user wrote it after the transport's colon and slashes.
    pub body: String,
}

/// Says why a text is not a source URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// There is no `transport:` in front.
    #[error("No transport type URI supplied")]
    NoTransport,
    /// The transport is not one of ours.
    #[error("Unsupported transport type: {transport}")]
    UnsupportedTransport {
        /// The transport as given.
        transport: String,
    },
    /// `docker:` without the slashes.
    #[error("docker: image reference {body} does not start with //")]
    NoSlashes {
        /// What follows the colon.
        body: String,
    },
    /// The reference is wrong.
    #[error("Bad URI {uri}")]
    Reference {
        /// The whole text.
        uri: String,
        /// What is wrong.
        #[source]
        source: ReferenceError,
    },
}

/// Transports that the world knows: a text that starts with one of them is
/// meant as a URI, not as a file name.
const KNOWN_TRANSPORTS: [&str; 12] = [
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "oci-sif",
    "oras",
    "library",
    "shub",
    "http",
    "https",
    "ipfs",
];

impl Uri {
    /// Says whether `text` is meant as a URI: `known-transport:…`, or anything
    /// with `://` in it. Everything else is a path.
    pub fn looks_like_one(text: &str) -> bool {
        match text.split_once(':') {
            Some((transport, rest)) => {
                KNOWN_TRANSPORTS.contains(&transport)
                    || (rest.starts_with("//")
                        && !transport.is_empty()
                        && transport.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')))
            }
            None => false,
        }
    }

    /// Parses `transport://body`.
    ///
    /// # Errors
    /// [`UriError`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        if !Self::looks_like_one(text) {
            return Err(UriError::NoTransport);
        }
        let (transport, body) = text.split_once(':').ok_or(UriError::NoTransport)?;
        if transport != "docker" {
            return Err(UriError::UnsupportedTransport { transport: transport.to_owned() });
        }
        let body = body.strip_prefix("//").ok_or_else(|| UriError::NoSlashes { body: body.to_owned() })?;
        let reference =
            Reference::parse(body).map_err(|source| UriError::Reference { uri: text.to_owned(), source })?;
        Ok(Self { transport: Transport::Docker, reference, body: body.to_owned() })
    }

    /// Name of the file that `pull` writes when none is given:
    /// `<last component>_<tag>.sif`, split as the established tools split it.
    pub fn default_file_name(&self) -> String {
        let last = self.body.rsplit('/').next().unwrap_or(&self.body);
        let mut parts = last.split(':');
        let name = parts.next().unwrap_or_default();
        let tag = parts.next().unwrap_or("latest");
        format!("{name}_{tag}.sif")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_canonical() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let cases = [
            ("ubuntu", "docker.io/library/ubuntu:latest".to_owned()),
            ("docker.io/ubuntu", "docker.io/library/ubuntu:latest".to_owned()),
            ("index.docker.io/ubuntu", "docker.io/library/ubuntu:latest".to_owned()),
            ("index.docker.io/godlovedc/lolcow", "docker.io/godlovedc/lolcow:latest".to_owned()),
            ("godlovedc/lolcow", "docker.io/godlovedc/lolcow:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            ("10.0.0.1:5000/a/b", "10.0.0.1:5000/a/b:latest".to_owned()),
            ("nvcr.io/nvidia/pytorch:18.11-py3", "nvcr.io/nvidia/pytorch:18.11-py3".to_owned()),
            ("[::1]:5000/x:1", "[::1]:5000/x:1".to_owned()),
            ("Registry.Example/x", "registry.example/x:latest".to_owned()),
            ("Localhost/x", "localhost/x:latest".to_owned()),
            ("Host/x", "Host/x:latest".to_owned()),
            ("a/b-c__d.e:T_1", "docker.io/a/b-c__d.e:T_1".to_owned()),
            (&format!("alpine@sha256:{hex}"), format!("docker.io/library/alpine@sha256:{hex}")),
            (&format!("alpine:3@sha256:{hex}"), format!("docker.io/library/alpine:3@sha256:{hex}")),
        ];
        for (text, canonical) in cases {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(Reference::parse(&canonical), Ok(reference), "{text}");
        }
    }

    #[test]
    fn bad_references_are_refused() {
        let long = format!("a/{}", "x".repeat(250));
        let hex = "e".repeat(64);
        for text in [
            "",
            "Ubuntu",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a b",
            "a@",
            "a@sha256:12",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "host.:5000/x",
            "h:99999/x",
            "h:/x",
            "[::1/x",
            &long,
            &hex,
            "ümlaut",
            "a:b:c",
        ] {
            assert!(Reference::parse(text).is_err(), "accepted {text:?}");
        }
        assert_eq!(Reference::parse("a/B"), Err(ReferenceError::Uppercase));
    }

    #[test]
    fn hub_speaks_under_another_host() {
        assert_eq!(Reference::parse("ubuntu").unwrap().api_host(), "registry-1.docker.io");
        assert_eq!(Reference::parse("ghcr.io/a/b").unwrap().api_host(), "ghcr.io");
    }

    #[test]
    fn default_file_names_are_those_of_the_established_tools() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let cases = [
            ("docker://godlovedc/lolcow".to_owned(), "lolcow_latest.sif".to_owned()),
            ("docker://nvcr.io/nvidia/pytorch:18.11-py3".to_owned(), "pytorch_18.11-py3.sif".to_owned()),
            (format!("docker://alpine@sha256:{hex}"), format!("alpine@sha256_{hex}.sif")),
            (format!("docker://alpine:3.9@sha256:{hex}"), "alpine_3.9@sha256.sif".to_owned()),
            ("docker://localhost:5000/x".to_owned(), "x_latest.sif".to_owned()),
        ];
        for (uri, file) in cases {
            assert_eq!(Uri::parse(&uri).unwrap().default_file_name(), file, "{uri}");
        }
    }

    #[test]
    fn uris_and_paths_are_told_apart() {
        for uri in ["docker://x", "docker:x", "oci:dir", "foo://x", "https://h/x"] {
            assert!(Uri::looks_like_one(uri), "{uri}");
        }
        for path in ["x.sif", "./docker://x", "a:b", "/tmp/x:y", "dir"] {
            assert!(!Uri::looks_like_one(path), "{path}");
        }
        assert_eq!(Uri::parse("x"), Err(UriError::NoTransport));
        assert_eq!(Uri::parse("foo://x"), Err(UriError::UnsupportedTransport { transport: "foo".to_owned() }));
        assert!(matches!(Uri::parse("docker:x"), Err(UriError::NoSlashes { .. })));
    }
}
