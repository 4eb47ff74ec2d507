//! A writer that truncates text.

use std::io::Write;

/// Keeps the first bytes written, up to a limit.
pub(super) struct TruncatingWriter {
    pub(super) text: Vec<u8>,
    /// Whether something was truncated.
    pub(super) is_truncated: bool,
    remaining: usize,
}

impl TruncatingWriter {
    /// Creates a writer with a limit in bytes.
    pub(super) fn with_limit(bytes: usize) -> TruncatingWriter {
        TruncatingWriter { text: Vec::new(), is_truncated: false, remaining: bytes }
    }
}

impl Write for TruncatingWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let kept = bytes.len().min(self.remaining);
        self.text.extend_from_slice(&bytes[..kept]);
        self.remaining -= kept;
        self.is_truncated |= kept < bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut() {
        let mut bounded = TruncatingWriter::with_limit(5);
        bounded.write_all(b"abc").unwrap();
        assert!(!bounded.is_truncated);
        bounded.write_all(b"defg").unwrap();
        assert_eq!((bounded.text.as_slice(), bounded.is_truncated), (b"abcde".as_slice(), true));
    }
}
