//! Bind specifications: `--bind`, `--mount`, and what sites configure.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use crate::{failure::Failure, runtime::request::Bind};

/// Parses `SOURCE[:DESTINATION[:OPTIONS]]`, several of which are separated by
/// commas. `\,` and `\:` stand for the characters themselves.
///
/// # Errors
/// In the wording of the established tools.
pub fn parse_bind(spec: &OsStr) -> Result<Vec<Bind>, Failure> {
    let bad = |why: String| Failure::new(format!("while parsing bind path {:?}", spec.to_string_lossy())).cause(why);
    let mut groups: Vec<Vec<Vec<u8>>> = Vec::new();
    for part in split(spec.as_bytes(), b',') {
        let fields: Vec<Vec<u8>> = split(part, b':').into_iter().map(unescape).collect();
        match groups.last_mut() {
            // Options are separated by commas, too: `a:b:ro,id=1`.
            Some(group) if group.len() >= 3 && fields.len() == 1 && is_option(&fields[0]) => {
                group.extend(fields);
            }
            _ => groups.push(fields),
        }
    }
    groups.retain(|group| group.iter().any(|field| !field.is_empty()));
    let mut binds = Vec::new();
    for group in groups {
        let mut fields = group.into_iter();
        let source = fields.next().unwrap_or_default();
        if source.is_empty() {
            return Err(bad("empty bind source for bind path".to_owned()));
        }
        let destination = fields.next().filter(|field| !field.is_empty());
        let mut read_only = false;
        for option in fields {
            match option.as_slice() {
                b"ro" => read_only = true,
                b"rw" => read_only = false,
                b"" => return Err(bad("bad bind syntax".to_owned())),
                other => {
                    let other = String::from_utf8_lossy(other).into_owned();
                    return Err(bad(if other.starts_with("image-src=") || other.starts_with("id=") {
                        format!("binds from image files ({other}) are not supported yet")
                    } else {
                        format!("{other} is not a valid bind option")
                    }));
                }
            }
        }
        binds.push(make(&OsString::from_vec(source), destination.map(OsString::from_vec), read_only).map_err(bad)?);
    }
    Ok(binds)
}

/// Parses one `type=bind,source=…,destination=…[,ro]`, in CSV quoting.
///
/// # Errors
/// In the wording of the established tools.
pub fn parse_mount(spec: &OsStr) -> Result<Bind, Failure> {
    let bad = |why: &str| Failure::new(format!("while parsing mount {:?}", spec.to_string_lossy())).cause(why);
    let (mut kind, mut source, mut destination, mut read_only) = (None, None, None, false);
    for field in csv(spec.as_bytes()).ok_or_else(|| bad("a quoted field does not end"))? {
        let (key, value) = match field.iter().position(|&byte| byte == b'=') {
            Some(at) => (&field[..at], Some(OsStr::from_bytes(&field[at + 1..]))),
            None => (&field[..], None),
        };
        let value = value.filter(|value| !value.is_empty());
        match key {
            b"type" => kind = value.map(OsStr::to_owned),
            b"source" | b"src" => source = value.map(OsStr::to_owned),
            b"destination" | b"dst" | b"target" => destination = value.map(OsStr::to_owned),
            b"ro" | b"readonly" => read_only = value.is_none_or(|value| value != "false" && value != "0"),
            b"nonested" => {}
            b"image-src" | b"id" => return Err(bad("binds from image files are not supported yet")),
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(bad(&format!("invalid key \"{other}\" in mount specification")));
            }
        }
    }
    if let Some(kind) = kind.filter(|kind| kind != "bind") {
        return Err(bad(&format!("unsupported mount type \"{}\", only 'bind' is supported", kind.to_string_lossy())));
    }
    match (source, destination) {
        (Some(source), Some(destination)) => make(&source, Some(destination), read_only).map_err(|why| bad(&why)),
        _ => Err(bad("mounts must specify a source and a destination")),
    }
}

fn make(source: &OsStr, destination: Option<OsString>, read_only: bool) -> Result<Bind, String> {
    let source = std::path::absolute(source).map_err(|error| crate::failure::reason(&error))?;
    let destination = destination.map_or_else(|| source.clone(), PathBuf::from);
    if !destination.is_absolute() {
        return Err(format!("the destination {} is not an absolute path", destination.display()));
    }
    Ok(Bind { source, destination, read_only })
}

fn is_option(field: &[u8]) -> bool {
    matches!(field, b"ro" | b"rw") || field.starts_with(b"image-src=") || field.starts_with(b"id=")
}

/// Splits at `separator` where no backslash stands before it.
fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        if text[at] == b'\\' {
            at += 1;
        } else if text[at] == separator {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        at += 1;
    }
    parts.push(&text[start..]);
    parts
}

/// Takes the backslash from `\,` and `\:`; others stay.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match bytes.peek() {
            Some(&next @ (b',' | b':')) if byte == b'\\' => {
                out.push(next);
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

/// Fields of a CSV line; quotes are doubled inside quotes. `None` if a quoted
/// field does not end.
fn csv(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut fields = vec![Vec::new()];
    let mut quoted = false;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let field = fields.last_mut()?;
        match byte {
            b'"' if quoted && bytes.peek() == Some(&b'"') => {
                field.push(b'"');
                bytes.next();
            }
            b'"' => quoted = !quoted,
            b',' if !quoted => fields.push(Vec::new()),
            other => field.push(other),
        }
    }
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, destination: &str, read_only: bool) -> Bind {
        Bind { source: source.into(), destination: destination.into(), read_only }
    }

    #[test]
    fn bind_specifications() {
        let cwd = std::env::current_dir().unwrap();
        let relative = cwd.join("data").to_str().unwrap().to_owned();
        let cases: [(&str, Vec<Bind>); 10] = [
            ("/a", vec![bind("/a", "/a", false)]),
            ("/a:/b", vec![bind("/a", "/b", false)]),
            ("/a:/b:ro", vec![bind("/a", "/b", true)]),
            ("/a,/b:/c:ro,/d", vec![bind("/a", "/a", false), bind("/b", "/c", true), bind("/d", "/d", false)]),
            ("/a:/b:ro,rw", vec![bind("/a", "/b", false)]),
            ("/a\\,b\\:c:/d", vec![bind("/a,b:c", "/d", false)]),
            ("/a::ro", vec![bind("/a", "/a", true)]),
            ("", vec![]),
            ("/a,,", vec![bind("/a", "/a", false)]),
            ("data:/d", vec![bind(&relative, "/d", false)]),
        ];
        for (spec, expected) in cases {
            assert_eq!(parse_bind(spec.as_ref()).unwrap(), expected, "{spec}");
        }
        for (spec, why) in [
            (":/b", "empty bind source for bind path"),
            ("/a:/b:xx", "xx is not a valid bind option"),
            ("/a:b", "the destination b is not an absolute path"),
            ("/a:/b:", "bad bind syntax"),
            ("/a:/b:image-src=/x,id=1", "binds from image files (image-src=/x) are not supported yet"),
        ] {
            assert_eq!(parse_bind(spec.as_ref()).unwrap_err().causes, [why], "{spec}");
        }
    }

    #[test]
    fn mount_specifications() {
        let cases = [
            ("type=bind,source=/a,destination=/b", bind("/a", "/b", false)),
            ("type=bind,src=/a,dst=/b,ro", bind("/a", "/b", true)),
            ("src=/a,target=/b,readonly", bind("/a", "/b", true)),
            ("type=bind,\"source=/a,b\",\"dst=/c\"\"d\"", bind("/a,b", "/c\"d", false)),
        ];
        for (spec, expected) in cases {
            assert_eq!(parse_mount(spec.as_ref()).unwrap(), expected, "{spec}");
        }
        for (spec, why) in [
            ("type=tmpfs,dst=/b", "unsupported mount type \"tmpfs\", only 'bind' is supported"),
            ("type=bind,foo=1", "invalid key \"foo\" in mount specification"),
            ("type=bind,src=/a", "mounts must specify a source and a destination"),
            ("type=bind,\"src=/a", "a quoted field does not end"),
        ] {
            assert_eq!(parse_mount(spec.as_ref()).unwrap_err().causes, [why], "{spec}");
        }
    }
}
