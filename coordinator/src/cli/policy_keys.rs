//! Public keys of policies, read from their files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use imgsync_bundle::PublicKey;
use imgsync_config::{Config, ImagePolicy, PolicyKey};
use imgsync_model::batch::{RequiredSignatures, SignatureNeed};
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Maximum size of the file of a key. One of RSA with 8192 bits has 2 KiB.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Reads the keys of all policies of a configuration. Their files are relative to `folder`.
pub(crate) fn read_policy_keys(config: &mut Config, folder: &Path) -> Result<()> {
    for key in config.policy_keys_mut() {
        key.pem = read_key(&folder.join(&key.name), &key.name)?;
    }
    Ok(())
}

/// Returns the policy that one of these keys has signed.
pub(crate) fn signed_by(files: &[impl AsRef<Path>]) -> Result<ImagePolicy> {
    let keys = files.iter().map(|file| {
        let name = file.as_ref().display().to_string();
        Ok(PolicyKey { pem: read_key(file.as_ref(), &name)?, name })
    });
    let signed = RequiredSignatures { keys: keys.collect::<Result<_>>()?, need: SignatureNeed::Any };
    Ok(ImagePolicy { signed: Some(signed), ..ImagePolicy::default() })
}

fn read_key(path: &Path, name: &str) -> Result<String> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Invalid, format!("reading the public key {}", path.display()), error.to_string())
            .with_source(error)
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_KEY_BYTES).read_to_string(&mut text).map_err(failed)?;
    PublicKey::from_pem(&text, name)?;
    // The rest of the file, such as a comment, does not travel.
    let (begin, end) = ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----");
    let block = text.find(begin).zip(text.find(end)).and_then(|(from, to)| text.get(from..to + end.len()));
    Ok(block.map_or_else(|| text.clone(), str::to_owned))
}
