//! The choice of a platform from an index.

use sctl_common::Platform;

use crate::{
    Descriptor, Index, SelectError,
    media_type::{DOCKER_LIST, OCI_INDEX, essence},
};

/// How many indexes may be nested in each other. One level occurs.
pub const MAX_INDEX_DEPTH: u32 = 4;

/// What an index has for a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection<'a> {
    /// The manifest to use.
    Manifest(&'a Descriptor),
    /// Further indexes to fetch and to select from, in this order, until one
    /// has a match. The caller counts the depth up to [`MAX_INDEX_DEPTH`].
    Indexes(Vec<&'a Descriptor>),
}

impl Index {
    /// Selects the entry for `platform`.
    ///
    /// Variants are tried best first; among equals the first entry wins.
    /// Entries without a platform or with `unknown/unknown` are records about
    /// images, not images; only an index whose single entry says nothing
    /// about its platform is taken at its word, to be checked against the
    /// config like a manifest without an index.
    ///
    /// # Errors
    /// [`SelectError::NoMatch`] with what is there instead.
    ///
    /// # Source
    /// The order of containers/image (services.md §2 of the project's
    /// references, "Index").
    pub fn select(&self, platform: &Platform) -> Result<Selection<'_>, SelectError> {
        let is_index = |entry: &Descriptor| matches!(essence(&entry.media_type).as_str(), OCI_INDEX | DOCKER_LIST);
        for wanted in platform.acceptable_variants() {
            for entry in &self.manifests {
                let Some(found) = entry.platform.as_ref().filter(|found| !found.is_unknown()) else { continue };
                let (architecture, variant) = found.canonical();
                if found.os == platform.os() && architecture == platform.architecture() && variant == wanted {
                    return Ok(if is_index(entry) {
                        Selection::Indexes(vec![entry])
                    } else {
                        Selection::Manifest(entry)
                    });
                }
            }
        }
        let nested: Vec<_> =
            self.manifests.iter().filter(|entry| entry.platform.is_none() && is_index(entry)).collect();
        if !nested.is_empty() {
            return Ok(Selection::Indexes(nested));
        }
        if let [entry] = self.manifests.as_slice()
            && entry.platform.is_none()
            && entry.artifact_type.is_empty()
        {
            return Ok(Selection::Manifest(entry));
        }
        let mut available: Vec<String> = Vec::new();
        for found in self.manifests.iter().filter_map(|entry| entry.platform.as_ref()) {
            let text = found.to_string();
            // A hostile index must not fill the caller's screen.
            if !found.is_unknown() && !available.contains(&text) && available.len() < 16 {
                available.push(text);
            }
        }
        Err(SelectError::NoMatch {
            architecture: platform.architecture().to_owned(),
            variant: platform.variant().unwrap_or_default().to_owned(),
            os: platform.os().to_owned(),
            available,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sctl_common::Digest;

    use super::*;
    use crate::{EntryPlatform, media_type::OCI_MANIFEST};

    /// An entry named by `name` through its digest; `platform` as `os/arch[/variant]`.
    fn entry(name: &str, media_type: &str, platform: &str) -> Descriptor {
        let mut parts = platform.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let parsed = EntryPlatform { os: next(), architecture: next(), variant: next() };
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(name.as_bytes()),
            size: 1,
            urls: Vec::new(),
            artifact_type: String::new(),
            platform: (!platform.is_empty()).then_some(parsed),
            annotations: BTreeMap::new(),
            data: None,
        }
    }

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().enumerate().map(|(at, text)| entry(&at.to_string(), OCI_MANIFEST, text));
        Index { manifests: manifests.collect(), annotations: BTreeMap::new() }
    }

    #[test]
    fn the_best_variant_wins_and_then_the_first_entry() {
        let cases: [(&[&str], &str, Option<usize>); 13] = [
            (&["linux/arm64", "linux/amd64", "linux/amd64"], "amd64", Some(1)),
            (&["windows/amd64", "linux/amd64"], "amd64", Some(1)),
            (&["unknown/unknown", "linux/amd64", "unknown/unknown"], "amd64", Some(1)),
            (&["linux/amd64/v1"], "amd64", Some(0)),
            (&["linux/amd64/v3", "linux/amd64"], "amd64", Some(1)),
            (&["linux/x86_64"], "amd64", Some(0)),
            (&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "arm/v7", Some(1)),
            (&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "arm/v6", Some(2)),
            (&["linux/arm/v6", "linux/arm/v8"], "arm", Some(1)),
            (&["linux/arm64", "linux/arm64/v8"], "arm64", Some(1)),
            (&["linux/arm64"], "arm64/v8", Some(0)),
            (&["linux/arm/v7"], "arm/v6", None),
            (&["", "linux/arm64"], "amd64", None),
        ];
        for (platforms, wanted, expected) in cases {
            let index = index(platforms);
            let found = index.select(&wanted.parse().unwrap());
            match expected {
                Some(at) => assert_eq!(found, Ok(Selection::Manifest(&index.manifests[at])), "{platforms:?} {wanted}"),
                None => assert!(found.is_err(), "{platforms:?} {wanted}: {found:?}"),
            }
        }
    }

    #[test]
    fn nested_indexes_are_left_to_the_caller() {
        let amd64 = "amd64".parse().unwrap();
        let mut nested = index(&["linux/arm64"]);
        nested.manifests.push(entry("a", OCI_INDEX, ""));
        nested.manifests.push(entry("b", DOCKER_LIST, ""));
        let both = Selection::Indexes(vec![&nested.manifests[1], &nested.manifests[2]]);
        assert_eq!(nested.select(&amd64), Ok(both));
        assert_eq!(nested.select(&"arm64".parse().unwrap()), Ok(Selection::Manifest(&nested.manifests[0])));
        nested.manifests.push(entry("c", OCI_INDEX, "linux/amd64"));
        assert_eq!(nested.select(&amd64), Ok(Selection::Indexes(vec![&nested.manifests[3]])));
    }

    #[test]
    fn a_single_entry_without_platform_is_taken_at_its_word() {
        let amd64 = "amd64".parse().unwrap();
        let one = index(&[""]);
        assert_eq!(one.select(&amd64), Ok(Selection::Manifest(&one.manifests[0])));
        assert!(index(&["", ""]).select(&amd64).is_err());
        assert!(index(&["unknown/unknown"]).select(&amd64).is_err());
        assert!(index(&[]).select(&amd64).is_err());
    }

    #[test]
    fn no_match_says_what_there_is() {
        let index = index(&["linux/arm64/v8", "unknown/unknown", "linux/386"]);
        let error = index.select(&"amd64".parse().unwrap());
        assert_eq!(
            error.unwrap_err().to_string(),
            "no image found in image index for architecture \"amd64\", variant \"\", OS \"linux\" \
             (it offers linux/arm64/v8, linux/386)"
        );
    }
}
