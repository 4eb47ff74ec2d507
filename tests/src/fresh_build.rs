//! Programs under test that are as new as their sources.
//!
//! `cargo nextest run -p imgsync-tests` builds the suites, not the programs that they start. The first test of a run
//! therefore compares the programs with the sources that cargo lists for them (`imgsync.d`), and runs
//! `cargo build --bins` if one is older. The tests of one nextest run all use the same build, whatever is edited
//! meanwhile.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Programs that the suites start.
const PROGRAMS: [&str; 2] = ["imgsync", "imgsync-worker"];

/// Files at the root that cargo does not list as sources, but that decide what is built, like the crates' manifests.
const ROOT_FILES: [&str; 3] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"];

/// File beside the programs: locked during a check; holds the run that checked last, at the time of that check.
const STAMP: &str = ".imgsync-tests-checked";

/// Variables that cargo and nextest set for a test. A build script that reads them would run again for nothing.
const TEST_VARIABLES: [&str; 6] =
    ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_PACKAGE", "NEXTEST"];

/// Returns the path of a program of this workspace, built from the sources as they are.
///
/// # Panics
/// If it is stale and cannot be built.
pub(crate) fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let build = Build::of_this_test()?;
        build.ensure_fresh(std::env::var("NEXTEST_RUN_ID").ok().as_deref())?;
        Ok(build.folder)
    });
    match folder {
        Ok(folder) => folder.join(name),
        Err(error) => panic!("{error}"),
    }
}

/// Builds an example of a package of this workspace, and returns its path.
///
/// # Panics
/// If it cannot be built.
pub(crate) fn example(package: &str, name: &str) -> PathBuf {
    let build = Build::of_this_test().unwrap_or_else(|error| panic!("{error}"));
    let arguments = ["build", "--quiet", "--package", package, "--example", name];
    build.cargo(&arguments).unwrap_or_else(|stderr| panic!("example {name} cannot be built:\n{stderr}"));
    build.folder.join("examples").join(name)
}

/// A workspace and the folder of its built programs.
struct Build {
    workspace: PathBuf,
    folder: PathBuf,
}

impl Build {
    /// Finds the folder of the profile that this test was built with: `target/debug` for `target/debug/deps/docs-…`.
    fn of_this_test() -> Result<Self, String> {
        let test = std::env::current_exe().map_err(|error| format!("the test executable has no path: {error}"))?;
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
        let folder = test.ancestors().nth(2).ok_or_else(|| format!("{} is not in a target folder", test.display()))?;
        Ok(Self { workspace: workspace.to_owned(), folder: folder.to_owned() })
    }

    /// Builds the programs unless they are fresh. Other tests wait meanwhile.
    fn ensure_fresh(&self, run: Option<&str>) -> Result<(), String> {
        let path = self.folder.join(STAMP);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut options = File::options();
        let mut stamp = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        stamp.lock().map_err(failed)?;
        let mut checked_by = String::new();
        stamp.read_to_string(&mut checked_by).map_err(failed)?;
        let checked_at = (!checked_by.is_empty()).then(|| modified(&path)).flatten();
        let same_run = run.is_some_and(|run| run == checked_by);

        let Some(reason) = self.stale_reason(checked_at, same_run) else {
            if same_run {
                return Ok(());
            }
            return record(&mut stamp, run, SystemTime::now()).map_err(failed);
        };
        let began = SystemTime::now();
        let _ = writeln!(std::io::stderr(), "building the programs under test: {reason}");
        self.cargo_build(&reason)?;
        match self.stale_reason(Some(began), false) {
            None => record(&mut stamp, run, began).map_err(failed),
            Some(reason) => Err(format!(
                "the programs in {} are stale ({reason}) after `cargo build --bins`: build them again",
                self.folder.display()
            )),
        }
    }

    /// Says why the programs have to be built, or `None` if they are fresh. `checked_at` is the time of the last check
    /// that found them fresh; `same_run` says that it was made for this run, which goes on with the build it has.
    fn stale_reason(&self, checked_at: Option<SystemTime>, same_run: bool) -> Option<String> {
        for program in PROGRAMS {
            let Some(built_at) = modified(&self.folder.join(program)) else {
                return Some(format!("{program} is not built"));
            };
            let Ok(listing) = fs::read_to_string(self.folder.join(format!("{program}.d"))) else {
                return Some(format!("cargo's list of the sources of {program} is missing"));
            };
            let sources = listed_sources(&listing);
            let is_ours = |source: &PathBuf| source.starts_with(&self.workspace) || source.starts_with(&self.folder);
            if sources.is_empty() || !sources.iter().all(is_ours) {
                return Some(format!("{program} was built from another workspace"));
            }
            if same_run {
                continue;
            }
            for source in sources {
                match modified(&source) {
                    None => return Some(format!("{} is gone", source.display())),
                    Some(changed_at) if changed_at > built_at => {
                        return Some(format!("{} is newer than {program}", source.display()));
                    }
                    Some(_) => {}
                }
            }
            // A changed manifest need not change a program; then cargo's word counts.
            let known_at = checked_at.map_or(built_at, |checked_at| checked_at.max(built_at));
            let is_newer = |file: &PathBuf| modified(file).is_some_and(|at| at > known_at);
            if let Some(manifest) = self.manifests().into_iter().find(is_newer) {
                return Some(format!("{} is newer than {program}", manifest.display()));
            }
        }
        None
    }

    /// Lists the files at the root, and the manifests of crates up to two folders below it.
    fn manifests(&self) -> Vec<PathBuf> {
        let folders = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect()
        };
        let outer = folders(&self.workspace);
        let inner: Vec<PathBuf> = outer.iter().flat_map(|folder| folders(folder)).collect();
        let crates = outer.into_iter().chain(inner).map(|folder| folder.join("Cargo.toml"));
        ROOT_FILES.iter().map(|file| self.workspace.join(file)).chain(crates).collect()
    }

    fn cargo_build(&self, reason: &str) -> Result<(), String> {
        self.cargo(&["build", "--quiet", "--bins"]).map_err(|stderr| {
            format!("the programs under test are stale ({reason}), and `cargo build --bins` failed:\n{stderr}")
        })
    }

    /// Runs cargo for the workspace and profile of the test. Returns its standard error if it fails.
    fn cargo(&self, arguments: &[&str]) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(arguments).current_dir(&self.workspace);
        match self.folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => _ = command.args(["--profile", profile]),
        }
        command.arg("--target-dir").arg(self.folder.parent().unwrap_or(&self.folder));
        for (name, _) in std::env::vars_os() {
            if TEST_VARIABLES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let output = command.output().map_err(|error| format!("cargo {arguments:?}: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// Records which run found the programs fresh, and when.
fn record(stamp: &mut File, run: Option<&str>, at: SystemTime) -> std::io::Result<()> {
    stamp.set_len(0)?;
    stamp.rewind()?;
    stamp.write_all(run.unwrap_or("no run").as_bytes())?;
    stamp.set_modified(at)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Parses the sources of the first rule of a Makefile-style list: `program: one.rs two.rs`, spaces escaped by `\`.
fn listed_sources(listing: &str) -> Vec<PathBuf> {
    let rule = listing.lines().next().unwrap_or_default();
    let Some((_, sources)) = rule.split_once(": ") else { return Vec::new() };
    let escaped = sources.replace("\\ ", "\0");
    escaped.split_whitespace().map(|source| PathBuf::from(source.replace('\0', " "))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    const BUILT_AT: u64 = 1_000;

    /// A workspace with one source, and both programs, built from it at `BUILT_AT`.
    fn built() -> (TempDir, Build) {
        let root = tempfile::tempdir().unwrap();
        let (workspace, folder) = (root.path().join("work space"), root.path().join("target/debug"));
        fs::create_dir_all(workspace.join("worker")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        let build = Build { workspace, folder };
        set(&build.workspace.join("lib.rs"), BUILT_AT - 100);
        set(&build.workspace.join("worker/Cargo.toml"), BUILT_AT - 100);
        for program in PROGRAMS {
            list(&build, program, &build.workspace.join("lib.rs"));
            set(&build.folder.join(program), BUILT_AT);
        }
        (root, build)
    }

    fn list(build: &Build, program: &str, source: &Path) {
        let escaped = |path: &Path| path.display().to_string().replace(' ', "\\ ");
        let rule = format!("{}: {}\n", escaped(&build.folder.join(program)), escaped(source));
        fs::write(build.folder.join(format!("{program}.d")), rule).unwrap();
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn set(path: &Path, seconds: u64) {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path).unwrap();
        file.set_modified(at(seconds)).unwrap();
    }

    fn reason(build: &Build) -> String {
        build.stale_reason(None, false).unwrap_or_default()
    }

    #[test]
    fn programs_newer_than_every_source_are_fresh() {
        let (_root, build) = built();
        assert_eq!(reason(&build), "");
    }

    #[test]
    fn a_source_that_is_newer_or_gone_makes_a_program_stale() {
        let (_root, build) = built();
        set(&build.workspace.join("lib.rs"), BUILT_AT + 1);
        assert!(reason(&build).ends_with("lib.rs is newer than imgsync"), "{}", reason(&build));
        fs::remove_file(build.workspace.join("lib.rs")).unwrap();
        assert!(reason(&build).ends_with("lib.rs is gone"), "{}", reason(&build));
    }

    #[test]
    fn a_program_that_is_missing_or_of_another_workspace_is_stale() {
        let (root, build) = built();
        let elsewhere = root.path().join("elsewhere.rs");
        set(&elsewhere, BUILT_AT - 100);
        list(&build, "imgsync-worker", &elsewhere);
        assert_eq!(reason(&build), "imgsync-worker was built from another workspace");
        assert!(build.stale_reason(None, true).is_some(), "also in the middle of a run");
        fs::remove_file(build.folder.join("imgsync.d")).unwrap();
        assert_eq!(reason(&build), "cargo's list of the sources of imgsync is missing");
        fs::remove_file(build.folder.join("imgsync")).unwrap();
        assert_eq!(reason(&build), "imgsync is not built");
    }

    #[test]
    fn a_newer_manifest_makes_programs_stale_until_cargo_was_asked() {
        let (_root, build) = built();
        set(&build.workspace.join("worker/Cargo.toml"), BUILT_AT + 1);
        assert!(reason(&build).ends_with("worker/Cargo.toml is newer than imgsync"), "{}", reason(&build));
        assert_eq!(build.stale_reason(Some(at(BUILT_AT + 2)), false), None);
    }

    #[test]
    fn a_run_keeps_the_build_that_it_began_with() {
        let (_root, build) = built();
        build.ensure_fresh(Some("run 1")).unwrap();
        set(&build.workspace.join("lib.rs"), BUILT_AT + 1);
        build.ensure_fresh(Some("run 1")).unwrap();
        let error = build.ensure_fresh(Some("run 2")).unwrap_err();
        assert!(error.contains("are stale") && error.contains("`cargo build --bins` failed"), "{error}");
    }
}
