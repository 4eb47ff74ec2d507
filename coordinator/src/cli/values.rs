//! Parsers of values that several commands take.

use imgsync_oci::error::ErrorKind;
use imgsync_worker::copy::ImageLocation;

/// Parses a reference to an image in a registry or in a layout.
pub(crate) fn parse_location(text: &str) -> Result<ImageLocation, String> {
    text.parse::<ImageLocation>().map_err(|error| error.message().to_owned())
}

/// Parses an error kind by name.
pub(crate) fn parse_error_kind(text: &str) -> Result<ErrorKind, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        let all: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
        format!("unknown error kind; expected one of {}", all.join(", "))
    })
}
