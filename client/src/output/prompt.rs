//! Questions to the user: on stdout, answered from stdin.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::failure::{Failure, reason};

/// Exit code of a shell's child that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Longest answer in bytes.
const MAX_ANSWER: u64 = 16 << 10;

/// Prints `question` and reads a line. `None` at the end of the input.
///
/// # Errors
/// An input that cannot be read.
pub fn ask(question: &str) -> Result<Option<String>, Failure> {
    super::print(question)?;
    let mut line = String::new();
    let count = io::stdin()
        .lock()
        .take(MAX_ANSWER)
        .read_line(&mut line)
        .map_err(|error| Failure::new("Unable to read the answer").cause(reason(&error)))?;
    Ok((count > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Understands a yes or a no; a blank answer is `default`.
///
/// # Errors
/// Anything else.
pub fn yes_or_no(answer: &str, default: bool) -> Result<bool, Failure> {
    match answer.trim().to_ascii_lowercase().as_str() {
        "" => Ok(default),
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err(Failure::new(format!("invalid answer: {answer:?}"))),
    }
}

/// Prints `question` and reads a secret: without echo on a terminal, a line
/// of stdin elsewhere.
///
/// # Errors
/// An input that cannot be read, or Ctrl-C.
pub fn ask_secret(question: &str) -> Result<Option<String>, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return ask(question);
    }
    let failed = |error: io::Error| Failure::new("Unable to read the answer").cause(reason(&error));
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    // Without ISIG, so that Ctrl-C cannot leave the terminal without echo.
    silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|errno| failed(errno.into()))?;
    // Not before: who answers at once would see the answer, and lose it.
    let asked = super::print(question);
    let result = match &asked {
        Ok(()) => read_keys(&mut stdin.lock()),
        Err(_) => Ok(Keys::End),
    };
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &before);
    asked?;
    super::print("\n")?;
    restored.map_err(|errno| failed(errno.into()))?;
    match result.map_err(failed)? {
        Keys::Line(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Keys::End => Ok(None),
        Keys::Interrupt => {
            io::stdout().flush().unwrap_or_default();
            Err(Failure::silent(INTERRUPTED))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Keys {
    Line(Vec<u8>),
    End,
    Interrupt,
}

fn read_keys(input: &mut impl io::Read) -> io::Result<Keys> {
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        if input.read(&mut key)? == 0 {
            return Ok(if line.is_empty() { Keys::End } else { Keys::Line(line) });
        }
        match key[0] {
            b'\r' | b'\n' => return Ok(Keys::Line(line)),
            0x03 | 0x1c => return Ok(Keys::Interrupt),
            0x04 if line.is_empty() => return Ok(Keys::End),
            0x04 => return Ok(Keys::Line(line)),
            0x08 | 0x7f => {
                // A character of several bytes goes as a whole.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            0x15 => line.clear(),
            byte if (line.len() as u64) < MAX_ANSWER => line.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        for (answer, default, expected) in
            [("y", false, true), ("YES", false, true), ("", false, false), ("", true, true), ("n", true, false)]
        {
            assert_eq!(yes_or_no(answer, default).unwrap(), expected, "{answer:?}");
        }
        assert_eq!(yes_or_no("x", false).unwrap_err().message, "invalid answer: \"x\"");
    }

    #[test]
    fn keys_edit_the_secret() {
        let of = |bytes: &[u8]| read_keys(&mut &bytes[..]).unwrap();
        assert_eq!(of(b"abc\rx"), Keys::Line(b"abc".to_vec()));
        assert_eq!(of(b"ab\x7fc\n"), Keys::Line(b"ac".to_vec()));
        assert_eq!(of("aü\x7f\n".as_bytes()), Keys::Line(b"a".to_vec()));
        assert_eq!(of(b"ab\x03"), Keys::Interrupt);
        assert_eq!(of(b"\x04"), Keys::End);
        assert_eq!(of(b"ab"), Keys::Line(b"ab".to_vec()));
    }
}
