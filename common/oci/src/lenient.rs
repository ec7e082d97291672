//! Deserializers that take what registries and tools really write.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::ParseError;

/// Parses a JSON object.
///
/// Serde alone would also take a list of the members' values.
pub(crate) fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8], what: &'static str) -> Result<T, ParseError> {
    let json = |source| ParseError::Json { what, source };
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(json(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &"an object")));
    }
    serde_json::from_slice(bytes).map_err(json)
}

/// `null` means the default.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of strings, one string, or `null`, as Docker's configs have been
/// written over the years.
pub(crate) fn strings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::<Form>::deserialize(deserializer)? {
        Some(Form::Many(list)) => list,
        Some(Form::One(text)) => vec![text],
        None => Vec::new(),
    })
}

/// A map to strings; numbers and truth values become their text, anything
/// else is left out.
pub(crate) fn string_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
    let text = |value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    Ok(map.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect())
}

/// A string, or nothing where something else stands.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        _ => String::new(),
    })
}
