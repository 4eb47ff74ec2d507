//! The matrix in the documentation.

use std::path::Path;

use imgsync_tests::registry_profiles::{self, RegistryProfile};

const BEGIN_MARKER: &str =
    "<!-- The matrix is written by a test: UPDATE_DOCS=1 cargo nextest run -p imgsync-tests the_matrix -->";
const END_MARKER: &str = "<!-- The end of the matrix. -->";
const SCENARIOS: [&str; 9] = [
    "fresh",
    "unchanged",
    "changed",
    "shared layers",
    "large layer",
    "missing tag",
    "expired token",
    "throttled",
    "listed",
];

fn row(profile: &RegistryProfile) -> String {
    let cell = |story: &&str| match *story {
        "fresh" if !profile.takes_docker => "both; rejects Docker's media types",
        "large layer" if profile.chunk.is_some() => "both, in chunks",
        "expired token" if !profile.expires => "tokens do not expire",
        "listed" => "source",
        _ => "both",
    };
    let cells: Vec<_> = SCENARIOS.iter().map(cell).collect();
    format!("| {} | {} | {} |\n", profile.name, profile.required_setup, cells.join(" | "))
}

fn render_matrix() -> String {
    let mut text = format!("{BEGIN_MARKER}\n\n| registry | setup | {} |\n", SCENARIOS.join(" | "));
    text.push_str(&format!("|{}\n", "---|".repeat(SCENARIOS.len() + 2)));
    let all = registry_profiles::all();
    all.iter().for_each(|profile| text.push_str(&row(profile)));
    text.push_str("\nThe simulations contain these quirks:\n\n");
    for profile in &all {
        text.push_str(&format!("* **{}**: {}.\n", profile.name, profile.quirks));
    }
    text.push_str(&format!("\n{END_MARKER}\n"));
    text
}

#[test]
fn the_matrix_in_the_documentation_matches_the_profiles() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/registries.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN_MARKER).expect("the matrix has a place in docs/reference/registries.md");
    let (_, after) = rest.split_once(&format!("{END_MARKER}\n")).expect("the matrix has an end");
    let wanted = format!("{before}{}{after}", render_matrix());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    } else {
        assert!(
            text == wanted,
            "run it again with UPDATE_DOCS=1, and look at what changed in docs/reference/registries.md"
        );
    }
}
