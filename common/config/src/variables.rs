//! Expands `${VAR}`, `${VAR:-default}` and `${VAR:?why}` in values.
//!
//! Only `${` is special, and `$$` is one dollar; any other `$` is literal, so that Harbor's `robot$name` works as it
//! is. Expansion follows YAML parsing, in single values: the content of a variable can neither become a key nor break
//! the file. It is not expanded again.

/// A value with its variables expanded.
#[derive(Debug, PartialEq)]
pub(super) struct Expanded {
    pub(super) text: String,
    /// Whether there were any variables.
    pub(super) has_variables: bool,
    /// Ranges of the variables' content in the text, in order.
    pub(super) variables: Vec<std::ops::Range<usize>>,
}

/// An error with its byte range in the value.
#[derive(Debug, PartialEq)]
pub(super) struct VariableError {
    pub(super) message: String,
    pub(super) at: std::ops::Range<usize>,
}

/// Expands the variables of a value.
pub(super) fn expand(value: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, VariableError> {
    let mut filled = Expanded { text: String::with_capacity(value.len()), has_variables: false, variables: Vec::new() };
    let mut position = 0;
    while let Some(dollar) = value[position..].find('$').map(|found| position + found) {
        filled.text.push_str(&value[position..dollar]);
        match value.as_bytes().get(dollar + 1) {
            Some(b'$') => {
                filled.text.push('$');
                position = dollar + 2;
            }
            Some(b'{') => {
                let Some(end) = value[dollar..].find('}').map(|found| dollar + found) else {
                    let message = "`${` without a `}` (a dollar itself is written `$$`)".to_owned();
                    return Err(VariableError { message, at: dollar..value.len() });
                };
                let text = expand_variable(&value[dollar + 2..end], environment)
                    .map_err(|message| VariableError { message, at: dollar..end + 1 })?;
                let start = filled.text.len();
                filled.text.push_str(&text);
                filled.variables.push(start..filled.text.len());
                filled.has_variables = true;
                position = end + 1;
            }
            _ => {
                filled.text.push('$');
                position = dollar + 1;
            }
        }
    }
    filled.text.push_str(&value[position..]);
    Ok(filled)
}

fn expand_variable(inside: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
    let (name, rest) = inside.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`{inside}` is not the name of a variable (a dollar itself is written `$$`)"));
    }
    let value = environment(name);
    let full = value.clone().filter(|value| !value.is_empty());
    match rest.get(..2) {
        _ if rest.is_empty() => value.ok_or_else(|| format!("the variable {name} is not set")),
        Some(":-") => Ok(full.unwrap_or_else(|| rest[2..].to_owned())),
        Some(":?") => full.ok_or_else(|| match &rest[2..] {
            "" => format!("the variable {name} is not set"),
            why => format!("the variable {name} is not set: {why}"),
        }),
        _ => Err(format!(
            "`${{{inside}}}` is not supported: use ${{{name}}}, ${{{name}:-default}} or ${{{name}:?message}}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(value: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "TOKEN" => Some("a: #b\n- ${TOKEN} $$".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(value, &environment).map(|filled| filled.text).map_err(|error| error.message)
    }

    #[test]
    fn variables_are_expanded_once() {
        for (value, text) in [
            ("plain", "plain"),
            ("robot$name", "robot$name"),
            ("$", "$"),
            ("a$$b", "a$b"),
            ("$${TOKEN}", "${TOKEN}"),
            ("$$$${x}", "$${x}"),
            ("<${TOKEN}>", "<a: #b\n- ${TOKEN} $$>"),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${NONE:-}", ""),
            ("${NONE:-a:-b}", "a:-b"),
            ("${TOKEN:?needed}", "a: #b\n- ${TOKEN} $$"),
        ] {
            assert_eq!(filled(value).as_deref(), Ok(text), "{value}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(filled("${NONE}").unwrap_err(), "the variable NONE is not set");
        assert_eq!(filled("${NONE:?log in first}").unwrap_err(), "the variable NONE is not set: log in first");
        assert_eq!(filled("${EMPTY:?}").unwrap_err(), "the variable EMPTY is not set");
        assert!(filled("${NONE").unwrap_err().contains("without a `}`"));
        assert!(filled("${}").unwrap_err().contains("not the name of a variable"));
        assert!(filled("${1}").unwrap_err().contains("not the name of a variable"));
        assert!(filled("${NONE-x}").unwrap_err().contains("${NONE:-default}"));
    }

    proptest! {
        #[test]
        fn nothing_panics(value in "[$a{}:?ä-]{0,12}|.*") {
            let _ = filled(&value);
        }

        #[test]
        fn doubled_dollars_bring_any_text_through(value in ".*") {
            prop_assert_eq!(filled(&value.replace('$', "$$")), Ok(value));
        }
    }
}
