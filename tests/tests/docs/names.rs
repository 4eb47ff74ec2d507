//! Names: renames hold, private words are gone, no two public types share a name.

use std::process::Command;

use super::markdown::root;

/// Runs one check of `scripts/check-names`, which prints a line per problem with its place.
fn assert_check_passes(check: &str) {
    let output = Command::new(root().join("scripts/check-names")).arg(check).output().expect("python3 is installed");
    let problems = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{problems}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_rename_holds_and_every_kept_name_has_a_reason() {
    assert_check_passes("renames");
}

#[test]
fn no_private_word_is_in_an_identifier_or_in_text_for_users() {
    assert_check_passes("words");
}

#[test]
fn no_two_public_types_of_the_workspace_share_a_name() {
    assert_check_passes("types");
}
