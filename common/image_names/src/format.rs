//! Formats of files, recognised by name and content.

use std::path::Path;

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileFormat {
    /// YAML or JSON.
    Documents,
    /// A Dockerfile.
    Dockerfile,
    /// One name a line.
    List,
}

/// Returns whether a file in a folder is read: manifests, Dockerfiles, and lists with `image` in their names. Files that
/// are named one by one are always read.
pub fn is_candidate(path: &Path) -> bool {
    let name = file_name(path);
    match extension(&name) {
        "yaml" | "yml" | "json" => true,
        "txt" | "list" | "lst" => name.contains("image"),
        _ => is_dockerfile_name(&name),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn is_dockerfile_name(name: &str) -> bool {
    ["dockerfile", "containerfile"]
        .iter()
        .any(|word| name == *word || name.starts_with(&format!("{word}.")) || extension(name) == *word)
        && !name.ends_with(".dockerignore")
}

/// Recognises the format of a file.
pub(crate) fn detect(name: &str, text: &str) -> FileFormat {
    let name = file_name(Path::new(name));
    match extension(&name) {
        "yaml" | "yml" | "json" => return FileFormat::Documents,
        _ if is_dockerfile_name(&name) => return FileFormat::Dockerfile,
        _ => {}
    }
    // `#` begins comments in all formats, `//` in some lists.
    let is_comment = |line: &&str| line.is_empty() || line.starts_with('#') || line.starts_with("//");
    let Some(first) = text.lines().map(str::trim).find(|line| !is_comment(line)) else { return FileFormat::List };
    if is_instruction(first) {
        FileFormat::Dockerfile
    } else if is_yaml(first) {
        FileFormat::Documents
    } else {
        FileFormat::List
    }
}

fn is_instruction(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let first = words.next().unwrap_or_default();
    (first.eq_ignore_ascii_case("from") || first.eq_ignore_ascii_case("arg")) && words.next().is_some()
}

fn is_yaml(line: &str) -> bool {
    if line.starts_with(['{', '[', '%']) || line.starts_with("---") || line.starts_with("- ") {
        return true;
    }
    let key = line.trim_start_matches(['"', '\'']);
    let is_key_char = |c: char| c.is_alphanumeric() || "._-/\"' ".contains(c);
    key.split_once(':').is_some_and(|(key, rest)| {
        !key.is_empty() && key.chars().all(is_key_char) && (rest.is_empty() || rest.starts_with([' ', '\t']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_name_or_content() {
        for (name, text, format) in [
            ("a.yaml", "nginx", FileFormat::Documents),
            ("stdin", "apiVersion: v1\n", FileFormat::Documents),
            ("stdin", "\n# comment\n---\na: b", FileFormat::Documents),
            ("stdin", "{\"kind\": \"Pod\"}", FileFormat::Documents),
            ("stdin", "services:\n", FileFormat::Documents),
            ("stdin", "nginx:1.25\nredis", FileFormat::List),
            ("stdin", "r.example:5000/a:1", FileFormat::List),
            ("stdin", "", FileFormat::List),
            ("stdin", "# syntax=docker/dockerfile:1\nFROM a\n", FileFormat::Dockerfile),
            ("build/Dockerfile.prod", "ARG A\n", FileFormat::Dockerfile),
            ("app.dockerfile", "", FileFormat::Dockerfile),
            ("images.txt", "from", FileFormat::List),
        ] {
            assert_eq!(detect(name, text), format, "{name}: {text}");
        }
    }

    #[test]
    fn folders_are_searched_for_manifests_dockerfiles_and_lists() {
        for name in ["a.yaml", "b/c.YML", "x.json", "Dockerfile", "Dockerfile.dev", "x.Containerfile", "k3s-images.txt"]
        {
            assert!(is_candidate(Path::new(name)), "{name}");
        }
        for name in
            ["README.md", "notes.txt", "a.tgz", "Dockerfile.dockerignore", "main.go", "image.png", "values.yaml.gotmpl"]
        {
            assert!(!is_candidate(Path::new(name)), "{name}");
        }
    }
}
