//! Text that a POSIX shell reads back exactly.

/// One word that means exactly `text`, whatever is in it: single quotes, in
/// which nothing is special but their own end.
///
/// A single quote goes into double quotes: the shell inside some launchers
/// keeps the backslash of `\'` in an assignment.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

/// The words of a command line, each quoted.
pub(super) fn words(items: &[String]) -> String {
    items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(" ")
}

/// One word in double quotes that an evaluation turns into `text`: the form
/// in which existing images show ENTRYPOINT and CMD.
pub(super) fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '\\' | '"' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
