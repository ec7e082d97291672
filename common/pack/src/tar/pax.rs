//! Records of pax extended headers.

/// One record: key and value.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits the next record off: `LENGTH KEY=VALUE\n`. `None` if it is none.
///
/// A NUL is refused in keys, and in values that become C strings.
pub(crate) fn next_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(parse_decimal(&bytes[..space])?).ok()?;
    if len > bytes.len() || len < space + 2 {
        return None;
    }
    let (record, rest) = bytes.split_at(len);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let has_nul = |bytes: &[u8]| bytes.contains(&0);
    let is_string = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || has_nul(key) || (is_string && has_nul(value)) {
        return None;
    }
    Some(((key, value), rest))
}

/// Parses an integer: decimal digits, with a sign or without.
pub(crate) fn parse_decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses a time such as `1700000000.25` or `-1.5`; gives the whole second at
/// or before it.
pub(crate) fn parse_time(text: &[u8]) -> Option<i64> {
    let (seconds, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = parse_decimal(seconds)?;
    let rounds_down = text.first() == Some(&b'-') && fraction.iter().any(|digit| *digit != b'0');
    Some(if rounds_down { whole.saturating_sub(1) } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_with_their_length() {
        let text = b"12 path=a b\n30 mtime=1321711775.972059463\n8 k==\n\n\n";
        let (first, rest) = next_record(text).unwrap();
        assert_eq!(first, (&b"path"[..], &b"a b"[..]));
        let (second, rest) = next_record(rest).unwrap();
        assert_eq!(second, (&b"mtime"[..], &b"1321711775.972059463"[..]));
        let (third, rest) = next_record(rest).unwrap();
        assert_eq!((third, rest), ((&b"k"[..], &b"=\n\n"[..]), &b""[..]));
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"6 a=b ",
            b"6 ab \n",
            b"5 =b\n",
            b" a=b\n",
            b"-6 a=b\n",
            b"",
            b"2 ",
            b"12 path=a\0b\n",
            b"3 \n",
        ] {
            assert!(next_record(bad).is_none(), "accepted {:?}", bad.escape_ascii().to_string());
        }
    }

    #[test]
    fn times_round_down() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12.999999999", Some(12)),
            ("-1", Some(-1)),
            ("-1.0", Some(-1)),
            ("-1.5", Some(-2)),
            ("-0.5", Some(-1)),
            ("5.", Some(5)),
            ("1.x", None),
            (".5", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text:?}");
        }
    }
}
