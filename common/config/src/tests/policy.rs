//! `policy` of a rule and of the defaults.

use super::*;
use imgsync_model::batch::{RequiredLabel, SignatureNeed};

fn policy(text: &str) -> Option<ImagePolicy> {
    good(&rule(text)).rules.remove(0).policy
}

#[test]
fn a_policy_is_read_whole_and_written_as_it_was() {
    let text = "policy: {signed: {keys: [keys/a.pub, b.pub], need: all}, max_age: 90d, max_size: 2GiB, labels: [team, \
                a=b=c], requires_platforms: linux/x86_64}";
    let read = policy(text).unwrap();
    let signed = read.signed.as_ref().unwrap();
    let names: Vec<&str> = signed.keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!((names, signed.need), (vec!["keys/a.pub", "b.pub"], SignatureNeed::All));
    assert!(signed.keys.iter().all(|key| key.pem.is_empty()), "files are not read here");
    assert_eq!((read.max_age_seconds, read.max_size), (Some(90 * 86_400), Some(2 << 30)));
    let label = |name: &str, value: Option<&str>| RequiredLabel { name: name.into(), value: value.map(str::to_owned) };
    assert_eq!(read.labels, [label("team", None), label("a", Some("b=c"))]);
    let shown = good(&rule(text)).to_yaml_redacted();
    assert_eq!(good(&shown).rules[0].policy, Some(read), "{shown}");
    assert_eq!(policy("policy: {signed: {keys: a.pub}}").unwrap().signed.unwrap().need, SignatureNeed::Any);
}

#[test]
fn a_rule_replaces_the_policy_of_the_defaults_or_switches_it_off() {
    let rules = "rules: [{from: a.io/b, to: r.io}, {from: a.io/c, to: r.io, policy: {max_size: 1}}, {from: a.io/d, to: r.io, policy: off}]";
    let mut config = good(&format!("defaults: {{policy: {{signed: {{keys: a.pub}}}}}}\n{rules}\n"));
    let of = |config: &Config, at: usize| config.rules[at].policy.clone();
    assert!(of(&config, 0).unwrap().signed.is_some());
    assert!(of(&config, 1).unwrap().signed.is_none());
    assert_eq!(of(&config, 2), None);
    assert!(config.default_policy().is_some());
    // Keys of rules and of the defaults.
    config.policy_keys_mut().flatten().for_each(|key| key.pem = "K".to_owned());
    let pem = |policy: Option<ImagePolicy>| policy.unwrap().signed.unwrap().keys[0].pem.clone();
    assert_eq!([pem(of(&config, 0)), pem(config.default_policy().cloned())], ["K", "K"]);
    let identity = config.rules[0].identity();
    config.policy_keys_mut().flatten().for_each(|key| key.pem = "L".to_owned());
    assert_ne!(config.rules[0].identity(), identity, "another key is another rule");
    assert_eq!(good(&rule("policy: false")).default_policy(), None);
}

#[test]
fn a_policy_that_would_require_nothing_is_an_error() {
    for (text, said) in [
        ("policy: {}", "`policy` requires nothing"),
        ("policy: {labels: []}", "`policy` requires nothing"),
        ("policy: on", "`policy: true` does not say what is required"),
        ("policy: cosign.pub", "cosign.pub"),
        ("policy: {signed: {}}", "`keys` is missing"),
        ("policy: {signed: {keys: []}}", "`keys` needs 1 to 32 files"),
        ("policy: {signed: {keys: ''}}", "this is empty"),
        ("policy: {signed: {keys: '-----BEGIN PUBLIC KEY-----'}}", "a key is the name of a file"),
        ("policy: {signed: {keys: a.pub, need: most}}", "`most` is neither any nor all"),
        ("policy: {signed: {key: a.pub}}", "key"),
        ("policy: {max_age: soon}", "`soon` is not a time"),
        ("policy: {max_size: 0}", "`0` is not a size"),
        ("policy: {labels: '=x'}", "`=x` is not a label"),
        ("policy: {requires_platforms: linux}", "`linux` is not a platform"),
        ("policy: {signedd: {keys: a.pub}}", "signedd"),
        (
            "platforms: linux/amd64, policy: {requires_platforms: [linux/amd64, linux/arm64]}",
            "`requires_platforms` has linux/arm64, which `platforms` does not copy",
        ),
    ] {
        let found = bad(&rule(text));
        assert!(found.contains(said), "{text}: {found}");
    }
    let many = format!("policy: {{signed: {{keys: [{}]}}}}", vec!["a.pub"; 33].join(", "));
    assert!(bad(&rule(&many)).contains("1 to 32"));
}
