//! Commands and configurations in the pages: the programs accept each, and those that need no external network are run.

use std::collections::BTreeSet;
use std::path::Path;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::program::Imgsync;
use imgsync_tests::tls::Authority;

use super::markdown::{all, read, root};

/// Returns fenced blocks with their info strings.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(kind) = trimmed.strip_prefix("```") {
            match open.take() {
                Some(block) => blocks.push(block),
                None => open = Some((kind.to_owned(), Vec::new())),
            }
        } else if let Some((_, lines)) = &mut open {
            lines.push(line.to_owned());
        }
    }
    blocks
}

/// Splits the first command of a line into words like a shell, up to `|`, `>`, `<`, `&`, `;` or `#`.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut in_word) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, in_word) = (Some(c), true),
            (None, '|' | '>' | '<' | '&' | ';') => break,
            (None, '#') if word.is_empty() => break,
            (None, ' ') => {
                if in_word || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                in_word = false;
            }
            (None, c) => word.push(c),
        }
    }
    if in_word || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Returns the commands of our programs in the pages, each with its page.
fn commands() -> BTreeSet<(String, Vec<String>)> {
    let mut commands = BTreeSet::new();
    for page in all() {
        let text = read(&page);
        for (_, lines) in blocks(&text) {
            // A trailing backslash continues a line.
            let joined = lines.join("\n").replace("\\\n", " ");
            for line in joined.lines() {
                let words = words(line.trim_start());
                if words.first().is_some_and(|program| ["imgsync", "imgsync-worker"].contains(&program.as_str())) {
                    commands.insert((page.clone(), words));
                }
            }
        }
    }
    commands
}

#[tokio::test]
async fn every_command_in_the_pages_is_one_that_the_programs_take() {
    let commands = commands();
    assert!(commands.len() > 50, "{} commands are found", commands.len());
    let mut wrong = Vec::new();
    for (page, words) in commands {
        // Placeholders of a synopsis, and omissions.
        if words.iter().any(|word| word.contains('…') || word.starts_with('[')) {
            continue;
        }
        let asked = Imgsync::named(&words[0]).args(&words[1..]).arg("--help").run().await;
        if asked.code != Some(0) {
            wrong.push(format!("{page}: {}: {}", words.join(" "), asked.stderr.lines().next().unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_configuration_in_the_pages_is_fine() {
    let (mut wrong, mut seen, public_key) = (Vec::new(), 0, CosignKey::new().public());
    for page in all() {
        for (kind, lines) in blocks(&read(&page)) {
            let text = lines.join("\n");
            let keys: Vec<&str> = text.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect();
            let ours = ["rules", "registries", "defaults", "cluster", "notify"];
            let theirs = ["services", "on", "jobs", "scrape_configs", "apiVersion"];
            // Fragments with dots are not complete configurations.
            if kind != "yaml"
                || text.contains('…')
                || !keys.iter().any(|key| ours.contains(key))
                || keys.iter().any(|key| theirs.contains(key))
            {
                continue;
            }
            seen += 1;
            let program = Imgsync::new();
            // Pages may show rules without a target.
            let more = if text.contains("defaults:") { "" } else { "\ndefaults: {to: registry.example.com/all}\n" };
            program.file("imgsync.yaml", dedented(&lines) + more);
            program.file("ca.pem", Authority::default().pem());
            program.file("cosign.pub", &public_key);
            let mut check = program.again();
            for name in variables(&text) {
                let value = match name.as_str() {
                    name if name.contains("HOOK") || name.contains("URL") => "https://hooks.example.com/t0ken",
                    name if name.contains("TELEGRAM") => "123:abc",
                    _ => "a-value-of-more-than-16",
                };
                check = check.env(name, value);
            }
            let checked = check.args(["config", "check"]).run().await;
            if checked.code != Some(0) {
                wrong.push(format!("{page}:\n{text}\n{}", checked.stderr));
            }
        }
    }
    assert!(seen > 15, "{seen} configurations are found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Removes the common indentation of all lines.
fn dedented(lines: &[String]) -> String {
    let indent =
        lines.iter().filter(|line| !line.trim().is_empty()).map(|line| line.len() - line.trim_start().len()).min();
    lines.iter().map(|line| format!("{}\n", line.get(indent.unwrap_or(0)..).unwrap_or_default())).collect()
}

/// Returns the variables that a text uses.
fn variables(text: &str) -> Vec<String> {
    let parts = text.split("${").skip(1);
    parts.filter_map(|part| part.split(['}', ':']).next()).map(str::to_owned).collect()
}

/// Returns the first block of a page that contains a command.
fn block_with(page: &str, command: &str) -> Vec<String> {
    let blocks = blocks(&read(page));
    let found = blocks.into_iter().find(|(_, lines)| lines.iter().any(|line| line.starts_with(command)));
    found.unwrap_or_else(|| panic!("{page} has no block with `{command}`")).1
}

/// Runs the commands of a block in a shell with our programs on PATH, up to the first failure.
async fn run_block(program: &Imgsync, lines: &[String], inside: &Path) -> String {
    let folder = program.path().parent().unwrap().display().to_string();
    let script = format!("set -e\nexport PATH=\"{folder}:$PATH\"\ncd \"{}\"\n{}\n", inside.display(), lines.join("\n"));
    let state = program.state_dir();
    let shell = Imgsync::at("/bin/bash").env("XDG_STATE_HOME", state).args(["-c", &script]).run().await.assert_code(0);
    format!("{}{}", shell.stdout, shell.stderr)
}

/// Copies the example of the quick start to a folder of its own, since it writes next to its configuration.
fn program_beside_the_quick_start() -> Imgsync {
    let program = Imgsync::new();
    for folder in ["examples/images/blobs/sha256", "target"] {
        std::fs::create_dir_all(program.work_dir().join(folder)).unwrap();
    }
    let copy = |file: &str| _ = std::fs::copy(root().join(file), program.work_dir().join(file)).unwrap();
    for file in ["examples/quickstart.yaml", "examples/images/index.json", "examples/images/oci-layout"] {
        copy(file);
    }
    for blob in std::fs::read_dir(root().join("examples/images/blobs/sha256")).unwrap() {
        copy(&format!("examples/images/blobs/sha256/{}", blob.unwrap().file_name().to_str().unwrap()));
    }
    program
}

#[tokio::test]
async fn the_first_command_of_the_readme_works_without_a_network() {
    let program = program_beside_the_quick_start();
    let first: Vec<String> = blocks(&read("README.md"))[0].1.clone();
    assert_eq!(first, ["cargo run --release -- run -c examples/quickstart.yaml"]);
    let built: Vec<String> = first.iter().map(|line| line.replace("cargo run --release --", "imgsync")).collect();
    run_block(&program, &built, &program.work_dir()).await;
    assert!(program.work_dir().join("target/quickstart/index.json").exists());
}

#[tokio::test]
async fn the_first_commands_of_getting_started_work_as_they_stand() {
    let program = program_beside_the_quick_start();
    let said = run_block(
        &program,
        &block_with("docs/tutorial/getting-started.md", "imgsync run -c examples/quickstart.yaml"),
        &program.work_dir(),
    )
    .await;
    assert!(said.contains("Images: 6") || said.matches("Images:").count() >= 3, "{said}");
    assert!(program.work_dir().join("target/quickstart/index.json").exists());
}

#[tokio::test]
async fn the_recipe_across_an_air_gap_carries_images_as_they_are() {
    let (outside, inside) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["3.8", "3.9", "3.10", "3.10.1"] {
        outside.push("pause", tag, &images::multi_platform(&format!("gap-{tag}")));
    }
    let image = images::single("gap-static");
    outside.push("distroless/static", "nonroot", &image);
    let page = read("docs/how-to/recipes.md");
    let yaml = |with: &str| {
        let found = blocks(&page)
            .into_iter()
            .find(|(kind, lines)| kind == "yaml" && lines.iter().any(|line| line.contains(with)));
        let text = found.unwrap_or_else(|| panic!("a configuration with `{with}`")).1.join("\n");
        let text = text.replace("registry.k8s.io", &outside.host()).replace("gcr.io", &outside.host());
        text.replace("registry.inside.example", &inside.host())
    };
    let (there, here) = (Imgsync::new(), Imgsync::new());
    there.file("out.yaml", yaml("oci:carry\""));
    here.file("in.yaml", yaml("from: oci:carry"));
    run_block(&there, &block_with("docs/how-to/recipes.md", "imgsync run -c out.yaml"), &there.work_dir()).await;
    std::fs::copy(there.work_dir().join("carry.tar"), here.work_dir().join("carry.tar")).unwrap();
    run_block(&here, &block_with("docs/how-to/recipes.md", "imgsync run -c in.yaml"), &here.work_dir()).await;
    let name = format!("mirror/{}", "distroless/static");
    inside.assert_holds(&name, "nonroot", &image);
    inside.assert_tags_complete();
    assert_eq!(inside.tags_in_all(), 4, "three of one, and one of the other");
}
