//! Expands `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:+other}` and `${VAR:?why}` as compose files and
//! Dockerfiles write them.

/// Defaults can contain variables.
const MAX_DEPTH: usize = 8;
/// Maximum length of an expanded value: defaults that use each other can double it with each line.
const MAX_BYTES: usize = 4096;

/// Returns the text with all variables expanded, or the reason why one cannot be.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    expand_within(text, lookup, MAX_DEPTH)
}

fn expand_within(text: &str, lookup: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<String, String> {
    if depth == 0 {
        return Err("its variables are nested too deeply".to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        if out.len() > MAX_BYTES {
            return Err("its variables make it too long".to_owned());
        }
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'{') => {
                let end = closing_brace(rest).ok_or("a variable has no closing brace")?;
                out.push_str(&expand_braces(&rest[1..end], lookup, depth)?);
                rest = &rest[end + 1..];
            }
            Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {
                let (name, after) = split_name(rest);
                out.push_str(&lookup(name).ok_or_else(|| unset(name))?);
                rest = after;
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    if out.len() > MAX_BYTES { Err("its variables make it too long".to_owned()) } else { Ok(out) }
}

fn unset(name: &str) -> String {
    format!("the variable {name} has no default")
}

fn split_name(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len()))
}

/// Returns the offset of the brace that closes the one at the beginning.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

fn expand_braces(inside: &str, lookup: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<String, String> {
    let (name, operator) = split_name(inside);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`${{{inside}}}` is not a variable"));
    }
    let value = lookup(name);
    let full = value.clone().filter(|value| !value.is_empty());
    let other = |text: &str| expand_within(text, lookup, depth - 1);
    if operator.is_empty() {
        return value.ok_or_else(|| unset(name));
    }
    if let Some(default) = operator.strip_prefix(":-") {
        return full.map_or_else(|| other(default), Ok);
    }
    if let Some(default) = operator.strip_prefix('-') {
        return value.map_or_else(|| other(default), Ok);
    }
    if let Some(instead) = operator.strip_prefix(":+") {
        return full.map_or(Ok(String::new()), |_| other(instead));
    }
    if let Some(instead) = operator.strip_prefix('+') {
        return value.map_or(Ok(String::new()), |_| other(instead));
    }
    if operator.starts_with(":?") || operator.starts_with('?') {
        return full.ok_or_else(|| unset(name));
    }
    Err(format!("`${{{inside}}}` is a kind of variable that is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &|name| match name {
            "TAG" => Some("1.0".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_expanded_with_their_defaults() {
        for (text, wanted) in [
            ("a:$TAG", "a:1.0"),
            ("a:${TAG}", "a:1.0"),
            ("a:${NONE:-2}", "a:2"),
            ("a:${NONE-2}", "a:2"),
            ("a:${EMPTY:-2}", "a:2"),
            ("a${EMPTY-2}", "a"),
            ("a${TAG:+:x}", "a:x"),
            ("a${NONE:+:x}", "a"),
            ("a:${NONE:-${OTHER:-3}}", "a:3"),
            ("${NONE:-r.example/}a:${TAG:?set it}", "r.example/a:1.0"),
            ("a$$b", "a$b"),
            ("a$", "a$"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(wanted), "{text}");
        }
        for text in ["a:$NONE", "a:${NONE}", "a:${NONE:?}", "a:${", "a:${}", "a:${1}", "a:${TAG#1}", "a:${TAG/1/2}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
        assert!(expanded(&"${A:-".repeat(50)).is_err());
        assert!(expanded(&format!("{}{}", "${A:-".repeat(50), "}".repeat(50))).unwrap_err().contains("too deeply"));
    }
}
