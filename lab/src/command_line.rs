//! Splits a command as written in a topology into words, without a shell in between.

/// A command that does not split into words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SplitError {
    /// A quote is opened and never closed.
    #[error("has a quote that is never closed")]
    OpenQuote,
    /// The last character is a backslash.
    #[error("ends with a backslash")]
    TrailingBackslash,
}

/// Words separated by white space; quotes and backslashes work as in a POSIX shell, nothing is expanded.
pub fn split(line: &str) -> Result<Vec<String>, SplitError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(SplitError::OpenQuote)? {
                        '\'' => break,
                        inside => word.push(inside),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(SplitError::TrailingBackslash)?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), SplitError> {
    loop {
        match chars.next().ok_or(SplitError::OpenQuote)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(SplitError::OpenQuote)? {
                escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            inside => word.push(inside),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_like_a_shell() {
        for (line, expected) in [
            ("ip addr  add 10.0.0.1/24 dev eth0", vec!["ip", "addr", "add", "10.0.0.1/24", "dev", "eth0"]),
            ("sh -c 'a \"b\" c'", vec!["sh", "-c", "a \"b\" c"]),
            (r#"echo "a \"b\" \n" ''"#, vec!["echo", r#"a "b" \n"#, ""]),
            (r"a\ b c", vec!["a b", "c"]),
            ("  ", vec![]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        assert_eq!(split("a 'b"), Err(SplitError::OpenQuote));
        assert_eq!(split("a \\"), Err(SplitError::TrailingBackslash));
    }
}
