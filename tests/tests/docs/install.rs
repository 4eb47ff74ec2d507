//! README names the image and the archives that the release workflow publishes.

use std::collections::BTreeSet;

use super::markdown::{all, read};

/// Returns the value of a key in the manifest of the workspace.
fn manifest_value(key: &str) -> String {
    let manifest = read("Cargo.toml");
    let line = manifest.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    line.unwrap_or_else(|| panic!("{key} in Cargo.toml")).trim_matches('"').to_owned()
}

/// Returns the archives of a release of this version: one for each target of the workflow.
fn archives(workflow: &str) -> BTreeSet<String> {
    let pack = r#"name="imgsync-${GITHUB_REF_NAME#v}-${{ matrix.target }}""#;
    assert!(workflow.contains(pack), "the workflow packs {pack}");
    assert!(workflow.contains(r#"tar -czf "$name.tar.gz" "$name""#));
    let targets = workflow.split("- {target: ").skip(1).map(|rest| rest.split(',').next().unwrap());
    targets.map(|target| format!("imgsync-{}-{target}.tar.gz", manifest_value("version"))).collect()
}

/// Returns the image of a release, with the tag of its major version.
fn image(workflow: &str) -> String {
    assert!(workflow.contains("IMAGE: ghcr.io/${{ github.repository }}"));
    assert!(workflow.contains("type=semver,pattern={{major}}\n"), "the image has a tag for the major version");
    let repository = manifest_value("repository").replace("https://github.com/", "");
    let version = manifest_value("version");
    format!("ghcr.io/{repository}:{}", version.split('.').next().unwrap())
}

/// Returns the words of a text that begin with a prefix, without punctuation around them.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let is_end = |c: char| c.is_whitespace() || matches!(c, '`' | '"' | ')' | '|' | '，' | '。');
    text.split(is_end).filter(|word| word.starts_with(prefix)).collect()
}

#[test]
fn the_install_section_names_what_a_release_publishes() {
    let workflow = read(".github/workflows/release.yml");
    let (archives, image) = (archives(&workflow), image(&workflow));
    assert_eq!(archives.len(), 4, "{archives:?}");
    for (page, heading) in [("README.md", "## Install"), ("README.zh-CN.md", "## 安装")] {
        let text = read(page);
        let section = text.split(&format!("\n{heading}\n")).nth(1).unwrap_or_else(|| panic!("{page}: {heading}"));
        let section = section.split("\n## ").next().unwrap();
        let named: BTreeSet<String> = words(section, "imgsync-")
            .into_iter()
            .filter(|word| word.ends_with(".tar.gz"))
            .map(str::to_owned)
            .collect();
        assert_eq!(named, archives, "{page}");
        assert_eq!(words(section, "ghcr.io/"), BTreeSet::from([image.as_str()]), "{page}");
        assert!(section.contains("`SHA256SUMS`") && workflow.contains(">SHA256SUMS"), "{page}");
    }
}

#[test]
fn every_page_pulls_the_image_that_a_release_publishes() {
    let image = image(&read(".github/workflows/release.yml"));
    let mut seen = 0;
    for page in all() {
        for name in words(&read(&page), "ghcr.io/imgsync/") {
            assert_eq!(name, image, "{page}");
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} pages name it");
}
