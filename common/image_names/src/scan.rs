//! Scans one file.

use std::borrow::Cow;

use crate::format::{FileFormat, detect};
use crate::recorder::{FileScan, Recorder};
use crate::{dockerfile, documents, plain_list};

/// Maximum size of a file in bytes. `kubectl get pods -A -o yaml` of a thousand pods takes some 10 MiB.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// Finds the names of images in a file. `name` is used in places, and to recognise the format.
pub fn scan_file(name: &str, bytes: &[u8]) -> FileScan {
    let mut recorder = Recorder::new(name);
    if bytes.len() > MAX_FILE_BYTES {
        recorder.problem(format!("it has more than {} MiB, and is not read", MAX_FILE_BYTES >> 20), 0, "");
        return recorder.finish();
    }
    match decode(bytes) {
        Err(reason) => recorder.problem(reason, 0, ""),
        Ok(text) => match detect(name, &text) {
            FileFormat::Documents => documents::scan(name, &text, &mut recorder),
            FileFormat::Dockerfile => dockerfile::scan(&text, 0, "", &mut recorder),
            FileFormat::List => plain_list::scan(&text, &mut recorder),
        },
    }
    recorder.finish()
}

/// Decodes UTF-8, and UTF-16 with a byte order mark, which Windows PowerShell writes.
fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    const NOT_TEXT: &str = "it is not text";
    let units = |from: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks_exact(2).map(|pair| from([pair[0], pair[1]]));
        char::decode_utf16(units).collect::<Result<String, _>>().map(Cow::Owned).map_err(|_| NOT_TEXT)
    };
    let text = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] if !bytes.len().is_multiple_of(2) => return Err(NOT_TEXT),
        [0xff, 0xfe, ..] => units(u16::from_le_bytes)?,
        [0xfe, 0xff, ..] => units(u16::from_be_bytes)?,
        _ => Cow::Borrowed(
            std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).map_err(|_| NOT_TEXT)?,
        ),
    };
    if text.contains('\0') { Err(NOT_TEXT) } else { Ok(text) }
}
