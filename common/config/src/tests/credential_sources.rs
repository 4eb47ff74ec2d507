//! `credentials` of a registry: a word says where they come from, and a list holds more accounts.

use super::*;
use imgsync_registry::providers::{CredentialSource, identity_names};

fn source(text: &str) -> CredentialSource {
    good(&registry(text)).registries[&"r.example.com".parse().unwrap()].credential_source
}

#[test]
fn a_word_is_a_source_and_is_shown_as_it_was_written() {
    assert_eq!(source("insecure: true"), CredentialSource::Auto);
    assert_eq!(source("credentials: auto, username: a, password: b"), CredentialSource::Auto);
    assert_eq!(source("credentials: none"), CredentialSource::Anonymous);
    for name in identity_names().chain(["none"]) {
        let text = registry(&format!("credentials: {name}"));
        let shown = good(&text).to_yaml_redacted();
        assert!(shown.contains(&format!("credentials: {name}\n")), "{shown}");
        assert_eq!(good(&shown).to_yaml_redacted(), shown);
        assert_eq!(source(&format!("credentials: {name}")).to_string(), name);
    }
    let accounts = good(&registry("credentials: [{username: a, password: b}]"));
    let found = &accounts.registries[&"r.example.com".parse().unwrap()];
    assert_eq!((found.pull_credentials.len(), found.credential_source), (1, CredentialSource::Auto));
}

#[test]
fn a_source_that_contradicts_a_password_or_does_not_exist_is_an_error() {
    assert_eq!(
        messages(&registry("credentials: aws, username: a, password: b")),
        ["`credentials: aws` contradicts `username`; write one of the two"]
    );
    assert_eq!(
        messages(&registry("credentials: none, identity_token: t")),
        ["`credentials: none` contradicts `identity_token`; write one of the two"]
    );
    let [unknown] = messages(&registry("credentials: hunter2")).try_into().unwrap();
    assert!(unknown.contains("use aws, azure, gcp, auto or none") && !unknown.contains("hunter2"), "{unknown}");
}
