//! ferro-oci-server, the program installed by `scripts/test-ferro-registry`.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::docker_registry::is_up;
use super::process::{Process, free_port};
use crate::images::TestImage;
use crate::registry_client::RegistryClient;

/// Environment variable with the path of the program.
const PROGRAM: &str = "IMGSYNC_TEST_FERRO_REGISTRY";

/// An implementation of the specification, version 1.1, that shares no code with docker-registry. Its process ends on
/// drop.
#[derive(Debug)]
pub struct FerroRegistry {
    _process: Process,
    port: u16,
    _folder: TempDir,
    client: RegistryClient,
}

impl FerroRegistry {
    /// Starts a registry; `None` if the program is not installed.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start() -> Option<Self> {
        let program = std::env::var_os(PROGRAM).filter(|program| !program.is_empty())?;
        let folder = tempfile::Builder::new().prefix("other-registry-").tempdir().expect("a folder can be made");
        for _ in 0..10 {
            let port = free_port();
            let log = File::create(folder.path().join("log")).expect("a log can be opened");
            let mut command = Command::new(&program);
            command.env_clear().env("FERRO_OCI_LISTEN", format!("127.0.0.1:{port}"));
            command.env("FERRO_OCI_STORAGE_DIR", folder.path().join("storage"));
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log can be shared")).stderr(log);
            let mut process = Process::spawn(&mut command, Duration::ZERO).expect("the program starts");
            if is_up(&mut process, port).await {
                let client = RegistryClient::new(&format!("http://127.0.0.1:{port}"), None);
                return Some(Self { _process: process, port, _folder: folder, client });
            }
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        panic!("{} did not come up; its log is:\n{log}", program.display());
    }

    /// Returns `127.0.0.1:PORT`, as references use it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image by plain HTTP.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.client.push(repository, tag, image).await;
    }

    /// Returns the digest of a tag, or `None` if it does not exist.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// Asserts that a tag holds the whole image.
    ///
    /// # Panics
    /// With the missing or different content.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &TestImage) {
        let at = format!("{}/{repository}:{tag}", self.host());
        let tree = self.client.fetch(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }
}
