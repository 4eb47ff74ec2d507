//! Debian's skopeo, a second implementation to compare with.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::servers::find_program;

/// A skopeo command under construction. Certificates are not verified.
#[derive(Clone, Debug, Default)]
pub struct Skopeo {
    source: Option<String>,
    target: Option<String>,
}

impl Skopeo {
    /// Creates a command without credentials.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the credentials for the source, or for the inspected registry.
    #[must_use]
    pub fn source_credentials(mut self, user: &str, password: &str) -> Self {
        self.source = Some(format!("{user}:{password}"));
        self
    }

    /// Sets the credentials for the target.
    #[must_use]
    pub fn target_credentials(mut self, user: &str, password: &str) -> Self {
        self.target = Some(format!("{user}:{password}"));
        self
    }

    /// Reads the bytes of a manifest, `host/repository:tag`.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn inspect_raw(&self, reference: &str) -> Result<Vec<u8>, String> {
        let mut arguments = vec!["inspect".to_owned(), "--raw".to_owned(), "--tls-verify=false".to_owned()];
        arguments.extend(self.source.iter().flat_map(|pair| ["--creds".to_owned(), pair.clone()]));
        arguments.push(format!("docker://{reference}"));
        run(&arguments).await
    }

    /// Inspects an image.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn inspect(&self, reference: &str) -> Result<Value, String> {
        let mut arguments = vec!["inspect".to_owned(), "--tls-verify=false".to_owned()];
        arguments.extend(self.source.iter().flat_map(|pair| ["--creds".to_owned(), pair.clone()]));
        arguments.push(format!("docker://{reference}"));
        serde_json::from_slice(&run(&arguments).await?).map_err(|error| error.to_string())
    }

    /// Copies an image with all its platforms between registries and preserves digests.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy(&self, source: &str, target: &str) -> Result<(), String> {
        self.copy_any(&format!("docker://{source}"), &format!("docker://{target}")).await
    }

    /// Copies an image into a `dir:` folder, which reads and hashes its layers.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy_to_dir(&self, source: &str, folder: &Path) -> Result<(), String> {
        self.copy_any(&format!("docker://{source}"), &format!("dir:{}", folder.display())).await
    }

    /// Copies an image into an OCI layout.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy_to_layout(&self, source: &str, folder: &Path, tag: &str) -> Result<(), String> {
        self.copy_any(&format!("docker://{source}"), &format!("oci:{}:{tag}", folder.display())).await
    }

    /// Copies between any skopeo transports: `docker://…`, `oci:…`, `dir:…`.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy_any(&self, source: &str, target: &str) -> Result<(), String> {
        let fixed = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
        let mut arguments: Vec<_> = fixed.into_iter().map(str::to_owned).collect();
        arguments.extend(self.source.iter().flat_map(|pair| ["--src-creds".to_owned(), pair.clone()]));
        arguments.extend(self.target.iter().flat_map(|pair| ["--dest-creds".to_owned(), pair.clone()]));
        arguments.extend([source.to_owned(), target.to_owned()]);
        run(&arguments).await.map(|_| ())
    }
}

impl Skopeo {
    /// Copies from a `docker-archive:`, which has one platform of an image and no manifest of it.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy_docker_archive(&self, source: &str, target: &str) -> Result<(), String> {
        let arguments = ["copy", "--dest-tls-verify=false", source, target];
        run(&arguments.map(str::to_owned)).await.map(|_| ())
    }

    /// Copies one platform of an image to a `docker-archive:`.
    ///
    /// # Errors
    /// Returns skopeo's output.
    pub async fn copy_docker_archive_to(&self, source: &str, target: &str) -> Result<(), String> {
        let arguments = ["copy", "--src-tls-verify=false", source, target];
        run(&arguments.map(str::to_owned)).await.map(|_| ())
    }
}

/// Runs skopeo with a policy that accepts anything, and with the given credentials only.
async fn run(arguments: &[String]) -> Result<Vec<u8>, String> {
    let program = find_program("skopeo").expect("skopeo is installed (apt install skopeo)");
    let home = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg("--insecure-policy").args(arguments).env_clear();
    command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path()).env("PATH", "/usr/bin:/bin");
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
    if status.success() { Ok(stdout) } else { Err(String::from_utf8_lossy(&stderr).into_owned()) }
}
