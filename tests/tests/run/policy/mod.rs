//! `policy`: what an image must be before it is copied.

mod contents;
mod referrers;
mod signatures;
mod unchanged;
mod ways;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::TestImage;
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::program::Imgsync;
use serde_json::Value;

use crate::end_to_end::configured;

/// Returns a program with a rule from `app` of a registry to `m/app` of another, with more keys of the rule. The
/// public keys are beside the configuration.
fn rule(source: &str, target: &str, keys: &[(&str, &CosignKey)], more: &str) -> Imgsync {
    let program = configured(&format!("rules:\n- {{from: {source}/app, to: {target}/m, naming: keep, {more}}}\n"));
    for (name, key) in keys {
        program.file(name, key.public());
    }
    program
}

/// Returns a program whose rule demands a signature of `cosign.pub`.
fn signed_rule(source: &str, target: &str, key: &CosignKey) -> Imgsync {
    rule(source, target, &[("cosign.pub", key)], "policy: {signed: {keys: cosign.pub}}")
}

/// Returns the numbers of copied, unchanged and failed images.
fn counts(json: &Value) -> (u64, u64, u64) {
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    (count("copied"), count("unchanged"), count("failed"))
}

/// Asserts that a tag was refused by policy, and that the message has these words.
fn assert_refused(json: &Value, tag: &str, said: &str) {
    let failures = json["failures"].as_array().unwrap();
    let ends = format!(":{tag}");
    let failure = failures.iter().find(|failure| failure["source"].as_str().unwrap().ends_with(&ends));
    let failure = failure.unwrap_or_else(|| panic!("{tag} was not refused: {json:#}"));
    assert_eq!((&failure["kind"], &failure["attempts"]), (&"refused_by_policy".into(), &1.into()), "{tag}: {failure}");
    let error = failure["error"].as_str().unwrap();
    assert!(error.contains(said), "{tag}: `{said}` is not in: {error}");
}

/// Signs an image in the format of simple signing, under its digest tag.
fn sign(registry: &FaultRegistry, image: &TestImage, key: &CosignKey) {
    registry.push("app", &image.digest_tag("sig"), &key.sign_simply(&image.root));
}
