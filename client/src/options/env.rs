//! Variables for the container: `--env` and `--env-file`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
};

use crate::{
    failure::{Failure, reason},
    output::warning,
};

/// Variables in the order in which they were given; a later one of the same
/// name takes the place of the earlier one.
#[derive(Debug, Default)]
pub struct Variables(Vec<(OsString, OsString)>);

impl Variables {
    fn set(&mut self, name: OsString, value: OsString) {
        // The way to another home is an option of its own.
        if name == "HOME" {
            warning!("Overriding HOME environment variable with --env is not permitted");
            return;
        }
        match self.0.iter_mut().find(|(had, _)| *had == name) {
            Some(had) => had.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// All of them.
    pub fn into_list(self) -> Vec<(OsString, OsString)> {
        self.0
    }
}

/// Puts both sources together; `--env` wins over files.
///
/// # Errors
/// Files that cannot be read, texts that are no assignment.
pub fn gather(assignments: &[OsString], files: &[OsString]) -> Result<Variables, Failure> {
    let mut explicit = Vec::new();
    for text in assignments {
        explicit.extend(parse_assignments(text)?);
    }
    let mut variables = Variables::default();
    for path in files {
        for (name, value) in read_file(Path::new(path))? {
            if explicit.iter().any(|(other, _)| *other == name) {
                warning!("Ignored environment file variable {}: override from --env", name.to_string_lossy());
            } else {
                variables.set(name, value);
            }
        }
    }
    explicit.into_iter().for_each(|(name, value)| variables.set(name, value));
    Ok(variables)
}

/// `NAME=VALUE`, or several of them separated by commas. A text with a single
/// equals sign is one assignment: its value may hold commas.
fn parse_assignments(text: &OsStr) -> Result<Vec<(OsString, OsString)>, Failure> {
    let bytes = text.as_bytes();
    let parts: Vec<&[u8]> = match bytes.iter().filter(|&&byte| byte == b'=').count() {
        1 => vec![bytes],
        _ => bytes.split(|&byte| byte == b',').collect(),
    };
    // A part without an assignment belongs to the value before it.
    let mut joined: Vec<Vec<u8>> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if assignment(part).is_none() => {
                last.push(b',');
                last.extend_from_slice(part);
            }
            _ => joined.push(part.to_vec()),
        }
    }
    joined.retain(|part| {
        let is_bad = has_bad_name(part);
        if is_bad {
            warning!("Ignored environment variable {}: no valid name", String::from_utf8_lossy(part));
        }
        !is_bad
    });
    joined
        .iter()
        .map(|part| {
            assignment(part).ok_or_else(|| {
                Failure::new(format!("invalid argument {:?} for \"--env\" flag", text.to_string_lossy()))
                    .cause(format!("{} must be formatted as key=value", String::from_utf8_lossy(part)))
            })
        })
        .collect()
}

/// Says whether a part names a variable, though none that a shell can have.
fn has_bad_name(part: &[u8]) -> bool {
    part.iter().position(|&byte| byte == b'=').is_some_and(|at| at > 0 && assignment(part).is_none())
}

/// Name and value, if the name is one that a shell can have.
fn assignment(text: &[u8]) -> Option<(OsString, OsString)> {
    let at = text.iter().position(|&byte| byte == b'=')?;
    let name = &text[..at];
    let good = name.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    good.then(|| (OsString::from_vec(name.to_vec()), OsString::from_vec(text[at + 1..].to_vec())))
}

fn read_file(path: &Path) -> Result<Vec<(OsString, OsString)>, Failure> {
    let unable = || Failure::new(format!("Could not read {} environment file", path.display()));
    let text = std::fs::read(path).map_err(|error| unable().cause(reason(&error)))?;
    parse_file(&text).map_err(|line| unable().cause(format!("line {line} is no assignment NAME=VALUE")))
}

/// Lines of `NAME=VALUE`, with or without `export` before and quotes around
/// the value; nothing is evaluated. Gives the number of a line that is wrong.
fn parse_file(text: &[u8]) -> Result<Vec<(OsString, OsString)>, usize> {
    let mut variables = Vec::new();
    let mut lines = text.split(|&byte| byte == b'\n').enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let line = line.strip_prefix(b"export ").unwrap_or(line).trim_ascii_start();
        let (name, value) = assignment(line).ok_or(number + 1)?;
        let mut value = value.into_vec();
        match value.first() {
            Some(&quote @ (b'"' | b'\'')) => {
                // Quoted values may go over several lines.
                while !is_closed(&value, quote) {
                    let (_, next) = lines.next().ok_or(number + 1)?;
                    value.push(b'\n');
                    value.extend_from_slice(next);
                }
                let trimmed = value.trim_ascii_end();
                let inner = &trimmed[1..trimmed.len() - 1];
                value = if quote == b'"' { unescape(inner) } else { inner.to_vec() };
            }
            _ => value.truncate(value.trim_ascii_end().len()),
        }
        variables.push((name, OsString::from_vec(value)));
    }
    Ok(variables)
}

/// Says whether a quoted value ends with its quote.
fn is_closed(value: &[u8], quote: u8) -> bool {
    let value = value.trim_ascii_end();
    if value.len() < 2 || value[value.len() - 1] != quote {
        return false;
    }
    let backslashes = value[..value.len() - 1].iter().rev().take_while(|&&byte| byte == b'\\').count();
    quote == b'\'' || backslashes % 2 == 0
}

/// Takes the backslash where a shell would inside double quotes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match bytes.peek() {
            Some(&next @ (b'"' | b'\\' | b'$' | b'`')) if byte == b'\\' => {
                out.push(next);
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        list.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn assignments_on_the_command_line() {
        for (text, expected) in [
            ("A=1", pairs(&[("A", "1")])),
            ("A=", pairs(&[("A", "")])),
            ("A=1,2,3", pairs(&[("A", "1,2,3")])),
            ("A=1,B=2", pairs(&[("A", "1"), ("B", "2")])),
            ("A=x=y", pairs(&[("A", "x=y")])),
            ("A=1,2,B=3", pairs(&[("A", "1,2"), ("B", "3")])),
            ("A=--opt=1,--other=2", pairs(&[("A", "--opt=1,--other=2")])),
        ] {
            assert_eq!(parse_assignments(text.as_ref()).unwrap(), expected, "{text}");
        }
        for bad in ["A", "=1"] {
            assert!(parse_assignments(bad.as_ref()).is_err(), "{bad}");
        }
        // No shell could have them: dropped, as everywhere else.
        for unusable in ["1A=2", "A B=1", "A-B=1"] {
            assert_eq!(parse_assignments(unusable.as_ref()).unwrap(), pairs(&[]), "{unusable}");
        }
    }

    #[test]
    fn files_are_read_line_by_line() {
        let text = b"# comment\n\nA=1\nexport B=two words \nC=\"a \\\"b\\\" $X\"\nD='it\\'\nE=\"x\ny\"\nF=\r\nG=a#b\n";
        let expected = pairs(&[
            ("A", "1"),
            ("B", "two words"),
            ("C", "a \"b\" $X"),
            ("D", "it\\"),
            ("E", "x\ny"),
            ("F", ""),
            ("G", "a#b"),
        ]);
        assert_eq!(parse_file(text).unwrap(), expected);
        assert_eq!(parse_file(b"A=1\nnonsense\n"), Err(2));
        assert_eq!(parse_file(b"A=\"open\nB=1\n"), Err(1));
    }

    #[test]
    fn the_command_line_wins_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "A=file\nB=file\nHOME=/x\n").unwrap();
        let list = gather(&["A=cli".into(), "C=1".into(), "C=2".into()], &[file.into()]).unwrap().into_list();
        assert_eq!(list, pairs(&[("B", "file"), ("A", "cli"), ("C", "2")]));
        assert!(gather(&[], &[dir.path().join("none").into()]).is_err());
    }
}
