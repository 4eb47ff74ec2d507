//! The token for changes: configured, or generated and stored.

use std::path::{Path, PathBuf};

use imgsync_config::ServeConfig;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use imgsync_store::private_files;

/// File name in the state folder.
const TOKEN_FILE: &str = "serve-token";
/// Random bytes of a generated token.
const TOKEN_BYTES: usize = 32;

/// The API token, and where it comes from.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// The token.
    pub secret: Secret,
    /// Whether the token was generated.
    pub is_generated: bool,
    /// File that stores the token.
    pub file: Option<PathBuf>,
}

/// Returns the configured token, else the stored one, else a new one. A new token is stored in the folder if that is
/// writable.
///
/// # Errors
/// `Invalid` if the configured token is easy to guess.
pub fn load_token(configured: Option<&Secret>, folder: Option<&Path>) -> Result<ApiToken> {
    if let Some(secret) = configured {
        if let Some(why) = ServeConfig::token_weakness(secret.expose()) {
            return Err(Error::new(ErrorKind::Invalid, "reading the token of serve", why));
        }
        return Ok(ApiToken { secret: secret.clone(), is_generated: false, file: None });
    }
    let file = folder.map(|folder| folder.join(TOKEN_FILE));
    if let Some(kept) = file.as_deref().and_then(|file| std::fs::read_to_string(file).ok()) {
        let kept = kept.trim();
        if ServeConfig::token_weakness(kept).is_none() {
            return Ok(ApiToken { secret: Secret::new(kept), is_generated: true, file });
        }
    }
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = file.filter(|file| write_token_file(file, &text).is_ok());
    Ok(ApiToken { secret: Secret::new(text), is_generated: true, file })
}

/// Writes the token to a file that only the owner can read.
fn write_token_file(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    if let Some(folder) = file.parent() {
        private_files::create_folder(folder)?;
    }
    private_files::restrict_to_owner(file)?;
    let mut open = private_files::create_or_truncate(file)?;
    writeln!(open, "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_token_is_readable_by_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("imgsync-token-{}", std::process::id()));
        let first = load_token(None, Some(&folder)).unwrap();
        let again = load_token(None, Some(&folder)).unwrap();
        assert_eq!(first.secret.expose(), again.secret.expose());
        assert_eq!(first.secret.expose().len(), 2 * TOKEN_BYTES);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(first.file.unwrap()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        let elsewhere = load_token(None, Some(Path::new("/proc/nowhere"))).unwrap();
        assert!(elsewhere.file.is_none() && elsewhere.is_generated);
        let configured = load_token(Some(&Secret::new("0123456789abcdef")), None).unwrap();
        assert!(!configured.is_generated);
        assert!(load_token(Some(&Secret::new("short")), None).is_err());
    }
}
