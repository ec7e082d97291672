//! Image configs.

use std::collections::BTreeMap;

use sctl_common::{DiffId, Digest, Platform};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    EntryPlatform, Launch, ParseError, SelectError, Timestamp,
    lenient::{null_default, object, string_map, text},
};

const WHAT: &str = "image config";

/// An image config: what an image is made of and what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the image runs on, as the config says; members may be empty.
    pub platform: EntryPlatform,
    /// When the image was made, if the config says so.
    pub created: Option<Timestamp>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<DiffId>,
    /// Argv and environment.
    pub launch: Launch,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes of the inner `config` object exactly as they came; `{}` if there
    /// is none.
    pub inner: String,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "text")]
    os: String,
    #[serde(default, deserialize_with = "text")]
    architecture: String,
    #[serde(default, deserialize_with = "text")]
    variant: String,
    #[serde(default, deserialize_with = "text")]
    created: String,
    #[serde(default)]
    config: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "null_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default, rename = "type", deserialize_with = "text")]
    kind: String,
    #[serde(default, deserialize_with = "null_default")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
struct RawLabels {
    #[serde(default, rename = "Labels", deserialize_with = "string_map")]
    labels: BTreeMap<String, String>,
}

impl Config {
    /// Parses an image config.
    ///
    /// # Errors
    /// [`ParseError`] if it is not JSON of that shape, or names digests or
    /// argv that cannot be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let raw: RawConfig = object(bytes, WHAT)?;
        if !matches!(raw.rootfs.kind.as_str(), "" | "layers") {
            return Err(ParseError::RootfsType { found: raw.rootfs.kind });
        }
        let diff_ids = raw.rootfs.diff_ids.iter().enumerate().map(|(at, text)| {
            Digest::parse(text)
                .map(DiffId::new)
                .map_err(|source| ParseError::Digest { what: format!("config's diff_id {}", at + 1), source })
        });
        let diff_ids = diff_ids.collect::<Result<Vec<_>, _>>()?;
        let inner = raw.config.map_or_else(|| "{}".to_owned(), |inner| inner.get().to_owned());
        let launch = Launch::parse(inner.as_bytes())?;
        let labels: RawLabels = object(inner.as_bytes(), WHAT)?;
        let platform = EntryPlatform { os: raw.os, architecture: raw.architecture, variant: raw.variant };
        Ok(Self {
            platform,
            // A date that cannot be read is no reason to refuse an image.
            created: raw.created.parse().ok(),
            diff_ids,
            launch,
            labels: labels.labels,
            inner,
        })
    }

    /// Architecture in Go's words, if the config names a known one.
    pub fn architecture(&self) -> Option<String> {
        let platform: Platform = self.platform.architecture.parse().ok()?;
        Some(platform.architecture().to_owned())
    }

    /// Checks that an image that no index offered runs on `required`.
    ///
    /// What the config leaves empty counts as fitting.
    ///
    /// # Errors
    /// [`SelectError::Mismatch`] otherwise.
    pub fn check_platform(&self, required: &Platform) -> Result<(), SelectError> {
        let (architecture, variant) = self.platform.canonical();
        let fits = |found: &str, wanted: &str| found.is_empty() || found == wanted;
        let variant_fits =
            variant.is_empty() || required.variant().is_none() || required.acceptable_variants().contains(&variant);
        if fits(&self.platform.os, required.os()) && fits(&architecture, required.architecture()) && variant_fits {
            return Ok(());
        }
        Err(SelectError::Mismatch { found: self.platform.to_string(), required: required.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(os: &str, architecture: &str, variant: &str) -> Config {
        let text = format!(r#"{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#);
        Config::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_config_of_docker_is_read() {
        let diff_id = Digest::of(b"tar");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2020-06-30T00:01:56.5Z","container":"x",
            "config":{{ "Hostname":"","Env":["PATH=/bin"],"Cmd":["sh"],"Entrypoint":null,"Volumes":null,
            "Labels":{{"a":"b","n":1,"z":null}},"OnBuild":[] }},
            "history":null,"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.diff_ids, [DiffId::new(diff_id)]);
        assert_eq!(config.created.map(Timestamp::unix), Some(1_593_475_316));
        assert_eq!(config.launch.cmd, ["sh"]);
        let labels: Vec<_> = config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(labels, [("a", "b"), ("n", "1")]);
        assert!(config.inner.starts_with(r#"{ "Hostname""#) && config.inner.ends_with(r#""OnBuild":[] }"#));
        for len in 0..text.len() {
            assert!(Config::parse(&text.as_bytes()[..len]).is_err(), "accepted {len} bytes");
        }
    }

    #[test]
    fn nulls_and_nothing_are_taken() {
        let nulls = r#"{"architecture":null,"os":null,"created":null,"config":null,"rootfs":null}"#;
        for text in ["{}", nulls, r#"{"created":7,"rootfs":{"type":null,"diff_ids":null},"config":{"Labels":null}}"#] {
            let config = Config::parse(text.as_bytes()).unwrap();
            assert_eq!((config.created, config.diff_ids.len(), config.labels.len()), (None, 0, 0), "{text}");
        }
        for bad in ["[]", "[null]", "null", r#"{"config":[]}"#, r#"{"config":7}"#, r#"{"rootfs":{"type":"zip"}}"#] {
            assert!(Config::parse(bad.as_bytes()).is_err(), "accepted {bad}");
        }
        assert!(Config::parse(br#"{"rootfs":{"diff_ids":["sha256:12"]}}"#).is_err());
    }

    #[test]
    fn a_lone_image_has_to_fit_the_platform() {
        let check = |config: &Config, platform: &str| config.check_platform(&platform.parse().unwrap());
        for (config, platform) in [
            (on("linux", "amd64", ""), "amd64"),
            (on("linux", "x86_64", ""), "amd64"),
            (on("", "", ""), "amd64"),
            (on("linux", "amd64", "v2"), "amd64"),
            (on("linux", "arm64", "v8"), "arm64"),
            (on("linux", "arm", "v6"), "arm/v7"),
            (on("linux", "arm", ""), "arm/v7"),
        ] {
            assert_eq!(check(&config, platform), Ok(()), "{config:?} on {platform}");
        }
        for (config, platform, message) in [
            (on("linux", "arm64", ""), "amd64", "image (linux/arm64) does not satisfy required platform (linux/amd64)"),
            (
                on("windows", "amd64", ""),
                "amd64",
                "image (windows/amd64) does not satisfy required platform (linux/amd64)",
            ),
            (
                on("linux", "arm", "v7"),
                "arm/v6",
                "image (linux/arm/v7) does not satisfy required platform (linux/arm/v6)",
            ),
        ] {
            assert_eq!(check(&config, platform).unwrap_err().to_string(), message);
        }
    }
}
