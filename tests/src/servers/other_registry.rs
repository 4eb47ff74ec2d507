//! Another registry than Debian's: the program that `scripts/test-second-registry` has installed.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::docker_registry::is_up;
use super::process::{Process, free_port};
use crate::images::Image;
use crate::tree::Client;

/// Names the program.
const PROGRAM: &str = "IMGSYNC_TEST_SECOND_REGISTRY";

/// The registry: ferro-oci-server, an implementation of its own of the specification's version 1.1. Its process ends when
/// it is dropped.
#[derive(Debug)]
pub struct OtherRegistry {
    _process: Process,
    port: u16,
    _folder: TempDir,
    client: Client,
}

impl OtherRegistry {
    /// Starts one; none where there is no such program.
    ///
    /// # Panics
    /// When it does not come up.
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
                let client = Client::new(&format!("http://127.0.0.1:{port}"), None);
                return Some(Self { _process: process, port, _folder: folder, client });
            }
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        panic!("{} did not come up; its log is:\n{log}", program.display());
    }

    /// `127.0.0.1:PORT`, as it is written in references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts an image in by plain HTTP.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.client.push(repository, tag, image).await;
    }

    /// The digest of a tag; none if it is not there.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// Demands that a tag holds the whole image.
    ///
    /// # Panics
    /// With what is missing or different.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &Image) {
        let at = format!("{}/{repository}:{tag}", self.host());
        let tree = self.client.fetch(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }
}
