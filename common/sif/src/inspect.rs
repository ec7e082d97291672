//! `inspect-metadata.json`: what `inspect` shows, kept beside the file system
//! so that nothing has to be mounted.
//!
//! Members stand in a fixed order, and empty ones are left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Name of the data object with [`InspectMetadata`].
pub const INSPECT_METADATA: &str = "inspect-metadata.json";

/// Name of the data object with the OCI config's inner object.
pub const OCI_CONFIG: &str = "oci-config.json";

/// The whole document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectMetadata {
    /// The document's content.
    #[serde(default, deserialize_with = "null_default")]
    pub data: InspectData,
    /// Always `container`.
    #[serde(rename = "type", default, deserialize_with = "null_default")]
    pub kind: String,
}

/// What stands under `data`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectData {
    /// The members that `inspect` shows.
    #[serde(default, deserialize_with = "null_default")]
    pub attributes: Attributes,
}

/// What an image says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Apps by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub apps: BTreeMap<String, App>,
    /// Text of the environment scripts, by full path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub environment: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// Text of the runscript.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub runscript: String,
    /// Text of the test script.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub test: String,
    /// Help text.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub helpfile: String,
    /// Text of the definition file.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub deffile: String,
    /// Text of the start script.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub startscript: String,
}

/// What one app says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Text of the environment scripts, by full path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub environment: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// Text of the runscript.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub runscript: String,
    /// Text of the start script.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub startscript: String,
    /// Text of the test script.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub test: String,
    /// Help text.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub helpfile: String,
}

impl Default for InspectMetadata {
    fn default() -> Self {
        Self::new(Attributes::default())
    }
}

impl InspectMetadata {
    /// Wraps what an image says about itself.
    pub fn new(attributes: Attributes) -> Self {
        Self { data: InspectData { attributes }, kind: "container".to_owned() }
    }

    /// Parses the document; members may be missing, `null` or unknown.
    ///
    /// # Errors
    /// If it is not JSON of that shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The document as it is stored: compact.
    pub fn to_json(&self) -> String {
        // Maps with text keys and texts always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The document as `inspect --json` prints it: indented by tabs, without
    /// a newline at its end.
    pub fn to_json_pretty(&self) -> String {
        to_tabbed_json(self)
    }
}

/// Serializes with one tab per level, as the established tools do for
/// everything that people may read.
pub fn to_tabbed_json<T: Serialize>(value: &T) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match value.serialize(&mut serializer) {
        // The serializer writes UTF-8 only.
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_empty_ones_are_left_out() {
        let empty = r#"{"data":{"attributes":{}},"type":"container"}"#;
        assert_eq!(InspectMetadata::default().to_json(), empty);
        let full = concat!(
            r#"{"data":{"attributes":{"apps":{"a":{"environment":{"e":"1"},"labels":{"l":"2"},"runscript":"3","#,
            r#""startscript":"4","test":"5","helpfile":"6"}},"environment":{"/x":"y"},"labels":{"k":"v"},"#,
            r#""runscript":"r","test":"t","helpfile":"h","deffile":"d","startscript":"s"}},"type":"container"}"#
        );
        let parsed = InspectMetadata::parse(full.as_bytes()).unwrap();
        assert_eq!(parsed.to_json(), full);
        assert_eq!(parsed.data.attributes.apps["a"].helpfile, "6");
    }

    #[test]
    fn missing_null_and_unknown_members_are_taken() {
        for text in [
            "{}",
            r#"{"data":null,"type":null,"x":1}"#,
            r#"{"data":{"attributes":null}}"#,
            r#"{"data":{"attributes":{"labels":null,"runscript":null,"new":{}}}}"#,
        ] {
            assert_eq!(InspectMetadata::parse(text.as_bytes()).unwrap().data, InspectData::default(), "{text}");
        }
        assert!(InspectMetadata::parse(b"[]x").is_err());
    }

    #[test]
    fn printed_form_is_indented_by_tabs() {
        let text = InspectMetadata::new(Attributes { runscript: "r".to_owned(), ..Attributes::default() });
        let lines = "{\n\t\"data\": {\n\t\t\"attributes\": {\n\t\t\t\"runscript\": \"r\"\n\t\t}\n\t},\n\t\"type\": \"container\"\n}";
        assert_eq!(text.to_json_pretty(), lines);
    }
}
