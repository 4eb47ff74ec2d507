//! README.md and README.zh-CN.md have the same content.

use super::markdown::{code, prose, read};

#[test]
fn both_readmes_have_the_same_commands_and_configurations() {
    let (english, chinese) = (code(&read("README.md")), code(&read("README.zh-CN.md")));
    assert!(english.len() >= 5, "README.md has its commands between fences");
    for (index, (english, chinese)) in english.iter().zip(&chinese).enumerate() {
        assert_eq!(english, chinese, "block {} differs", index + 1);
    }
    assert_eq!(english.len(), chinese.len(), "one of the two has more blocks");
}

#[test]
fn both_readmes_have_the_same_sections_tables_and_links() {
    let shape = |path: &str| {
        let prose = prose(&read(path));
        let count = |start: &str| prose.lines().filter(|line| line.starts_with(start)).count();
        // Numbers must agree: a new measurement changes both.
        let rows: Vec<String> = prose
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|row| row.chars().filter(|c| c.is_ascii_digit() || matches!(c, '|' | '.')).collect())
            .collect();
        (count("## "), count("* "), rows)
    };
    assert_eq!(shape("README.md"), shape("README.zh-CN.md"));
    let targets = |path: &str| {
        let mut targets = super::links::targets(&prose(&read(path)));
        targets.retain(|target| !target.starts_with("README"));
        targets.sort();
        targets
    };
    assert_eq!(targets("README.md"), targets("README.zh-CN.md"));
}

#[test]
fn both_readmes_are_shorter_than_150_lines() {
    for path in ["README.md", "README.zh-CN.md"] {
        let lines = read(path).lines().count();
        assert!(lines < 150, "{path} has {lines} lines: move details to docs");
    }
}

#[test]
fn a_command_that_one_readme_lacks_is_noticed() {
    let page = "a\n```\nimgsync run   # does it\n# a remark\n```\n";
    assert_eq!(code(page), [["imgsync run"]]);
    assert_eq!(code(&page.replace("does it", "做")), code(page));
    assert_ne!(code(&page.replace("run", "runs")), code(page));
}
