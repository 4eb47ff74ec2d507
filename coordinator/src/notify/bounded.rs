//! A writer that truncates text.

use std::io::Write;

/// Keeps the first bytes written, up to a limit.
pub(super) struct Bounded {
    pub(super) text: Vec<u8>,
    /// Whether something was truncated.
    pub(super) is_cut: bool,
    left: usize,
}

impl Bounded {
    /// Creates a writer with a limit in bytes.
    pub(super) fn of(bytes: usize) -> Bounded {
        Bounded { text: Vec::new(), is_cut: false, left: bytes }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let kept = bytes.len().min(self.left);
        self.text.extend_from_slice(&bytes[..kept]);
        self.left -= kept;
        self.is_cut |= kept < bytes.len();
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
        let mut bounded = Bounded::of(5);
        bounded.write_all(b"abc").unwrap();
        assert!(!bounded.is_cut);
        bounded.write_all(b"defg").unwrap();
        assert_eq!((bounded.text.as_slice(), bounded.is_cut), (b"abcde".as_slice(), true));
    }
}
