//! A Docker Engine per test: `dockerd` with its own folders and socket, with or without networks.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::firewall::Firewall;
use super::process::{Process, find_program};

/// Options of an engine without networks, which does not touch the machine's firewall.
const ALONE: [&str; 4] = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"];

/// The engine, stopped on drop.
#[derive(Debug)]
pub struct DockerEngine {
    // Stopped before its folder is removed.
    process: Process,
    folder: TempDir,
    // Restored after the engine has stopped.
    _firewall: Option<Firewall>,
}

impl DockerEngine {
    /// Checks that an engine can be started here.
    pub fn available() -> Result<(), String> {
        for program in ["dockerd", "docker", "containerd"] {
            if find_program(program).is_none() {
                return Err(format!("{program} is not installed (apt install docker.io)"));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("dockerd needs root".to_owned());
        }
        Ok(())
    }

    /// Starts an engine without networks, which does not touch the machine's firewall, and waits until it responds.
    ///
    /// # Errors
    /// Returns its output if it does not come up.
    pub async fn start() -> Result<Self, String> {
        Self::start_with(&ALONE, "{}", None).await
    }

    /// Starts an engine without networks, with this `daemon.json`.
    ///
    /// # Errors
    /// Returns its output if it does not come up.
    pub async fn start_configured(daemon_json: &str) -> Result<Self, String> {
        Self::start_with(&ALONE, daemon_json, None).await
    }

    /// Starts an engine with container networks. It changes the machine's firewall, which is restored on drop.
    ///
    /// # Errors
    /// Returns its output if it does not come up.
    pub async fn start_with_networks() -> Result<Self, String> {
        if find_program("iptables").is_none() {
            return Err("iptables is not installed (apt install iptables)".to_owned());
        }
        // The caller creates the networks.
        Self::start_with(&["--bridge=none"], "{}", Some(Firewall::remember()?)).await
    }

    async fn start_with(options: &[&str], daemon_json: &str, firewall: Option<Firewall>) -> Result<Self, String> {
        Self::available()?;
        let folder = tempfile::Builder::new().prefix("dockerd-").tempdir().map_err(|error| error.to_string())?;
        let at = |name: &str| folder.path().join(name);
        let log = File::create(at("log")).map_err(|error| error.to_string())?;
        let dockerd = find_program("dockerd").ok_or("dockerd is not installed")?;
        fs::write(at("daemon.json"), daemon_json).map_err(|error| error.to_string())?;
        let mut command = Command::new(dockerd);
        command.arg("--config-file").arg(at("daemon.json"));
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
        command.arg("--host").arg(format!("unix://{}", at("docker.sock").display()));
        command.args(options);
        // Retries would make a slow test look like a fault of the registry.
        command.arg("--max-download-attempts=1");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let process = Process::spawn(&mut command, Duration::from_secs(15)).map_err(|error| error.to_string())?;
        let mut engine = Self { process, folder, _firewall: firewall };
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            if engine.docker(&["version"]).await.status.success() {
                return Ok(engine);
            }
            if engine.process.has_ended() || Instant::now() > limit {
                return Err(format!("dockerd did not come up:\n{}", engine.log()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Pulls a reference. Loopback registries are accessed by plain HTTP.
    ///
    /// # Errors
    /// Returns the output of `docker pull`.
    pub async fn pull(&self, reference: &str) -> Result<(), String> {
        checked(self.docker(&["pull", reference]).await).map(|_| ())
    }

    /// Returns the id of a pulled image, the digest of its config.
    ///
    /// # Errors
    /// Returns the output of `docker inspect`.
    pub async fn image_id(&self, reference: &str) -> Result<String, String> {
        checked(self.docker(&["image", "inspect", "--format", "{{.Id}}", reference]).await)
    }

    /// Runs `docker` against this engine.
    pub async fn docker(&self, arguments: &[&str]) -> Output {
        let docker = find_program("docker").expect("docker is installed");
        let mut command = tokio::process::Command::new(docker);
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        command.env("HOME", self.folder.path()).env("DOCKER_CONFIG", self.folder.path().join("config"));
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("docker runs")
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// Returns its output.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for DockerEngine {
    fn drop(&mut self) {
        self.process.end();
        // A container on the host's network leaves a mount behind that keeps the folder busy.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let folder = self.folder.path().display().to_string();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&folder));
        for point in ours {
            let _ = Command::new("umount").arg("--lazy").arg(point).output();
        }
    }
}

fn checked(output: Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
