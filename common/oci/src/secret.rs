//! Secrets that are never shown: passwords and tokens. See [`Secret`].

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::mask::{self, MASK};

/// A password or a token. It prints and serializes as `***`; only [`expose`](Secret::expose) returns the text, so that
/// every use can be found by that name. While it is alive, [`mask`](crate::mask::mask) masks it in external text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a text, which is masked from now on.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into().into();
        mask::register(&text);
        Self(text)
    }

    /// Keeps the text masked for some time after its last use, for example a replaced token.
    pub fn keep_masked(&self) {
        mask::retire(&self.0);
    }

    /// Returns the text, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The format's own error quotes the value (`invalid type: integer 1234`), which is the secret.
        match String::deserialize(deserializer) {
            Ok(text) => Ok(Self::new(text)),
            Err(_) => Err(D::Error::custom("a secret must be a string (quote it; the value is not shown)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Login {
        password: Secret,
    }

    #[test]
    fn reads_a_text_and_writes_stars() {
        let login: Login = serde_json::from_str(r#"{"password":"hunter2"}"#).unwrap();
        assert_eq!(login.password.expose(), "hunter2");
        assert_eq!(serde_json::to_string(&login).unwrap(), r#"{"password":"***"}"#);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_not_quoted_in_the_error() {
        for written in ["123456", "[\"123456\"]", "true", "null"] {
            let json = format!(r#"{{"password":{written}}}"#);
            let error = serde_json::from_str::<Login>(&json).unwrap_err().to_string();
            assert!(!error.contains(written), "{error}");
            assert!(error.contains("line 1"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_way_of_printing_depends_on_the_text(text in ".*", width in 0usize..40) {
            let secret = Secret::from(text.clone());
            prop_assert_eq!(secret.expose(), text.as_str());
            prop_assert_eq!(format!("{secret} {secret:?} {secret:#?}"), "*** *** ***");
            prop_assert_eq!(format!("{secret:width$}"), "***");
            prop_assert_eq!(format!("{:?}", Some(&secret)), "Some(***)");
            prop_assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        }
    }
}
