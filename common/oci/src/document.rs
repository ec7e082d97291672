//! What a registry answers when asked for a manifest: an index or a manifest.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{
    Descriptor, ParseError,
    descriptor::RawDescriptor,
    lenient::{null_default, object, string_map},
    media_type::{self, essence},
};

/// Entries that an index may have. The largest public ones have some dozens.
const MAX_INDEX_ENTRIES: usize = 4096;

/// An index or a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of manifests by platform.
    Index(Index),
    /// Config plus layers.
    Manifest(Box<Manifest>),
}

/// List of manifests by platform: an OCI index or a Docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The entries in their order.
    pub manifests: Vec<Descriptor>,
    /// Notes by whoever made it.
    pub annotations: BTreeMap<String, String>,
}

/// Config plus layers: an OCI manifest or a Docker manifest, schema 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Media type of the manifest itself.
    pub media_type: String,
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Type of the artifact, or empty.
    pub artifact_type: String,
    /// Notes by whoever made it.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default, deserialize_with = "null_default")]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "null_default")]
    artifact_type: String,
    #[serde(default, deserialize_with = "string_map")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    Schema1,
}

impl Kind {
    fn of_media_type(text: &str) -> Option<Self> {
        match text {
            media_type::OCI_INDEX | media_type::DOCKER_LIST => Some(Self::Index),
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(Self::Manifest),
            media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED => Some(Self::Schema1),
            _ => None,
        }
    }
}

impl Document {
    /// Parses a manifest response.
    ///
    /// `content_type` is the response's header, if there was one. It and the
    /// body's own media type must agree where both name a document that we
    /// know; without either, the members tell.
    ///
    /// # Errors
    /// [`ParseError`]. A body with the members of both kinds is refused,
    /// because two readers could see two images in it (CVE-2021-41190).
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ParseError> {
        let raw: RawDocument = object(bytes, "image manifest")?;
        let header = essence(content_type.unwrap_or_default());
        let body = essence(&raw.media_type);
        let (by_header, by_body) = (Kind::of_media_type(&header), Kind::of_media_type(&body));
        if by_header == Some(Kind::Schema1) || by_body == Some(Kind::Schema1) || raw.schema_version == Some(1) {
            return Err(ParseError::Schema1);
        }
        if let Some(found) = raw.schema_version.filter(|&version| version != 2) {
            return Err(ParseError::SchemaVersion { found });
        }
        if by_header.is_some() && by_body.is_some() && by_header != by_body {
            return Err(ParseError::Ambiguous { claimed: header, found: body });
        }
        let is_index = raw.manifests.is_some();
        let is_manifest = raw.layers.is_some() || raw.config.is_some();
        let media_type = if body.is_empty() { header } else { body };
        let by_members = match (is_index, is_manifest) {
            (true, false) => Kind::Index,
            (false, true) => Kind::Manifest,
            (true, true) => {
                let claimed = if media_type.is_empty() { "an index".to_owned() } else { media_type };
                return Err(ParseError::Ambiguous { claimed, found: "both an index and a manifest".to_owned() });
            }
            (false, false) if raw.fs_layers.is_some() => return Err(ParseError::Schema1),
            // An index may be empty; it then has the type alone.
            (false, false) => match by_body.or(by_header) {
                Some(Kind::Index) => Kind::Index,
                _ => return Err(ParseError::UnknownDocument { media_type }),
            },
        };
        if let Some(kind) = by_body.or(by_header)
            && kind != by_members
        {
            let found = if by_members == Kind::Index { "an index" } else { "a manifest" };
            return Err(ParseError::Ambiguous { claimed: media_type, found: found.to_owned() });
        }
        if by_members == Kind::Index {
            let manifests = raw.manifests.unwrap_or_default();
            if manifests.len() > MAX_INDEX_ENTRIES {
                return Err(ParseError::TooMany {
                    what: "image index",
                    found: manifests.len(),
                    limit: MAX_INDEX_ENTRIES,
                });
            }
            let manifests = check_all(manifests, "index entry")?;
            return Ok(Self::Index(Index { manifests, annotations: raw.annotations }));
        }
        let Some(config) = raw.config else {
            return Err(ParseError::UnknownDocument { media_type });
        };
        let config = config.check(|| "config".to_owned())?;
        let layers = check_all(raw.layers.unwrap_or_default(), "layer")?;
        let (artifact_type, annotations) = (raw.artifact_type, raw.annotations);
        Ok(Self::Manifest(Box::new(Manifest { media_type, config, layers, artifact_type, annotations })))
    }
}

fn check_all(list: Vec<RawDescriptor>, what: &str) -> Result<Vec<Descriptor>, ParseError> {
    list.into_iter().enumerate().map(|(at, raw)| raw.check(|| format!("{what} {}", at + 1))).collect()
}

#[cfg(test)]
mod tests {
    use sctl_common::{Digest, ErrorKind};

    use super::*;

    fn descriptor(media_type: &str, of: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(of.as_bytes()), of.len())
    }

    fn manifest() -> String {
        let (config, layer) = (descriptor(media_type::OCI_CONFIG, "c"), descriptor(media_type::OCI_LAYER, "layer"));
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}]}}"#,
            media_type::OCI_MANIFEST
        )
    }

    fn parse(text: &str) -> Result<Document, ParseError> {
        Document::parse(text.as_bytes(), None)
    }

    #[test]
    fn both_kinds_are_read_with_and_without_types() {
        let config = descriptor("", "c");
        for (text, header) in [
            (manifest(), None),
            (manifest(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")),
            (manifest(), Some("text/plain")),
            (format!(r#"{{"config":{config},"layers":[]}}"#), None),
            (format!(r#"{{"config":{config},"layers":null,"mediaType":null,"annotations":null,"x":[]}}"#), None),
            (format!(r#"{{"config":{config},"manifests":null}}"#), Some(media_type::DOCKER_MANIFEST)),
        ] {
            let document = Document::parse(text.as_bytes(), header).unwrap();
            assert!(matches!(document, Document::Manifest(_)), "{text}");
        }
        let entry = descriptor(media_type::OCI_MANIFEST, "m");
        for (text, header, entries) in [
            (format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#), None, 1),
            (r#"{"manifests":[]}"#.to_owned(), Some(media_type::DOCKER_LIST), 0),
            (format!(r#"{{"mediaType":"{}","manifests":null}}"#, media_type::OCI_INDEX), None, 0),
        ] {
            let Ok(Document::Index(index)) = Document::parse(text.as_bytes(), header) else { panic!("{text}") };
            assert_eq!(index.manifests.len(), entries, "{text}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let text = manifest();
        for len in 0..text.len() {
            assert!(parse(&text[..len]).is_err(), "accepted {len} bytes");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let (config, entry) = (descriptor("", "c"), descriptor("", "m"));
        let header = Some(media_type::OCI_INDEX);
        let cases = [
            (format!(r#"{{"config":{config},"layers":[],"manifests":[{entry}]}}"#), None),
            (format!(r#"{{"layers":[],"manifests":[{entry}]}}"#), header),
            (manifest(), header),
            (format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media_type::DOCKER_MANIFEST), None),
            (
                format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media_type::DOCKER_LIST),
                Some(media_type::OCI_MANIFEST),
            ),
        ];
        for (text, header) in cases {
            let result = Document::parse(text.as_bytes(), header);
            assert!(matches!(result, Err(ParseError::Ambiguous { .. })), "{text}: {result:?}");
        }
        // A member that occurs twice: parsers differ on which one counts.
        let twice = format!(r#"{{"config":{config},"config":{entry},"layers":[]}}"#);
        assert!(matches!(parse(&twice), Err(ParseError::Json { .. })));
        // The positional form that serde would take is nobody's manifest.
        assert!(matches!(parse("[2]"), Err(ParseError::Json { .. })));
    }

    #[test]
    fn what_is_not_supported_is_said_clearly() {
        for text in [
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"fsLayers":[{"blobSum":"x"}]}"#.to_owned(),
            format!(r#"{{"schemaVersion":1,"mediaType":"{}"}}"#, media_type::DOCKER_SCHEMA1_SIGNED),
        ] {
            assert!(matches!(parse(&text), Err(ParseError::Schema1)), "{text}");
        }
        let by_header = Document::parse(b"{}", Some(media_type::DOCKER_SCHEMA1));
        assert!(matches!(by_header, Err(ParseError::Schema1)));
        assert!(matches!(parse(r#"{"schemaVersion":3}"#), Err(ParseError::SchemaVersion { found: 3 })));
        for text in ["{}", r#"{"layers":[]}"#, r#"{"errors":[{"code":"DENIED"}]}"#] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, ParseError::UnknownDocument { .. }), "{text}");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn descriptors_are_checked() {
        let digest = Digest::of(b"{}");
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let cases = [
            ("no size", format!(r#"{{"digest":"{digest}"}}"#), ErrorKind::Corrupt),
            ("null size", format!(r#"{{"digest":"{digest}","size":null}}"#), ErrorKind::Corrupt),
            ("negative size", format!(r#"{{"digest":"{digest}","size":-1}}"#), ErrorKind::Corrupt),
            ("fraction", format!(r#"{{"digest":"{digest}","size":1.5}}"#), ErrorKind::Corrupt),
            ("huge size", format!(r#"{{"digest":"{digest}","size":9223372036854775808}}"#), ErrorKind::Corrupt),
            ("no digest", r#"{"size":1}"#.to_owned(), ErrorKind::Corrupt),
            ("bad digest", r#"{"digest":"sha256:../../etc/passwd","size":1}"#.to_owned(), ErrorKind::Corrupt),
            ("other algorithm", format!(r#"{{"digest":"{sha512}","size":1}}"#), ErrorKind::Unsupported),
            ("wrong data", format!(r#"{{"digest":"{digest}","size":2,"data":"e31="}}"#), ErrorKind::Corrupt),
            ("short data", format!(r#"{{"digest":"{digest}","size":3,"data":"e30="}}"#), ErrorKind::Corrupt),
            ("not base64", format!(r#"{{"digest":"{digest}","size":2,"data":"!!"}}"#), ErrorKind::Corrupt),
        ];
        for (name, layer, kind) in cases {
            let text = format!(r#"{{"config":{},"layers":[{layer}]}}"#, descriptor("", "c"));
            assert_eq!(parse(&text).map_err(|error| error.kind()), Err(kind), "{name}");
        }
        let layer = format!(r#"{{"digest":"{digest}","size":2,"data":"e30=","urls":["https://x/y"]}}"#);
        let text = format!(r#"{{"config":{},"layers":[{layer}]}}"#, descriptor("", "c"));
        let Ok(Document::Manifest(manifest)) = parse(&text) else { panic!("refused {text}") };
        assert_eq!(manifest.layers[0].data.as_deref(), Some(&b"{}"[..]));
        assert_eq!(manifest.layers[0].urls, ["https://x/y"]);
    }
}
