//! Small replies: read within a limit, and what they say about errors.

use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;

use super::{
    error::{RegistryError, Subject, ToldErrors},
    transport::{Failure, host_and_port},
};

/// Error replies past this size are no registry's.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Errors of one reply that are shown.
const MAX_TOLD: usize = 8;

/// Reads a whole body of at most `limit_bytes`.
pub(crate) async fn read_small(
    mut response: Response,
    subject: &Subject,
    limit_bytes: u64,
    stall: Duration,
) -> Result<Vec<u8>, RegistryError> {
    let too_large = || RegistryError::TooLarge { subject: subject.clone(), limit_bytes };
    if response.content_length().is_some_and(|length| length > limit_bytes) {
        return Err(too_large());
    }
    let host = host_and_port(response.url());
    let mut bytes = Vec::new();
    // A whole small reply gets as long as one silence: dripping does not help.
    let deadline = tokio::time::Instant::now() + stall;
    loop {
        let chunk = tokio::time::timeout_at(deadline, response.chunk())
            .await
            .map_err(|_| RegistryError::TimedOut {
                host: host.clone(),
                what: "send its reply",
                seconds: stall.as_secs(),
            })?
            .map_err(|error| Failure::from_reqwest(&error).into_error(host.clone()))?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if (bytes.len() + chunk.len()) as u64 > limit_bytes {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Reads what an error reply says. Anything that is not a registry's JSON is
/// left unsaid: it may come from a server that was never meant to be asked.
pub(crate) async fn read_told(response: Response, stall: Duration) -> ToldErrors {
    let nowhere = Subject::Base { host: Box::default() };
    match read_small(response, &nowhere, MAX_ERROR_BYTES, stall).await {
        Ok(bytes) => parse_told(&bytes),
        Err(_) => ToldErrors::default(),
    }
}

#[derive(Deserialize)]
struct RawErrors {
    #[serde(default)]
    errors: Vec<RawError>,
    /// Docker Hub's token server has no `errors`.
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Parses `{"errors":[{"code","message"}]}` into lines `code: message`.
pub(crate) fn parse_told(bytes: &[u8]) -> ToldErrors {
    let Ok(raw) = serde_json::from_slice::<RawErrors>(bytes) else { return ToldErrors::default() };
    let mut lines: Vec<String> = raw
        .errors
        .into_iter()
        .take(MAX_TOLD)
        .filter_map(|error| {
            // MANIFEST_UNKNOWN reads "manifest unknown".
            let code = clean_text(&error.code.unwrap_or_default(), 64).to_ascii_lowercase().replace('_', " ");
            let message = clean_text(&error.message.unwrap_or_default(), 512);
            match (code.is_empty(), message.is_empty()) {
                (true, true) => None,
                (true, false) => Some(message),
                (false, true) => Some(code),
                (false, false) => Some(format!("{code}: {message}")),
            }
        })
        .collect();
    if lines.is_empty()
        && let Some(details) = raw.details
    {
        let details = clean_text(&details, 512);
        lines.extend((!details.is_empty()).then_some(details));
    }
    ToldErrors(lines)
}

/// Takes a foreign text's control characters out, so that it cannot move a
/// terminal's cursor, and cuts it at `max_chars`.
pub(crate) fn clean_text(text: &str, max_chars: usize) -> String {
    let is_bad = |c: &char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let clean: String = text.chars().map(|c| if is_bad(&c) { ' ' } else { c }).take(max_chars).collect();
    clean.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_registrys_json_is_told() {
        let cases: [(&[u8], &[&str]); 9] = [
            (
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[{"Type":"repository"}]}]}"#,
                &["unauthorized: authentication required"],
            ),
            (
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":null},{"code":"X"}]}"#,
                &["manifest unknown: manifest unknown", "x"],
            ),
            (br#"{"errors":[{"message":"\u001b[2Jboo\nhoo"}]}"#, &["[2Jboo hoo"]),
            (br#"{"details":"incorrect username or password"}"#, &["incorrect username or password"]),
            (br#"{"errors":[]}"#, &[]),
            (br#"{"errors":null}"#, &[]),
            (b"<html>secret of a neighbour</html>", &[]),
            (b"[1]", &[]),
            (b"", &[]),
        ];
        for (body, lines) in cases {
            assert_eq!(parse_told(body).lines(), lines, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn foreign_texts_are_cut_and_cleaned() {
        assert_eq!(clean_text("a\u{202e}b\r\n\tc\u{7}", 100), "a b   c");
        assert_eq!(clean_text("äöüß", 2), "äö");
    }
}
