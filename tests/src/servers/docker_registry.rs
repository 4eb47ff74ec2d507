//! Debian's `docker-registry` (distribution 2.8), one process per test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tempfile::TempDir;

use super::access_log::{self, LoggedRequest};
use super::process::{Process, find_program, free_port};
use super::token::TokenServer;
use crate::images::{TestImage, TestManifest};
use crate::registry_client::{FetchedTree, RegistryClient};

/// Authentication of the registry.
#[derive(Clone, Debug, Default)]
pub enum DockerRegistryAuth {
    /// No authentication.
    #[default]
    None,
    /// Basic authentication of one user.
    Htpasswd {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Signed tokens for one user.
    Token {
        /// The user.
        user: String,
        /// The password.
        password: String,
        /// Lifetime of tokens. docker-registry adds a minute of leeway.
        ttl: Duration,
    },
}

impl DockerRegistryAuth {
    /// Creates `DockerRegistryAuth::Htpasswd`.
    pub fn htpasswd(user: &str, password: &str) -> Self {
        Self::Htpasswd { user: user.to_owned(), password: password.to_owned() }
    }

    /// Creates `DockerRegistryAuth::Token` with a token lifetime of five minutes.
    pub fn token(user: &str, password: &str) -> Self {
        Self::Token { user: user.to_owned(), password: password.to_owned(), ttl: Duration::from_secs(300) }
    }

    fn credentials(&self) -> Option<(String, String)> {
        match self {
            Self::None => None,
            Self::Htpasswd { user, password } | Self::Token { user, password, .. } => {
                Some((user.clone(), password.clone()))
            }
        }
    }
}

/// Options of the registry.
#[derive(Clone, Debug, Default)]
pub struct DockerRegistryOptions {
    /// Authentication.
    pub auth: DockerRegistryAuth,
    /// Enables deletion of manifests and blobs.
    pub delete: bool,
    /// Makes it a pull-through cache of this upstream registry.
    pub proxy: Option<String>,
    /// Refuses manifests with layer URLs, as the default configuration does.
    pub refuse_urls: bool,
    /// Folder in which it creates the folder that it stores in.
    pub storage: Option<PathBuf>,
    /// Where it sends notifications, and with which value of `Authorization`.
    pub notify: Option<(String, String)>,
}

/// The registry. Process and storage are removed on drop.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    port: u16,
    folder: TempDir,
    client: RegistryClient,
    auth: DockerRegistryAuth,
    tokens: Option<TokenServer>,
}

impl DockerRegistry {
    /// Starts a registry and waits until it responds.
    pub async fn start(auth: DockerRegistryAuth) -> Self {
        Self::start_with(DockerRegistryOptions { auth, ..DockerRegistryOptions::default() }).await
    }

    /// Starts a registry with options.
    ///
    /// # Panics
    /// If `docker-registry` is not installed or does not come up.
    pub async fn start_with(options: DockerRegistryOptions) -> Self {
        let storage = options.storage.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("docker-registry-").tempdir_in(storage);
        let folder = folder.expect("a folder can be made");
        let mut tokens = None;
        let auth = match &options.auth {
            DockerRegistryAuth::None => String::new(),
            DockerRegistryAuth::Htpasswd { user, password } => htpasswd(folder.path(), user, password),
            DockerRegistryAuth::Token { user, password, ttl } => {
                let server = TokenServer::start(user, password, *ttl).await;
                let auth = token_auth(folder.path(), &server);
                tokens = Some(server);
                auth
            }
        };
        // Another process may take the port between its choice and its use: retry with another one.
        for _ in 0..10 {
            let port = free_port();
            let config = config(folder.path(), port, &auth, &options);
            fs::write(folder.path().join("config.yml"), config).expect("the folder can be written to");
            let mut process = launch(folder.path());
            if is_up(&mut process, port).await {
                let client = RegistryClient::new(&format!("http://127.0.0.1:{port}"), options.auth.credentials());
                return Self { process, port, folder, client, auth: options.auth, tokens };
            }
        }
        let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        panic!("docker-registry did not come up; its log is:\n{log}");
    }

    /// Returns `127.0.0.1:PORT`, as references use it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns user and password, if it requires any.
    pub fn credentials(&self) -> Option<(String, String)> {
        self.auth.credentials()
    }

    /// Returns its token service, if it has one.
    pub fn tokens(&self) -> Option<&TokenServer> {
        self.tokens.as_ref()
    }

    /// Kills its process, as a crash does. The storage stays.
    pub fn kill(&mut self) {
        self.process.end();
    }

    /// Restarts it after `kill`, on the same port and storage.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn restart(&mut self) {
        self.process.end();
        self.process = launch(self.folder.path());
        assert!(is_up(&mut self.process, self.port).await, "docker-registry did not come up again:\n{}", self.log());
    }

    /// Pushes an image by plain HTTP.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.client.push(repository, tag, image).await;
    }

    /// Pushes a manifest under a tag or its digest.
    pub async fn put_manifest(&self, repository: &str, reference: &str, manifest: &TestManifest) {
        self.client.put_manifest(repository, reference, manifest).await;
    }

    /// Returns the digest of a tag, or `None` if it does not exist.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// Reads and hashes every byte of the tree below a tag or digest; `None` if the reference does not exist.
    pub async fn fetch_tree(&self, repository: &str, reference: &str) -> Option<FetchedTree> {
        self.client.fetch(repository, reference).await
    }

    /// Asserts that a tag holds the whole image.
    ///
    /// # Panics
    /// With the missing or different content.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &TestImage) {
        let at = format!("{}/{repository}:{tag}", self.host());
        let tree = self.fetch_tree(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }

    /// Deletes a manifest by digest. Needs the option `delete`.
    pub async fn delete_manifest(&self, repository: &str, digest: &str) {
        let url = format!("/v2/{repository}/manifests/{digest}");
        let response = self.client.send(Method::DELETE, &url, &[], Bytes::new()).await;
        crate::registry_client::expect(&response, http::StatusCode::ACCEPTED, "the manifest is deleted");
    }

    /// Returns the bytes of stored blobs and manifests.
    pub fn storage_bytes(&self) -> u64 {
        bytes_below(&self.folder.path().join("storage"))
    }

    /// Returns the requests in its log so far, including the harness's own.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        access_log::parse(&self.log())
    }

    /// Counts the log entries of each `METHOD status`.
    pub fn count_by_method_and_status(&self) -> HashMap<String, u64> {
        access_log::count_by_method_and_status(&self.requests())
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        // The log is open in append mode: the next line becomes the first.
        File::create(self.folder.path().join("log")).expect("the log can be emptied");
    }

    /// Returns its output.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn config(folder: &Path, port: u16, auth: &str, options: &DockerRegistryOptions) -> String {
    let proxy = options.proxy.as_ref().map(|url| format!("proxy:\n  remoteurl: {url}\n")).unwrap_or_default();
    let urls = match options.refuse_urls {
        true => "",
        false => "validation:\n  manifests:\n    urls:\n      allow: [\".*\"]\n",
    };
    let notifications = match &options.notify {
        Some((url, authorization)) => format!(
            "notifications:
  endpoints:
    - name: harness
      url: {url}
      headers:
        Authorization: [\"{authorization}\"]
      timeout: 5s
      threshold: 3
      backoff: 200ms
      ignore:
        mediatypes: [application/octet-stream]
        actions: [pull]
"
        ),
        None => String::new(),
    };
    format!(
        "version: 0.1
log:
  level: error
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: {storage}
    maxthreads: 100
  delete:
    enabled: {delete}
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: 127.0.0.1:{port}
  secret: of-this-test
{urls}{auth}{proxy}{notifications}",
        storage = folder.join("storage").display(),
        delete = options.delete,
    )
}

fn htpasswd(folder: &Path, user: &str, password: &str) -> String {
    let path = folder.join("htpasswd");
    // The lowest cost, since every request pays it.
    let hash = bcrypt::hash(password, 4).expect("bcrypt hashes");
    fs::write(&path, format!("{user}:{hash}\n")).expect("the folder can be written to");
    format!("auth:\n  htpasswd:\n    realm: harness\n    path: {}\n", path.display())
}

fn token_auth(folder: &Path, server: &TokenServer) -> String {
    let path = folder.join("token.pem");
    fs::write(&path, server.certificate_pem()).expect("the folder can be written to");
    format!(
        "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    rootcertbundle: {}\n",
        server.realm(),
        TokenServer::SERVICE,
        TokenServer::ISSUER,
        path.display()
    )
}

fn launch(folder: &Path) -> Process {
    let program = find_program("docker-registry").expect("docker-registry is installed (apt install docker-registry)");
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("a log can be opened");
    let mut command = Command::new(program);
    command.arg("serve").arg(folder.join("config.yml")).env_clear().env("HOME", folder);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log can be shared")).stderr(log);
    Process::spawn(&mut command, Duration::ZERO).expect("docker-registry starts")
}

/// Waits until the registry responds; false if its process ends first.
pub(super) async fn is_up(process: &mut Process, port: u16) -> bool {
    crate::tls::install_provider();
    let http = reqwest::Client::builder().no_proxy().build().expect("a plain client needs nothing");
    let limit = Instant::now() + Duration::from_secs(30);
    while Instant::now() < limit {
        let answer = http.get(format!("http://127.0.0.1:{port}/v2/")).send().await;
        // If our process has ended, another one responds.
        if process.has_ended() {
            return false;
        }
        if answer.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
