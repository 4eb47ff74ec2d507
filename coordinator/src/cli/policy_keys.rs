//! Public keys of policies, read from their files.

use std::path::Path;

use imgsync_bundle::PublicKey;
use imgsync_config::{Config, ImagePolicy, PolicyKey};
use imgsync_model::batch::{RequiredSignatures, SignatureNeed};
use imgsync_oci::error::{Error, ErrorKind, Result};

use super::bundle::{MAX_KEY_BYTES, read_file};

/// Reads the keys of all policies of a configuration. Their files are relative to `folder`.
pub(crate) fn read_policy_keys(config: &mut Config, folder: &Path) -> Result<()> {
    for keys in config.policy_keys_mut() {
        let mut read = Vec::new();
        for key in keys {
            key.pem = read_key(&folder.join(&key.name), &key.name, &mut read)?;
        }
    }
    Ok(())
}

/// Returns the policy that one of these keys has signed.
pub(crate) fn signed_by(files: &[impl AsRef<Path>]) -> Result<ImagePolicy> {
    let mut read = Vec::new();
    let keys = files.iter().map(|file| {
        let name = file.as_ref().display().to_string();
        Ok(PolicyKey { pem: read_key(file.as_ref(), &name, &mut read)?, name })
    });
    let signed = RequiredSignatures { keys: keys.collect::<Result<_>>()?, need: SignatureNeed::Any };
    Ok(ImagePolicy { signed: Some(signed), ..ImagePolicy::default() })
}

/// Reads a key of a policy. `read` has the other keys of it, with their names. With the same key in two files, `need: all`
/// would be content with one signature for both.
fn read_key(path: &Path, name: &str, read: &mut Vec<(PublicKey, String)>) -> Result<String> {
    let text = String::from_utf8_lossy(&read_file(path, MAX_KEY_BYTES)?).into_owned();
    let key = PublicKey::from_pem(&text, name)?;
    if let Some((_, other)) = read.iter().find(|(other, _)| *other == key) {
        let detail = format!("{other} of the same policy has the same key");
        return Err(Error::new(ErrorKind::Invalid, format!("reading the public key {}", path.display()), detail)
            .with_hint("name each key once"));
    }
    read.push((key, name.to_owned()));
    // The rest of the file, such as a comment, does not travel.
    let (begin, end) = ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----");
    let block = text.find(begin).zip(text.find(end)).and_then(|(from, to)| text.get(from..to + end.len()));
    Ok(block.map_or_else(|| text.clone(), str::to_owned))
}
