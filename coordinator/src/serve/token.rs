//! The token that changes need: the configured one, or one that is made up and kept.

use std::path::{Path, PathBuf};

use imgsync_common::config::Serve;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::private;
use imgsync_common::secret::Secret;

/// In the folder of the state.
const FILE: &str = "serve-token";
/// Bytes of a token that is made up.
const LENGTH: usize = 32;

/// A token, and how people get to know it.
#[derive(Debug, Clone)]
pub struct Token {
    /// What is to be shown.
    pub secret: Secret,
    /// Whether it was made up here.
    pub is_made_up: bool,
    /// The file that it is kept in.
    pub file: Option<PathBuf>,
}

/// The configured token, else the one that was made up before, else a new one. It is kept in this folder where that can be
/// written to.
///
/// # Errors
/// `Invalid` where what is configured can be guessed.
pub fn token(configured: Option<&Secret>, folder: Option<&Path>) -> Result<Token> {
    if let Some(secret) = configured {
        if let Some(why) = Serve::why_no_token(secret.expose()) {
            return Err(Error::new(Class::Invalid, "reading the token of serve", why));
        }
        return Ok(Token { secret: secret.clone(), is_made_up: false, file: None });
    }
    let file = folder.map(|folder| folder.join(FILE));
    if let Some(kept) = file.as_deref().and_then(|file| std::fs::read_to_string(file).ok()) {
        let kept = kept.trim();
        if Serve::why_no_token(kept).is_none() {
            return Ok(Token { secret: Secret::new(kept), is_made_up: true, file });
        }
    }
    let bytes: [u8; LENGTH] = rand::random();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = file.filter(|file| keep(file, &text).is_ok());
    Ok(Token { secret: Secret::new(text), is_made_up: true, file })
}

/// For nobody's eyes but its owner's.
fn keep(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    if let Some(folder) = file.parent() {
        private::create_folder(folder)?;
    }
    private::tighten(file)?;
    let mut open = private::replace(file)?;
    writeln!(open, "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_made_up_is_kept_for_its_owner_alone() {
        let folder = std::env::temp_dir().join(format!("imgsync-token-{}", std::process::id()));
        let first = token(None, Some(&folder)).unwrap();
        let again = token(None, Some(&folder)).unwrap();
        assert_eq!(first.secret.expose(), again.secret.expose());
        assert_eq!(first.secret.expose().len(), 2 * LENGTH);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(first.file.unwrap()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        let elsewhere = token(None, Some(Path::new("/proc/nowhere"))).unwrap();
        assert!(elsewhere.file.is_none() && elsewhere.is_made_up);
        let configured = token(Some(&Secret::new("0123456789abcdef")), None).unwrap();
        assert!(!configured.is_made_up);
        assert!(token(Some(&Secret::new("short")), None).is_err());
    }
}
