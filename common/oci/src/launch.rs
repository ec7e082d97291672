//! What a config asks to be run: argv and environment.

use std::ffi::OsString;

use serde::Deserialize;

use crate::{
    ParseError,
    lenient::{object, strings},
};

/// Argv and environment of an image, exactly as its config has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// `ENTRYPOINT`, item by item; empty if there is none.
    pub entrypoint: Vec<String>,
    /// `CMD`, item by item; empty if there is none.
    pub cmd: Vec<String>,
    /// Environment: names are shell identifiers, each occurs once.
    pub env: Vec<(String, String)>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawLaunch {
    #[serde(deserialize_with = "strings")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "strings")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "strings")]
    env: Vec<String>,
}

impl Launch {
    /// Parses the `config` object of an image config, which a SIF stores as
    /// `oci-config.json`.
    ///
    /// Environment entries whose name is no shell identifier, that have no
    /// value or hold a NUL are left out; of entries with one name the last
    /// counts, as it does for Docker.
    ///
    /// # Errors
    /// [`ParseError`] if it is not such an object or argv holds a NUL.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let raw: Option<RawLaunch> = object(bytes, "image config")?;
        let raw = raw.unwrap_or_default();
        for (what, items) in [("Entrypoint", &raw.entrypoint), ("Cmd", &raw.cmd)] {
            if items.iter().any(|item| item.contains('\0')) {
                return Err(ParseError::Nul { what });
            }
        }
        // `ENTRYPOINT [""]` is how a Dockerfile clears an inherited one.
        let cleared = raw.entrypoint.len() == 1 && raw.entrypoint[0].is_empty();
        let entrypoint = if cleared { Vec::new() } else { raw.entrypoint };
        let mut env: Vec<(String, String)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for entry in &raw.env {
            let Some((name, value)) = entry.split_once('=') else { continue };
            if !is_identifier(name) || value.contains('\0') {
                continue;
            }
            match places.get(name) {
                Some(&at) => {
                    let (_, old): &mut (String, String) = &mut env[at];
                    *old = value.to_owned();
                }
                None => {
                    places.insert(name, env.len());
                    env.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        Ok(Self { entrypoint, cmd: raw.cmd, env })
    }

    /// What `run` executes with these arguments; nothing means a shell.
    ///
    /// Arguments follow the entrypoint in place of the cmd, unchanged: no
    /// shell sees them.
    ///
    /// # Source
    /// OCI image-spec, config.md, "Entrypoint" and "Cmd".
    pub fn argv<I>(&self, args: I) -> Option<Vec<OsString>>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut argv: Vec<OsString> = self.entrypoint.iter().map(Into::into).collect();
        let fixed = argv.len();
        argv.extend(args.into_iter().map(Into::into));
        if argv.len() == fixed {
            argv.extend(self.cmd.iter().map(OsString::from));
        }
        (!argv.is_empty()).then_some(argv)
    }
}

/// `^[a-zA-Z_]+[a-zA-Z0-9_]*$`
fn is_identifier(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(json: &str) -> Launch {
        Launch::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn arguments_replace_cmd_and_follow_entrypoint() {
        let both = r#"{"Entrypoint":["ep","-x"],"Cmd":["c 1","$HOME"]}"#;
        let cases: [(&str, &[&str], &[&str]); 8] = [
            (r#"{"Entrypoint":["ep"]}"#, &[], &["ep"]),
            (r#"{"Entrypoint":["ep"]}"#, &["a b", ""], &["ep", "a b", ""]),
            (r#"{"Cmd":["c","d"]}"#, &[], &["c", "d"]),
            (r#"{"Cmd":["c","d"]}"#, &["-x", "`y`"], &["-x", "`y`"]),
            (both, &[], &["ep", "-x", "c 1", "$HOME"]),
            (both, &["a"], &["ep", "-x", "a"]),
            (r#"{"Entrypoint":[""],"Cmd":"sh"}"#, &[], &["sh"]),
            ("{}", &["ls"], &["ls"]),
        ];
        for (json, args, expected) in cases {
            let argv = launch(json).argv(args.iter().copied()).unwrap();
            assert_eq!(argv, expected.iter().map(OsString::from).collect::<Vec<_>>(), "{json} {args:?}");
        }
        for json in ["{}", "null", r#"{"Entrypoint":null,"Cmd":[]}"#] {
            assert_eq!(launch(json).argv::<[&str; 0]>([]), None, "{json}");
        }
    }

    #[test]
    fn environment_keeps_valid_names_and_the_last_value() {
        let json = r#"{"Env":["A=1","B= x=y ","1C=x","D-E=x","F","=x","A=2","G=\u0000","H=","Ü=x","_i9=\n"]}"#;
        let env = launch(json).env;
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(env, [("A", "2"), ("B", " x=y "), ("H", ""), ("_i9", "\n")]);
    }

    #[test]
    fn nul_and_other_shapes_are_errors() {
        for bad in [r#"{"Cmd":["a\u0000"]}"#, r#"{"Entrypoint":["\u0000"]}"#, r#"{"Cmd":7}"#, "[", ""] {
            assert!(Launch::parse(bad.as_bytes()).is_err(), "accepted {bad}");
        }
    }
}
