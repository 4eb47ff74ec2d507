//! containerd per test, with its own folders and socket, driven by `ctr`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{Process, find_program};

/// The daemon, stopped on drop.
#[derive(Debug)]
pub struct Containerd {
    // Stopped before its folder is removed.
    process: Process,
    folder: TempDir,
}

impl Containerd {
    /// Checks that it can be started here.
    ///
    /// # Errors
    /// Returns what is missing.
    pub fn available() -> Result<(), String> {
        for program in ["containerd", "ctr"] {
            if find_program(program).is_none() {
                return Err(format!("{program} is not installed (apt install containerd)"));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("containerd needs root".to_owned());
        }
        Ok(())
    }

    /// Starts it and waits until it responds.
    ///
    /// # Errors
    /// Returns its output if it does not come up.
    pub async fn start() -> Result<Self, String> {
        Self::available()?;
        let text = |error: std::io::Error| error.to_string();
        let folder = tempfile::Builder::new().prefix("containerd-").tempdir().map_err(text)?;
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket")
        );
        fs::write(at("config.toml"), config).map_err(text)?;
        let log = File::create(at("log")).map_err(text)?;
        let mut command = Command::new(find_program("containerd").ok_or("containerd is not installed")?);
        command.arg("--config").arg(at("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(text)?).stderr(log);
        let process = Process::spawn(&mut command, Duration::from_secs(15)).map_err(text)?;
        let mut server = Self { process, folder };
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            if server.ctr(&["version"]).await.status.success() {
                return Ok(server);
            }
            if server.process.has_ended() || Instant::now() > limit {
                let log = fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
                return Err(format!("containerd did not come up:\n{log}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Imports an archive and unpacks its images; `all`: of all platforms.
    ///
    /// # Errors
    /// Returns the output of `ctr`.
    pub async fn import(&self, archive: &Path, all: bool) -> Result<(), String> {
        let archive = archive.display().to_string();
        let mut arguments = vec!["images", "import", "--snapshotter", "native"];
        arguments.extend(all.then_some("--all-platforms"));
        arguments.push(&archive);
        let output = self.ctr(&arguments).await;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Pulls a reference with the `hosts.toml` files of a folder, and unpacks it.
    ///
    /// # Errors
    /// Returns the output of `ctr`.
    pub async fn pull(&self, reference: &str, hosts: &Path) -> Result<(), String> {
        let hosts = hosts.display().to_string();
        let output = self.ctr(&["images", "pull", "--hosts-dir", &hosts, "--snapshotter", "native", reference]).await;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Lists the images, each with its digest.
    pub async fn images(&self) -> Vec<(String, String)> {
        let output = self.ctr(&["images", "list"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut images: Vec<(String, String)> = text
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.to_owned(), words.nth(1)?.to_owned()))
            })
            .collect();
        images.sort();
        images
    }

    /// Runs `ctr` against this daemon.
    pub async fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(find_program("ctr").expect("ctr is installed"));
        command.arg("--address").arg(self.folder.path().join("socket")).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("ctr runs")
    }
}
