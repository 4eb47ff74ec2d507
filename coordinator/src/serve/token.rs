//! The token for changes: configured, or generated and stored.

use std::path::{Path, PathBuf};

use imgsync_common::config::Serve;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::private;
use imgsync_common::secret::Secret;

/// File name in the state folder.
const FILE: &str = "serve-token";
/// Random bytes of a generated token.
const LENGTH: usize = 32;

/// The API token, and where it comes from.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub secret: Secret,
    /// Whether the token was generated.
    pub is_made_up: bool,
    /// File that stores the token.
    pub file: Option<PathBuf>,
}

/// Returns the configured token, else the stored one, else a new one. A new token is stored in the folder if that is
/// writable.
///
/// # Errors
/// `Invalid` if the configured token is easy to guess.
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

/// Writes the token to a file that only the owner can read.
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
