//! Platforms: operating system, architecture, variant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A platform in Go's words, such as `linux/arm64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Platform {
    architecture: String,
    variant: Option<String>,
}

/// Says why a text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no platform (expected an architecture such as amd64, arm64 or arm/v7)")]
pub struct PlatformError {
    /// The text as given.
    pub text: String,
}

/// Architectures that a SIF header can name.
const KNOWN: [&str; 13] = [
    "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le", "s390x", "riscv64",
    "loong64",
];

impl Platform {
    /// The platform that this program was compiled for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = (architecture == "arm").then(|| "v7".to_owned());
        Self { architecture: architecture.to_owned(), variant }
    }

    /// Always `linux`.
    pub const fn os(&self) -> &'static str {
        "linux"
    }

    /// Architecture in Go's words, such as `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant, such as `v7`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Variants of an index's entries that satisfy this platform, best first;
    /// an empty text stands for an entry without a variant.
    ///
    /// # Source
    /// The order of containers/image (services.md §2, "Index").
    pub fn acceptable_variants(&self) -> Vec<String> {
        let texts = |list: &[&str]| list.iter().map(|v| (*v).to_owned()).collect();
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm", None) => texts(&["", "v8", "v7", "v6", "v5"]),
            ("arm", Some(variant)) => {
                let newest: u32 = variant.trim_start_matches('v').parse().unwrap_or(7);
                let mut list: Vec<String> = (5..=newest.min(8)).rev().map(|v| format!("v{v}")).collect();
                list.push(String::new());
                list
            }
            ("arm64", None | Some("v8")) => texts(&["v8", ""]),
            ("amd64", None) => texts(&["", "v1"]),
            ("amd64", Some(variant)) => {
                let newest: u32 = variant.trim_start_matches('v').parse().unwrap_or(1);
                let mut list: Vec<String> = (1..=newest.min(4)).rev().map(|v| format!("v{v}")).collect();
                list.push(String::new());
                list
            }
            (_, None) => texts(&[""]),
            (_, Some(variant)) => vec![variant.to_owned(), String::new()],
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses `ARCH`, `ARCH/VARIANT` or `linux/ARCH[/VARIANT]`, with the
    /// kernel's names (`x86_64`, `aarch64`) as aliases.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError { text: text.to_owned() };
        let body = text.strip_prefix("linux/").unwrap_or(text);
        let (name, variant) = match body.split_once('/') {
            Some((name, variant)) => (name, Some(variant)),
            None => (body, None),
        };
        let (architecture, implied) = match name {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "i686" => ("386", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            // As the established tools name the 32-bit variants.
            "arm32v5" => ("arm", Some("v5")),
            "arm32v6" => ("arm", Some("v6")),
            "arm32v7" => ("arm", Some("v7")),
            "arm64v8" => ("arm64", Some("v8")),
            other => (other, None),
        };
        if !KNOWN.contains(&architecture) {
            return Err(error());
        }
        let variant = variant.or(implied);
        if let Some(variant) = variant {
            let digits = variant.strip_prefix('v').ok_or_else(error)?;
            if digits.is_empty() || digits.len() > 2 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(error());
            }
        }
        Ok(Self { architecture: architecture.to_owned(), variant: variant.map(str::to_owned) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;
    fn try_from(text: String) -> Result<Self, PlatformError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_full_forms_agree() {
        let cases = [
            ("amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("armhf", "linux/arm/v7"),
            ("arm/v6", "linux/arm/v6"),
        ];
        for (text, full) in cases {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), full, "{text}");
        }
        for bad in ["", "windows/amd64", "vax", "arm/7", "arm/", "amd64/v"] {
            assert!(bad.parse::<Platform>().is_err(), "accepted {bad:?}");
        }
    }

    #[test]
    fn variants_fall_back_as_in_other_tools() {
        let order = |text: &str| text.parse::<Platform>().unwrap().acceptable_variants();
        assert_eq!(order("arm/v7"), ["v7", "v6", "v5", ""]);
        assert_eq!(order("arm"), ["", "v8", "v7", "v6", "v5"]);
        assert_eq!(order("arm64"), ["v8", ""]);
        assert_eq!(order("amd64"), ["", "v1"]);
    }
}
