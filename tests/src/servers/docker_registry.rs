//! Debian's `docker-registry` (distribution 2.8), a process for each test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tempfile::TempDir;

use super::access_log::{self, LoggedRequest};
use super::process::{Process, find_program, free_port};
use super::token::TokenServer;
use crate::images::{Image, Manifest};
use crate::tree::{Client, Tree};

/// Who may use it.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Anyone.
    #[default]
    None,
    /// One user, by Basic authentication.
    Htpasswd {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// One user, by signed tokens that hold for `ttl`.
    Token {
        /// The user.
        user: String,
        /// The password.
        password: String,
        /// How long tokens hold. docker-registry adds a minute of leeway.
        ttl: Duration,
    },
}

impl Auth {
    /// `Auth::Htpasswd`.
    pub fn htpasswd(user: &str, password: &str) -> Self {
        Self::Htpasswd { user: user.to_owned(), password: password.to_owned() }
    }

    /// `Auth::Token` with tokens that hold for five minutes.
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

/// What it does beyond the usual.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who may use it.
    pub auth: Auth,
    /// Whether manifests and blobs can be deleted.
    pub delete: bool,
    /// An upstream registry that it is a pull-through cache of.
    pub proxy: Option<String>,
    /// It refuses manifests whose layers have URLs, as it does where nothing is configured.
    pub refuse_urls: bool,
}

/// The registry. Its process and its storage end when it is dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    port: u16,
    folder: TempDir,
    client: Client,
    auth: Auth,
    tokens: Option<TokenServer>,
}

impl DockerRegistry {
    /// Starts one and waits until it answers.
    pub async fn start(auth: Auth) -> Self {
        Self::start_with(Options { auth, ..Options::default() }).await
    }

    /// Starts one with options.
    ///
    /// # Panics
    /// When `docker-registry` is not installed, or does not come up.
    pub async fn start_with(options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("docker-registry-").tempdir().expect("a folder can be made");
        let mut tokens = None;
        let auth = match &options.auth {
            Auth::None => String::new(),
            Auth::Htpasswd { user, password } => htpasswd(folder.path(), user, password),
            Auth::Token { user, password, ttl } => {
                let server = TokenServer::start(user, password, *ttl).await;
                let auth = token_auth(folder.path(), &server);
                tokens = Some(server);
                auth
            }
        };
        // The port may be taken between its choice and its use: then another is tried.
        for _ in 0..10 {
            let port = free_port();
            let config = config(folder.path(), port, &auth, &options);
            fs::write(folder.path().join("config.yml"), config).expect("the folder can be written to");
            let mut process = launch(folder.path());
            if is_up(&mut process, port).await {
                let client = Client::new(&format!("http://127.0.0.1:{port}"), options.auth.credentials());
                return Self { process, port, folder, client, auth: options.auth, tokens };
            }
        }
        let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        panic!("docker-registry did not come up; its log is:\n{log}");
    }

    /// `127.0.0.1:PORT`, as it is written in references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// User and password, if it wants any.
    pub fn credentials(&self) -> Option<(String, String)> {
        self.auth.credentials()
    }

    /// Its token service, if it has one.
    pub fn tokens(&self) -> Option<&TokenServer> {
        self.tokens.as_ref()
    }

    /// Ends its process, as a crash does. The storage stays.
    pub fn kill(&mut self) {
        self.process.end();
    }

    /// Starts it again after `kill`, on the same port and storage.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart(&mut self) {
        self.process.end();
        self.process = launch(self.folder.path());
        assert!(is_up(&mut self.process, self.port).await, "docker-registry did not come up again:\n{}", self.log());
    }

    /// Puts an image in by plain HTTP.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.client.push(repository, tag, image).await;
    }

    /// Puts one manifest in, under a tag or its digest.
    pub async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Manifest) {
        self.client.put_manifest(repository, reference, manifest).await;
    }

    /// The digest of a tag; none if it is not there.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// The tree below a tag or digest, every byte of it read and hashed; none if the reference is not there.
    pub async fn fetch_tree(&self, repository: &str, reference: &str) -> Option<Tree> {
        self.client.fetch(repository, reference).await
    }

    /// Demands that a tag holds the whole image.
    ///
    /// # Panics
    /// With what is missing or different.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &Image) {
        let at = format!("{}/{repository}:{tag}", self.host());
        let tree = self.fetch_tree(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }

    /// Deletes a manifest by digest. The option `delete` must be on.
    pub async fn delete_manifest(&self, repository: &str, digest: &str) {
        let url = format!("/v2/{repository}/manifests/{digest}");
        let response = self.client.send(Method::DELETE, &url, &[], Bytes::new()).await;
        crate::tree::expect(&response, http::StatusCode::ACCEPTED, "the manifest is deleted");
    }

    /// Bytes of blobs and manifests that it stores.
    pub fn storage_bytes(&self) -> u64 {
        bytes_below(&self.folder.path().join("storage"))
    }

    /// The requests in its log so far, those of this harness among them.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        access_log::parse(&self.log())
    }

    /// How often each `METHOD status` is in its log.
    pub fn tally(&self) -> HashMap<String, u64> {
        access_log::tally(&self.requests())
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        // It was opened to append to: the next line is the first again.
        File::create(self.folder.path().join("log")).expect("the log can be emptied");
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn config(folder: &Path, port: u16, auth: &str, options: &Options) -> String {
    let proxy = options.proxy.as_ref().map(|url| format!("proxy:\n  remoteurl: {url}\n")).unwrap_or_default();
    let urls = match options.refuse_urls {
        true => "",
        false => "validation:\n  manifests:\n    urls:\n      allow: [\".*\"]\n",
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
{urls}{auth}{proxy}",
        storage = folder.join("storage").display(),
        delete = options.delete,
    )
}

fn htpasswd(folder: &Path, user: &str, password: &str) -> String {
    let path = folder.join("htpasswd");
    // The least cost: it is paid on each request.
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

/// Waits until it answers; false if it ends first.
pub(super) async fn is_up(process: &mut Process, port: u16) -> bool {
    crate::tls::install_provider();
    let http = reqwest::Client::builder().no_proxy().build().expect("a plain client needs nothing");
    let limit = Instant::now() + Duration::from_secs(30);
    while Instant::now() < limit {
        let answer = http.get(format!("http://127.0.0.1:{port}/v2/")).send().await;
        // Whoever answers while our process has ended is another.
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
