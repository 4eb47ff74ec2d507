//! Keys of a policy, and which of them have signed.

use std::collections::BTreeSet;

use imgsync_bundle::PublicKey;
use imgsync_model::batch::{PolicyKey, RequiredSignatures, SignatureNeed};
use imgsync_oci::error::{Error, ErrorKind, Result};

/// The keys of a policy.
pub(super) struct KeyRing {
    keys: Vec<NamedKey>,
    need: SignatureNeed,
}

struct NamedKey {
    name: String,
    key: PublicKey,
}

/// Keys that have signed, by their position.
pub(super) type Signers = BTreeSet<usize>;

impl KeyRing {
    /// Parses the keys.
    ///
    /// # Errors
    /// `Invalid` if there is none, or one cannot be parsed: without them an unsigned image would be copied.
    pub(super) fn parse(signed: &RequiredSignatures) -> Result<KeyRing> {
        if signed.keys.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "reading `policy.signed`", "it has no keys"));
        }
        let parse =
            |key: &PolicyKey| Ok(NamedKey { name: key.name.clone(), key: PublicKey::from_pem(&key.pem, &key.name)? });
        Ok(KeyRing { keys: signed.keys.iter().map(parse).collect::<Result<_>>()?, need: signed.need })
    }

    /// Whether enough keys have signed.
    pub(super) fn suffice(&self, signers: &Signers) -> bool {
        match self.need {
            SignatureNeed::Any => !signers.is_empty(),
            SignatureNeed::All => signers.len() == self.keys.len(),
        }
    }

    /// Returns the keys that a signature of these bytes is of.
    pub(super) fn find_signers(&self, bytes: &[u8], signature: &str) -> Signers {
        let signed = self.keys.iter().enumerate().filter(|(_, named)| named.key.verify(bytes, signature));
        signed.map(|(at, _)| at).collect()
    }

    /// Names what is missing.
    pub(super) fn describe_need(&self) -> String {
        let names: Vec<&str> = self.keys.iter().map(|named| named.name.as_str()).collect();
        match (&names[..], self.need) {
            ([only], _) => format!("not signed by {only}"),
            (names, SignatureNeed::Any) => format!("not signed by any of {}", names.join(", ")),
            (names, SignatureNeed::All) => format!("not signed by all of {}", names.join(", ")),
        }
    }

    /// Names keys.
    pub(super) fn names_of(&self, signers: &Signers) -> String {
        let names = signers.iter().filter_map(|at| self.keys.get(*at)).map(|named| named.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }
}
