//! Characters that the locale of a process can show.

use std::borrow::Cow;

/// Returns whether the locale shows UTF-8. The first variable of LC_ALL, LC_CTYPE and LANG that is not empty decides;
/// without one, the locale is POSIX, which shows ASCII.
pub fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    let charset = locale.split_once('.').map_or(locale.as_str(), |(_, charset)| charset);
    let charset = charset.split('@').next().unwrap_or_default();
    matches!(charset, "utf-8" | "utf8")
}

/// Rewrites a text in ASCII: punctuation as it is typed, other characters as `\u{…}`.
pub fn to_ascii(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            _ if character.is_ascii() => ascii.push(character),
            '…' => ascii.push_str("..."),
            '→' => ascii.push_str("->"),
            '←' => ascii.push_str("<-"),
            '–' | '—' | '─' => ascii.push('-'),
            '├' | '└' => ascii.push('+'),
            '│' => ascii.push('|'),
            '·' => ascii.push('*'),
            '×' => ascii.push('x'),
            '‘' | '’' => ascii.push('\''),
            '“' | '”' => ascii.push('"'),
            '\u{a0}' => ascii.push(' '),
            _ => ascii.extend(character.escape_unicode()),
        }
    }
    Cow::Owned(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> bool {
        is_utf8(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_first_variable_that_is_set_decides_and_none_is_posix() {
        assert!(!with(&[]));
        assert!(!with(&[("LANG", "")]));
        for locale in ["C", "POSIX", "en_US", "de_DE.ISO-8859-1", "de_DE@euro"] {
            assert!(!with(&[("LANG", locale)]), "{locale}");
        }
        for locale in ["C.UTF-8", "en_US.utf8", "UTF-8", "de_DE.UTF-8@euro", "zh_CN.UTF-8"] {
            assert!(with(&[("LANG", locale)]), "{locale}");
        }
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8"), ("LANG", "C")]));
    }

    #[test]
    fn punctuation_is_typed_and_other_characters_are_escaped() {
        assert_eq!(to_ascii("plain"), "plain");
        assert_eq!(to_ascii("a → b … └─ “c” 镜"), "a -> b ... +- \"c\" \\u{955c}");
    }
}
