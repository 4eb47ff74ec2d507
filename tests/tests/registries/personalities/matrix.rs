//! The matrix in the documentation.

use std::path::Path;

use imgsync_tests::personality::{self, Personality};

const BEGIN: &str =
    "<!-- The matrix is written by a test: UPDATE_DOCS=1 cargo nextest run -p imgsync-tests the_matrix -->";
const END: &str = "<!-- The end of the matrix. -->";
const STORIES: [&str; 9] = [
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

fn row(personality: &Personality) -> String {
    let cell = |story: &&str| match *story {
        "fresh" if !personality.takes_docker => "both; Docker's types refused",
        "large layer" if personality.chunk.is_some() => "both, in pieces",
        "expired token" if !personality.expires => "none there",
        "listed" => "source",
        _ => "both",
    };
    let cells: Vec<_> = STORIES.iter().map(cell).collect();
    format!("| {} | {} | {} |\n", personality.name, personality.to_do, cells.join(" | "))
}

fn written() -> String {
    let mut text = format!("{BEGIN}\n\n| registry | what to do | {} |\n", STORIES.join(" | "));
    text.push_str(&format!("|{}\n", "---|".repeat(STORIES.len() + 2)));
    let all = personality::all();
    all.iter().for_each(|personality| text.push_str(&row(personality)));
    text.push_str("\nWhat is played of each:\n\n");
    for personality in &all {
        text.push_str(&format!("* **{}**: {}.\n", personality.name, personality.habits));
    }
    text.push_str(&format!("\n{END}\n"));
    text
}

#[test]
fn the_matrix_in_the_documentation_is_what_is_played() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/registries.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the matrix has a place in docs/registries.md");
    let (_, after) = rest.split_once(&format!("{END}\n")).expect("the matrix has an end");
    let wanted = format!("{before}{}{after}", written());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    } else {
        assert!(text == wanted, "run it again with UPDATE_DOCS=1, and look at what changed in docs/registries.md");
    }
}
