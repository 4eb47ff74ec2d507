//! Commands in the pages and scripts that run tests name tests, suites, benchmarks and scripts that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::markdown::{all, code, prose, read, root};
use super::providers::rust_files;

const NEXTEST: &str = "cargo nextest run";

/// A test as nextest sees it.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct TestName {
    package: String,
    /// `lib`, or the suite.
    target: String,
    /// `module::test`.
    name: String,
}

/// Packages that a command without `-p` runs.
struct Workspace {
    tests: BTreeSet<TestName>,
    default_packages: Vec<String>,
}

fn workspace() -> Workspace {
    let mut tests = BTreeSet::new();
    let mut default_packages = Vec::new();
    let default_members = members(&toml_strings(&read("Cargo.toml"), "default-members"));
    for member in members(&toml_strings(&read("Cargo.toml"), "members")) {
        let manifest = read(&format!("{member}/Cargo.toml"));
        let package =
            manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned();
        if default_members.contains(&member) {
            default_packages.push(package.clone());
        }
        collect(&root().join(&member).join("src"), &package, "lib", &mut tests);
        for suite in folders(&root().join(&member).join("tests")) {
            let target = suite.file_name().unwrap().to_str().unwrap().to_owned();
            collect(&suite, &package, &target, &mut tests);
        }
    }
    Workspace { tests, default_packages }
}

/// Expands `common/*`.
fn members(patterns: &[String]) -> Vec<String> {
    let expand = |pattern: &String| match pattern.strip_suffix("/*") {
        None => vec![pattern.clone()],
        Some(outer) => {
            let inner = folders(&root().join(outer)).into_iter().filter(|folder| folder.join("Cargo.toml").exists());
            inner.map(|folder| folder.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect()
        }
    };
    patterns.iter().flat_map(expand).collect()
}

/// Returns the strings of a list in a TOML file.
fn toml_strings(text: &str, key: &str) -> Vec<String> {
    let rest = text.split(&format!("\n{key} = [")).nth(1).unwrap_or_else(|| panic!("{key} in Cargo.toml"));
    rest.split(']').next().unwrap().split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// Adds the tests of all files below a folder.
fn collect(folder: &Path, package: &str, target: &str, tests: &mut BTreeSet<TestName>) {
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(folder).unwrap().with_extension("");
                let parts = module.iter().map(|part| part.to_str().unwrap());
                let parts: Vec<&str> = parts.filter(|part| !matches!(*part, "main" | "lib" | "mod")).collect();
                for name in test_names(&std::fs::read_to_string(&path).unwrap()) {
                    let name = [parts.clone(), vec![&name]].concat().join("::");
                    tests.insert(TestName { package: package.to_owned(), target: target.to_owned(), name });
                }
            }
        }
    }
}

/// Returns the tests in a file, within its modules. Tests that a macro declares are `name`, or `macro` for its call.
fn test_names(text: &str) -> Vec<String> {
    let (mut names, mut modules, mut is_test, mut in_macro) = (Vec::new(), Vec::<(usize, &str)>::new(), false, false);
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        modules.retain(|(outer, _)| indent > *outer || !trimmed.starts_with('}'));
        let within = |name: &str| {
            let modules = modules.iter().map(|(_, module)| *module);
            modules.chain([name]).collect::<Vec<_>>().join("::")
        };
        let identifier =
            |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect() };
        let macro_name = trimmed.split('!').next().unwrap_or_default().rsplit("::").next().unwrap_or_default();
        if trimmed.starts_with("#[test]") || trimmed.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, name)) = trimmed.split_once("fn ").filter(|_| is_test) {
            names.push(within(&identifier(name)));
            is_test = false;
        } else if let Some(name) = trimmed.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            modules.push((indent, name));
        } else if trimmed.contains('!') && (macro_name.ends_with("_tests") || macro_name == "targets") {
            in_macro = !trimmed.ends_with(';');
            names.push(within(macro_name));
        } else if in_macro && trimmed.starts_with(['}', ')']) && indent == 0 {
            in_macro = false;
        } else if in_macro && indent == 4 && !identifier(trimmed).is_empty() {
            names.push(within(&identifier(trimmed)));
        }
    }
    names
}

/// Returns the shell commands that a text names: in its fences and in its prose, where a line may end within one.
fn commands(text: &str) -> Vec<String> {
    let fenced = code(text).into_iter().flatten();
    let prose = prose(text).replace('\n', " ");
    let comments = prose.split("<!--").skip(1).filter_map(|rest| rest.split("-->").next());
    let quoted = prose.split('`').skip(1).step_by(2);
    fenced.chain(quoted.chain(comments).map(str::to_owned)).collect()
}

/// What a nextest command runs.
#[derive(Debug, Default)]
struct Selection {
    packages: Vec<String>,
    targets: Vec<String>,
    /// One of these has to be in a test's name.
    filters: Vec<String>,
}

fn parse(arguments: &str) -> Selection {
    let mut selection = Selection::default();
    let quoted: Vec<&str> = arguments.split(['\'', '"']).collect();
    let mut words = Vec::new();
    for (index, part) in quoted.iter().enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push((*part).to_owned()),
        }
    }
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-p" => selection.packages.extend(words.next()),
            "--test" => selection.targets.extend(words.next()),
            "--lib" => selection.targets.push("lib".to_owned()),
            "-E" => {
                let expression = words.next().unwrap_or_default();
                for test in expression.split("test(").skip(1).filter_map(|rest| rest.split(')').next()) {
                    selection.filters.push(test.trim_matches('/').to_owned());
                }
            }
            "--features" | "--status-level" | "--success-output" | "--final-status-level" | "--color" => {
                _ = words.next()
            }
            ">" | "|" | "||" | "&&" | "2>&1" | "#" => break,
            option if option.starts_with('-') => {}
            filter => selection.filters.push(filter.to_owned()),
        }
    }
    selection
}

impl Workspace {
    /// Says what a command names that is not there.
    fn unknown(&self, command: &str) -> Option<String> {
        let selection = parse(command);
        let packages = if selection.packages.is_empty() { &self.default_packages } else { &selection.packages };
        let is_selected = |test: &&TestName| {
            packages.contains(&test.package)
                && (selection.targets.is_empty() || selection.targets.contains(&test.target))
        };
        let selected: Vec<&TestName> = self.tests.iter().filter(is_selected).collect();
        if selected.is_empty() {
            return Some(format!("no tests in {packages:?} {:?}", selection.targets));
        }
        let matches = |filter: &str, name: &str| match filter.strip_prefix('^') {
            Some(start) => name.starts_with(start),
            None => name.contains(filter),
        };
        let unmatched = |filter: &&String| !selected.iter().any(|test| matches(filter, &test.name));
        selection.filters.iter().find(unmatched).map(|filter| format!("no test matches `{filter}`"))
    }
}

#[test]
fn every_test_filter_in_the_pages_and_scripts_matches_a_test() {
    let workspace = workspace();
    assert!(workspace.tests.len() > 500, "{} tests are found", workspace.tests.len());
    let mut named: Vec<(String, String)> = Vec::new();
    for page in all() {
        named.extend(commands(&read(&page)).into_iter().map(|command| (page.clone(), command)));
    }
    for entry in std::fs::read_dir(root().join("scripts")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            continue;
        }
        let script = format!("scripts/{}", entry.file_name().to_str().unwrap());
        let text = read(&script).replace("\\\n", " ");
        // What a script passes on is not known here.
        let fixed = text.lines().filter(|line| !line.starts_with('#') && !line.contains("${"));
        named.extend(fixed.map(|line| (script.clone(), line.to_owned())));
    }
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (place, command) in named {
        let run = command.split_once(NEXTEST).map(|(_, arguments)| arguments.to_owned());
        let script = command.strip_prefix("scripts/test ").filter(|_| !command.contains('[')).map(|arguments| {
            // It runs the suites as well.
            let packages = workspace.tests.iter().map(|test| test.package.as_str()).collect::<BTreeSet<_>>();
            packages.into_iter().map(|package| format!("-p {package} ")).collect::<String>() + arguments
        });
        for arguments in run.into_iter().chain(script).filter(|arguments| !arguments.contains('…')) {
            seen += 1;
            if let Some(problem) = workspace.unknown(&arguments) {
                wrong.push(format!("{place}: {}: {problem}", command.trim()));
            }
        }
    }
    assert!(seen > 10, "{seen} commands are found");
    assert!(wrong.is_empty(), "commands that run nothing:\n{}", wrong.join("\n"));
}

#[test]
fn every_script_and_benchmark_in_the_pages_exists() {
    let mut wrong = Vec::new();
    for page in all() {
        for command in commands(&read(&page)) {
            let words: Vec<&str> = command.split_whitespace().collect();
            for (index, word) in words.iter().enumerate() {
                let paths = match *word {
                    "--bench" => ["", ".rs", "/main.rs"]
                        .map(|end| format!("coordinator/benches/{}{end}", words.get(index + 1).unwrap_or(&"?"))),
                    script if script.starts_with("scripts/") => {
                        [script, "", ""].map(|script| script.trim_end_matches([';', ',']).to_owned())
                    }
                    _ => continue,
                };
                if !paths.iter().any(|path| root().join(path).is_file()) {
                    wrong.push(format!("{page}: {command}: there is no {}", paths[0]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_tests_that_contributing_and_architecture_name_exist() {
    let tests = workspace().tests;
    for (page, at_least) in [("CONTRIBUTING.md", 20), ("ARCHITECTURE.md", 30)] {
        let (mut wrong, mut seen) = (Vec::new(), 0);
        for named in prose(&read(page)).split('`').skip(1).step_by(2) {
            let is_word = named.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let exists = match named {
                path if path.trim_end_matches('/').contains('/')
                    && !path.contains([' ', '^', '<', '{'])
                    && !path.contains("NAME") =>
                {
                    root().join(path).exists()
                }
                test if is_word && test.matches('_').count() > 1 => tests.iter().any(|known| known.name.contains(test)),
                _ => continue,
            };
            seen += 1;
            if !exists {
                wrong.push(named.to_owned());
            }
        }
        assert!(seen > at_least, "{page}: {seen} names are found");
        // Made by a failing test.
        wrong.retain(|path| path != "common/registry/fuzz/failures");
        assert!(wrong.is_empty(), "{page} names what is not there: {wrong:?}");
    }
}

/// Files in the tree of folders: `name.rs` and `folder/` within the block.
#[test]
fn every_file_in_the_tree_of_architecture_exists() {
    let page = read("ARCHITECTURE.md");
    let tree = page.split("```").nth(1).expect("a tree");
    let mut files = Vec::new();
    for folder in ["common", "worker", "coordinator", "tests"] {
        rust_files(&root().join(folder), &mut files);
    }
    let words = tree.split(|c: char| c.is_whitespace() || "(),;:".contains(c));
    let named: Vec<&str> = words.map(|word| word.trim_end_matches('.')).filter(|word| word.ends_with(".rs")).collect();
    assert!(named.len() > 80, "{} files are named", named.len());
    let is_there = |name: &&str| files.iter().any(|file| file == name || file.ends_with(&format!("/{name}")));
    let wrong: Vec<&str> = named.into_iter().filter(|name| !is_there(name)).collect();
    assert!(wrong.is_empty(), "ARCHITECTURE.md names what is not there: {wrong:?}");
}

#[test]
fn a_filter_that_matches_no_test_is_noticed() {
    let test = |target: &str, name: &str| TestName {
        package: "imgsync-tests".to_owned(),
        target: target.to_owned(),
        name: name.to_owned(),
    };
    let tests = [test("run", "kill::killed_often"), test("lib", "retry::tests::waits")].into();
    let workspace = Workspace { tests, default_packages: vec!["imgsync".to_owned()] };
    let problem = |command: &str| workspace.unknown(command).unwrap_or_default();
    assert_eq!(problem("-p imgsync-tests --test run kill::"), "");
    assert_eq!(problem("-p imgsync-tests --status-level fail -E 'test(/^kill::/) | test(waits)'"), "");
    assert!(problem("kill::").starts_with("no tests in"), "the suites are not among the default members");
    assert!(problem("-p imgsync-tests --test cluster kill::").starts_with("no tests in"));
    assert_eq!(problem("-p imgsync-tests storm"), "no test matches `storm`");
    assert_eq!(problem("-p imgsync-tests -E 'test(/^often/)'"), "no test matches `^often`");
}

#[test]
fn tests_are_found_within_their_modules_and_macros() {
    let text = "#[test]\nfn one() {}\nfn no_test() {}\nmod inner {\n    #[tokio::test]\n    async fn two() {}\n}\n\
                #[test]\nfn three() {}\nprofile_tests! {\n    quay: \"Quay\";\n}\n";
    assert_eq!(test_names(text), ["one", "inner::two", "three", "profile_tests", "quay"]);
    let wrapped =
        "as `cargo nextest run\nreference` says\n```\nscripts/test   # all\n```\n<!-- UPDATE_DOCS=1 cargo x -->\n";
    assert_eq!(commands(wrapped), ["scripts/test", "cargo nextest run reference", " UPDATE_DOCS=1 cargo x "]);
}
