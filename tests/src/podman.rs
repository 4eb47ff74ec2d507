//! Debian's podman, with storage of its own.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::servers::find_program;

/// Storage of podman, removed on drop.
#[derive(Debug)]
pub struct Podman {
    folder: TempDir,
}

impl Podman {
    /// Checks that it is installed.
    ///
    /// # Errors
    /// Returns what is missing.
    pub fn available() -> Result<(), String> {
        match find_program("podman") {
            Some(_) if rustix::process::geteuid().is_root() => Ok(()),
            Some(_) => Err("podman without root needs more of this machine".to_owned()),
            None => Err("podman is not installed (apt install podman)".to_owned()),
        }
    }

    /// Creates empty storage.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("podman-").tempdir().expect("a folder can be made") }
    }

    /// Lists the images: names, id, and digest.
    ///
    /// # Panics
    /// If podman fails.
    pub async fn images(&self) -> Vec<Value> {
        let output = self.run(&["images", "--format", "json"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("podman prints JSON")
    }

    /// Runs podman.
    ///
    /// # Panics
    /// If it is not installed.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(&[], arguments).await
    }

    /// Runs podman with variables.
    ///
    /// # Panics
    /// If it is not installed.
    pub async fn run_with(&self, environment: &[(&str, &Path)], arguments: &[&str]) -> Output {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(find_program("podman").expect("podman is installed"));
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command.args(arguments).env("HOME", self.folder.path()).env("TMPDIR", self.folder.path());
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("podman runs")
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}
