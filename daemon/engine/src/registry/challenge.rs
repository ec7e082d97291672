//! `WWW-Authenticate`: what a registry asks for.
//!
//! # Source
//! RFC 9110 §11.2 and §11.6.1 (challenges, several in one field), RFC 6750 §3
//! (Bearer), and the distribution project's token specification.

use serde::{Deserialize, Serialize};

/// One challenge that this client can answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Challenge {
    /// User name and password in every request.
    Basic,
    /// A token from a token server.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name that the registry has there.
        service: Option<String>,
        /// Scopes that the registry wants the token to have.
        scopes: Vec<String>,
        /// Why the last token was not good enough.
        error: Option<String>,
    },
}

/// A scheme with its parameters, before anybody asked whether it is usable.
#[derive(Debug, Default)]
struct Raw {
    scheme: String,
    params: Vec<(String, String)>,
}

impl Raw {
    fn get(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Scopes past this many are noise or malice.
const MAX_SCOPES: usize = 16;

/// Parses all `WWW-Authenticate` fields of a reply; what cannot be answered
/// (Negotiate, NTLM, a Bearer without a realm) is left out.
pub(crate) fn parse_challenges<'a>(fields: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    fields.into_iter().flat_map(parse_field).filter_map(answerable).collect()
}

/// The challenge to answer: a token is worth more than a password on every
/// request.
pub(crate) fn choose(challenges: Vec<Challenge>) -> Option<Challenge> {
    let mut best = None;
    for challenge in challenges {
        match challenge {
            Challenge::Bearer { .. } => return Some(challenge),
            Challenge::Basic => best = Some(challenge),
        }
    }
    best
}

fn answerable(raw: Raw) -> Option<Challenge> {
    match raw.scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let text = |name| raw.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
            let scopes = raw.get("scope").unwrap_or_default();
            Some(Challenge::Bearer {
                realm: text("realm")?,
                service: text("service"),
                scopes: scopes.split_ascii_whitespace().take(MAX_SCOPES).map(str::to_owned).collect(),
                error: text("error"),
            })
        }
        _ => None,
    }
}

fn parse_field(field: &str) -> Vec<Raw> {
    let mut cursor = Cursor { rest: field };
    let mut found: Vec<Raw> = Vec::new();
    loop {
        cursor.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = cursor.token();
        if word.is_empty() {
            // Junk, or the end: what was understood so far still counts.
            return found;
        }
        cursor.skip(|c| c.is_ascii_whitespace());
        // `name = value` continues a challenge, a bare word starts one.
        if cursor.eat('=') && !found.is_empty() {
            cursor.skip(|c| c.is_ascii_whitespace());
            let value = cursor.value();
            if let Some(raw) = found.last_mut() {
                raw.params.push((word.to_ascii_lowercase(), value));
            }
        } else {
            found.push(Raw { scheme: word.to_ascii_lowercase(), params: Vec::new() });
            cursor.skip_token68();
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, matches: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(matches);
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !is_token_char(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    /// `Negotiate YII…==`: credentials in place of parameters.
    fn skip_token68(&mut self) {
        let is_68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let word = self.rest.trim_start_matches(is_68);
        let padded = word.trim_start_matches('=');
        let after = padded.trim_start();
        let ends = after.is_empty() || after.starts_with(',');
        // `realm="x"` also begins with such characters and a `=`, but then a
        // value follows it.
        if ends && word.len() != self.rest.len() {
            self.rest = padded;
        }
    }

    fn value(&mut self) -> String {
        if !self.eat('"') {
            let end = self.rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(self.rest.len());
            let (value, rest) = self.rest.split_at(end);
            self.rest = rest;
            return value.to_owned();
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => value.push(c),
            }
        }
        // An unclosed quote swallows the rest.
        self.rest = "";
        value
    }
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str], error: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_understood() {
        let hub = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            &["repository:library/ubuntu:pull,push"],
            None,
        );
        let cases: Vec<(&str, &[&str], Vec<Challenge>)> = vec![
            (
                "docker hub, a comma inside quotes",
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/ubuntu:pull,push""#,
                ],
                vec![hub.clone()],
            ),
            (
                "odd case and spaces",
                &[
                    r#"bEARER  Realm = "https://auth.docker.io/token" , SERVICE="registry.docker.io" ,scope="repository:library/ubuntu:pull,push""#,
                ],
                vec![hub],
            ),
            (
                "several in one field",
                &[r#"Negotiate, NTLM, Basic realm="a, b", Bearer realm="https://r/t?x=1""#],
                vec![Challenge::Basic, bearer("https://r/t?x=1", None, &[], None)],
            ),
            ("several fields, token68", &["Negotiate YIIB+/a==", "Basic"], vec![Challenge::Basic]),
            (
                "two scopes, an error, unquoted values",
                &[r#"Bearer realm=https://r/t,service=s,scope="a:b:c d:e:f",error="insufficient_scope""#],
                vec![bearer("https://r/t", Some("s"), &["a:b:c", "d:e:f"], Some("insufficient_scope"))],
            ),
            ("escaped quote", &[r#"Bearer realm="https://r/\"t""#], vec![bearer("https://r/\"t", None, &[], None)]),
            ("no realm", &["Bearer service=x"], vec![]),
            ("unclosed quote", &[r#"Basic realm="x"#], vec![Challenge::Basic]),
            ("junk", &["", ",,,", "=x", "\"", "Ünicode"], vec![]),
        ];
        for (name, fields, expected) in cases {
            assert_eq!(parse_challenges(fields.iter().copied()), expected, "{name}");
        }
    }

    #[test]
    fn bearer_is_preferred() {
        let both = parse_challenges([r#"Basic realm="x", Bearer realm="https://r""#]);
        assert!(matches!(choose(both), Some(Challenge::Bearer { .. })));
        assert_eq!(choose(vec![Challenge::Basic]), Some(Challenge::Basic));
        assert_eq!(choose(vec![]), None);
    }

    #[test]
    fn every_truncation_ends() {
        let field = r#"Negotiate abc==, Basic realm="a\"b", Bearer realm="https://r", scope="x y""#;
        for end in 0..=field.len() {
            let _ = parse_challenges([&field[..end]]);
        }
    }
}
