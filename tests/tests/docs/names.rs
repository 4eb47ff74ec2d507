//! Names and structure: renames hold, private words are gone, no two public types share a name, files form no circle.

use std::process::Command;

use super::markdown::root;

/// Runs a script that prints a line per problem with its place.
fn assert_script_passes(script: &str, arguments: &[&str]) {
    let output = Command::new(root().join(script)).args(arguments).output().expect("python3 is installed");
    let problems = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{problems}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_rename_holds_and_every_kept_name_has_a_reason() {
    assert_script_passes("scripts/check-names", &["renames"]);
}

#[test]
fn no_private_word_is_in_an_identifier_or_in_text_for_users() {
    assert_script_passes("scripts/check-names", &["words"]);
}

#[test]
fn no_two_public_types_of_the_workspace_share_a_name() {
    assert_script_passes("scripts/check-names", &["types"]);
}

#[test]
fn files_form_no_circle_but_of_parent_and_child() {
    assert_script_passes("scripts/check-circles", &[]);
}
