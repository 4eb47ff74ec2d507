//! Credential helpers: programs named `docker-credential-NAME`, called over stdin and stdout.
//!
//! The protocol is docker's: the registry on stdin, `{"ServerURL","Username","Secret"}` on stdout; an error is a text
//! on stdout with exit code 1.

use std::{
    env,
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::{Credential, CredentialEnvironment};
use imgsync_oci::sanitize::{sanitize, sanitize_within};
use imgsync_oci::secret::Secret;

/// Error text of all helpers for missing credentials.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// User name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// Bytes kept of each output stream.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;
/// Characters quoted of the output.
const MAX_QUOTED_CHARS: usize = 300;
/// The output counts as complete once both streams are silent for this long after the helper exits. Its own output is
/// in the pipes by then; a child, such as an agent, may keep them open.
const SILENCE_AFTER_END: Duration = Duration::from_millis(250);

/// Error of a credential helper.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HelperProblem {
    /// The name is invalid, so the helper was not started.
    BadName,
    /// The program is not in PATH.
    Missing,
    /// The program could not be started.
    NotStarted(String),
    /// It did not exit within this time, and was killed.
    TimedOut(Duration),
    /// It exited with an error.
    Failed {
        /// The exit code or signal.
        status: String,
        /// Its output, safe to print; may be empty.
        output: String,
    },
    /// It exited successfully with invalid output.
    InvalidOutput {
        /// What is invalid. The output is not quoted, since it may hold the secret.
        reason: String,
        /// Its stderr, safe to print; may be empty.
        stderr: String,
    },
}

impl fmt::Display for HelperProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = |stderr: &str| match stderr {
            "" => String::new(),
            stderr => format!(" and said `{stderr}`"),
        };
        match self {
            Self::BadName => f.write_str(
                "has an invalid name (only letters, digits, `-`, `_` and `.`); correct the name in that file",
            ),
            Self::Missing => f.write_str(
                "is not in PATH; install it, remove its name from that file, or give the credentials in the configuration",
            ),
            Self::NotStarted(reason) => write!(
                f,
                "could not be started: {reason}; check that the program can be run by this user"
            ),
            Self::TimedOut(limit) => write!(
                f,
                "timed out after {limit:?} and was killed; it may be waiting for a locked keychain or for input: run \
                 it manually, or set the credentials in the configuration"
            ),
            Self::Failed { status, output: stderr } => write!(
                f,
                "failed ({status}){}; run it manually, or log in again",
                quote(stderr)
            ),
            Self::InvalidOutput { reason, stderr } => write!(
                f,
                "returned invalid output ({reason}){}; run it manually, or update it",
                quote(stderr)
            ),
        }
    }
}

#[derive(Deserialize)]
struct HelperResponse {
    #[serde(rename = "Username", alias = "username", default)]
    username: String,
    #[serde(rename = "Secret", alias = "secret")]
    secret: Secret,
}

/// Asks the helper `name` for the credential under `key`. Kills it after `limit`, and when the future is dropped.
pub(super) fn get_credential<'a>(
    name: &'a str,
    key: &'a str,
    env: &'a CredentialEnvironment,
    limit: Duration,
) -> BoxFuture<'a, Result<Option<Credential>, HelperProblem>> {
    // Boxed: part of nearly every request, whose futures are large already.
    Box::pin(start(name, key, env, limit))
}

async fn start(
    name: &str,
    key: &str,
    env: &CredentialEnvironment,
    limit: Duration,
) -> Result<Option<Credential>, HelperProblem> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(HelperProblem::BadName);
    }
    let path = env.path.as_deref().unwrap_or_default();
    let program = find(&format!("docker-credential-{name}"), path).ok_or(HelperProblem::Missing)?;

    let mut command = Command::new(program);
    command
        .arg("get")
        .env_clear()
        .envs(env.helpers.iter())
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(home) = &env.home {
        command.env("HOME", home);
    }
    let not_started = |error: io::Error| HelperProblem::NotStarted(sanitize(&error.to_string()).into_owned());
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(not_started)?;
    let mut group = ProcessGroup::from_child(&child);
    let output = match timeout(limit, exchange(&mut child, key)).await {
        Ok(output) => output.map_err(not_started)?,
        Err(_) => {
            drop(group);
            // It may have exited just now; then there is nothing to kill.
            _ = child.kill().await;
            return Err(HelperProblem::TimedOut(limit));
        }
    };
    group.release();
    parse_output(&output)
}

/// The helper's process group. Dropping it kills all processes that the helper started: the children of a shell script
/// would run on otherwise.
struct ProcessGroup {
    #[cfg(unix)]
    leader: Option<rustix::process::Pid>,
}

impl ProcessGroup {
    #[cfg(unix)]
    fn from_child(child: &Child) -> ProcessGroup {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        ProcessGroup { leader: id.and_then(rustix::process::Pid::from_raw) }
    }

    #[cfg(not(unix))]
    fn from_child(_child: &Child) -> ProcessGroup {
        ProcessGroup {}
    }

    /// Lets the group live: the helper exited by itself, and what it left running, such as an agent, is meant to run.
    fn release(&mut self) {
        #[cfg(unix)]
        {
            self.leader = None;
        }
    }
}

#[cfg(unix)]
impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(leader) = self.leader.take() {
            // Fails only if the group is empty.
            _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

/// Finds a program in the folders of `path`. Skips relative folders: a configuration must not start a file in the
/// current folder.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(format!("{program}{}", env::consts::EXE_SUFFIX)))
        .find(|file| is_executable(file))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file()
}

struct HelperOutput {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Writes the request and reads both streams concurrently, so that neither side blocks the other.
async fn exchange(child: &mut Child, key: &str) -> io::Result<HelperOutput> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (ended, has_ended) = watch::channel(false);
    let question = async {
        if let Some(mut stdin) = stdin {
            let mut has_ended = has_ended.clone();
            tokio::select! {
                // Without a line break, as docker sends it. A helper that does not read its input may still answer.
                _ = stdin.write_all(key.as_bytes()) => {}
                _ = has_ended.wait_for(|ended| *ended) => {}
            }
        }
    };
    let status = async {
        let status = child.wait().await;
        ended.send_replace(true);
        status
    };
    let (_, stdout, stderr, status) =
        tokio::join!(question, read(stdout, has_ended.clone()), read(stderr, has_ended.clone()), status);
    Ok(HelperOutput { status: status?, stdout: stdout?, stderr: stderr? })
}

/// Reads a stream to its end and keeps its beginning. Once the helper has exited, silence counts as the end.
async fn read(stream: Option<impl AsyncRead + Unpin>, mut has_ended: watch::Receiver<bool>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return Ok(kept) };
    // On the heap: the future is part of many others.
    let mut piece = vec![0; 8 << 10];
    loop {
        let silence = async {
            // The sender lives as long as the helper.
            _ = has_ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(SILENCE_AFTER_END).await;
        };
        let read = tokio::select! {
            read = stream.read(&mut piece) => read?,
            () = silence => 0,
        };
        if read == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&piece[..read.min(MAX_OUTPUT_BYTES - kept.len())]);
    }
}

fn parse_output(streams: &HelperOutput) -> Result<Option<Credential>, HelperProblem> {
    let stdout = String::from_utf8_lossy(&streams.stdout);
    let stderr = String::from_utf8_lossy(&streams.stderr);
    let quoted = |text: &str| sanitize_within(text.trim(), MAX_QUOTED_CHARS).into_owned();
    if !streams.status.success() {
        let not_found = |text: &str| text.to_ascii_lowercase().contains(NOT_FOUND);
        if not_found(&stdout) || not_found(&stderr) {
            return Ok(None);
        }
        // By the protocol errors are on stdout; but what looks like a response may hold a secret.
        let error = match stdout.contains('{') {
            true => "",
            false => stdout.trim(),
        };
        return Err(HelperProblem::Failed {
            status: streams.status.to_string(),
            output: quoted(&format!("{error} {}", stderr.trim())),
        });
    }
    let response: HelperResponse = serde_json::from_slice(&streams.stdout).map_err(|error| {
        let reason = match error.is_data() {
            // serde would quote the value.
            true => "its JSON lacks a text `Username` or `Secret`".to_owned(),
            false => format!("it is not JSON: {error}"),
        };
        HelperProblem::InvalidOutput { reason, stderr: quoted(&stderr) }
    })?;
    if response.secret.expose().is_empty() {
        return Ok(None);
    }
    Ok(Some(match response.username.as_str() {
        TOKEN_USER => Credential::IdentityToken { username: None, token: response.secret },
        _ => Credential::Basic { username: response.username, password: response.secret },
    }))
}
