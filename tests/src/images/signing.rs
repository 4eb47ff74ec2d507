//! Signatures of images in the shapes of cosign, made with `openssl`: simple signing under the tag `sha256-….sig`, and
//! sigstore bundles as referrers.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::builders::finish;
use super::{Blob, TestImage, media, sha256};

/// Media type of a payload of simple signing.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Media type of a sigstore bundle.
pub const SIGSTORE_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Annotation with a signature of simple signing.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Predicate type of a signature in a sigstore bundle.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// Type of a key pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256, as `cosign generate-key-pair` makes it.
    P256,
    /// Ed25519.
    Ed25519,
    /// RSA with 2048 bits.
    Rsa,
}

/// A key pair in files of its own.
#[derive(Clone, Debug)]
pub struct CosignKey {
    folder: Arc<TempDir>,
    kind: KeyType,
}

impl CosignKey {
    /// Makes a key pair of P-256.
    pub fn new() -> Self {
        Self::of(KeyType::P256)
    }

    /// Makes a key pair.
    ///
    /// # Panics
    /// If `openssl` is not installed.
    pub fn of(kind: KeyType) -> Self {
        let key = Self { folder: Arc::new(tempfile::tempdir().expect("a folder can be made")), kind };
        let how: &[&str] = match kind {
            KeyType::P256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            KeyType::Ed25519 => &["-algorithm", "ed25519"],
            KeyType::Rsa => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        };
        let private = key.private();
        key.openssl(&[&["genpkey"], how, &["-out", path(&private)]].concat());
        key
    }

    /// Returns the public key in PEM.
    pub fn public(&self) -> String {
        let private = self.private();
        String::from_utf8(self.openssl(&["pkey", "-in", path(&private), "-pubout"])).expect("PEM is text")
    }

    /// Signs bytes, and returns base64.
    pub fn sign(&self, bytes: &[u8]) -> String {
        let (private, data) = (self.private(), self.folder.path().join("data"));
        std::fs::write(&data, bytes).expect("the folder can be written to");
        let signature = match self.kind {
            KeyType::Ed25519 => {
                self.openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", path(&private), "-in", path(&data)])
            }
            KeyType::P256 | KeyType::Rsa => self.openssl(&["dgst", "-sha256", "-sign", path(&private), path(&data)]),
        };
        STANDARD.encode(signature)
    }

    /// Returns the payload and the signature of an image in the format of simple signing.
    pub fn simple_signature(&self, digest: &str) -> (Vec<u8>, String) {
        let payload = simple_payload(digest);
        let signature = self.sign(&payload);
        (payload, signature)
    }

    /// Makes the manifest under the tag `sha256-….sig`, as `cosign sign --new-bundle-format=false`.
    pub fn sign_simply(&self, digest: &str) -> TestImage {
        simple_signatures(&[self.simple_signature(digest)])
    }

    /// Makes the referrer with a bundle, as `cosign sign`.
    pub fn sign_in_bundle(&self, subject: &Value) -> TestImage {
        let digest = subject["digest"].as_str().expect("a descriptor has a digest");
        bundle_referrer(subject, &self.bundle(&sign_statement(digest)))
    }

    /// Makes a bundle of a statement.
    pub fn bundle(&self, statement: &Value) -> Value {
        let payload = statement.to_string();
        let kind = "application/vnd.in-toto+json";
        let signed = format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len());
        json!({
            "mediaType": SIGSTORE_BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": STANDARD.encode(self.public())}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&payload),
                "payloadType": kind,
                "signatures": [{"sig": self.sign(signed.as_bytes())}],
            },
        })
    }

    fn private(&self) -> PathBuf {
        self.folder.path().join("cosign.key")
    }

    fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Default for CosignKey {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the payload of simple signing.
pub fn simple_payload(digest: &str) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "registry.example/app"},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// Makes a manifest of simple signing with these payloads and signatures.
pub fn simple_signatures(signatures: &[(Vec<u8>, String)]) -> TestImage {
    let layers = signatures.iter().map(|(payload, signature)| {
        let annotations = json!({SIGNATURE_ANNOTATION: signature});
        (SIMPLE_SIGNING, payload.clone(), Some(annotations))
    });
    manifest(&layers.collect::<Vec<_>>(), json!({}))
}

/// Returns the statement that signs an image.
pub fn sign_statement(digest: &str) -> Value {
    let (algorithm, hex) = digest.split_once(':').expect("a digest has an algorithm");
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: hex}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    })
}

/// Makes a referrer with a bundle.
pub fn bundle_referrer(subject: &Value, bundle: &Value) -> TestImage {
    let more = json!({"artifactType": SIGSTORE_BUNDLE, "subject": subject});
    manifest(&[(SIGSTORE_BUNDLE, bundle.to_string().into_bytes(), None)], more)
}

/// Makes a manifest with an empty config.
fn manifest(layers: &[(&str, Vec<u8>, Option<Value>)], more: Value) -> TestImage {
    let mut blobs = std::collections::BTreeMap::new();
    let mut describe = |kind: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        blobs.insert(digest.clone(), Blob::Bytes(bytes.to_vec().into()));
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let config = describe(media::OCI_EMPTY, b"{}");
    let layers = layers.iter().map(|(kind, bytes, annotations)| {
        let mut layer = describe(kind, bytes);
        if let Some(annotations) = annotations {
            layer["annotations"] = annotations.clone();
        }
        layer
    });
    let layers: Vec<Value> = layers.collect();
    let mut manifest =
        json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers});
    for (key, value) in more.as_object().into_iter().flatten() {
        manifest[key] = value.clone();
    }
    TestImage { blobs, ..finish("signature", media::OCI_MANIFEST, &manifest) }
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("the path of a temporary folder is text")
}
