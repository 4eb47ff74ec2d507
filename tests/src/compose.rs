//! docker-compose.yml and docker-compose.ha.yml as a new user has them: a clean copy of its files, a filled-in `.env`, and a Docker Engine.
//!
//! Uses the engine of this machine if one runs, else one of the test's own. `scripts/stand-ins` builds images that
//! cannot be pulled; they are removed afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::program::Imgsync;
use crate::servers::{DockerEngine, RemoteRegistry, find_program, free_port};

/// Name of the image in the compose file.
const IMAGE: &str = "imgsync:3";
/// Image without the programs.
const RUNTIME: &str = "imgsync-test-runtime:latest";
/// Backup tag of an image that already had our name.
const SAVED_IMAGE: &str = "imgsync-test-kept:latest";

/// A compose file of the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComposeFile {
    /// docker-compose.yml
    Plain,
    /// docker-compose.ha.yml
    HighlyAvailable,
}

impl ComposeFile {
    fn name(self) -> &'static str {
        match self {
            ComposeFile::Plain => "docker-compose.yml",
            ComposeFile::HighlyAvailable => "docker-compose.ha.yml",
        }
    }
}

/// A docker-compose project. Its containers, volumes, networks and images are removed on drop.
#[derive(Debug)]
pub struct Compose {
    file: ComposeFile,
    engine: Option<DockerEngine>,
    /// Images to remove at the end.
    made: Vec<String>,
    folder: TempDir,
    name: String,
    password: Secrets,
    ports: Ports,
}

#[derive(Debug)]
struct Secrets {
    broker: String,
    store: String,
    key: String,
    cookie: String,
    token: String,
}

#[derive(Debug)]
struct Ports {
    serve: u16,
    second_serve: u16,
    broker: u16,
    store: u16,
    source: u16,
    target: u16,
}

impl Compose {
    /// Checks that the project can be started here.
    ///
    /// # Errors
    /// Returns the missing requirement.
    pub async fn available() -> Result<(), String> {
        if find_program("docker").is_none() {
            return Err("docker is not installed (apt install docker.io)".to_owned());
        }
        if find_program("docker-compose").is_none() && !succeeds(&mut Command::new("docker"), &["compose", "version"]) {
            return Err("docker-compose is not installed (apt install docker-compose)".to_owned());
        }
        if !engine_runs() {
            DockerEngine::available()?;
            if find_program("debootstrap").is_none() {
                return Err("debootstrap is not installed (apt install debootstrap)".to_owned());
            }
        }
        Ok(())
    }

    /// Prepares an engine with all images of a compose file, and a project that is not up. The imgsync image contains
    /// the binaries from `cargo build`; with `IMGSYNC_TEST_WHOLE_IMAGE` it is built as users build it.
    ///
    /// # Errors
    /// If an image can be neither pulled nor built, with the reason.
    ///
    /// # Panics
    /// If the imgsync image cannot be built.
    pub async fn start(file: ComposeFile) -> Result<Self, String> {
        let engine = if engine_runs() { None } else { Some(DockerEngine::start_with_networks().await?) };
        let folder = tempfile::Builder::new().prefix("compose-").tempdir().map_err(|error| error.to_string())?;
        copy_clean_clone(folder.path());
        let name = format!("imgsync-test-{}", std::process::id());
        let password = Secrets { broker: secret(), store: secret(), key: secret(), cookie: secret(), token: secret() };
        let port = free_port;
        let ports = Ports {
            serve: port(),
            second_serve: port(),
            broker: port(),
            store: port(),
            source: port(),
            target: port(),
        };
        let mut compose = Self { file, engine, made: Vec::new(), folder, name, password, ports };
        compose.make_images()?;
        Ok(compose)
    }

    fn make_images(&mut self) -> Result<(), String> {
        let whole = std::env::var_os("IMGSYNC_TEST_WHOLE_IMAGE").is_some();
        let mut stand_ins = self.on_engine(Command::new(repository().join("scripts/stand-ins")));
        let made = run(stand_ins.arg(if whole { "all" } else { "servers" }));
        // Images that were built before one failed.
        self.made = String::from_utf8_lossy(&made.stdout).lines().map(str::to_owned).collect();
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        if succeeds(&mut self.on_engine(Command::new("docker")), &["tag", IMAGE, SAVED_IMAGE]) {
            self.made.push(SAVED_IMAGE.to_owned());
        }
        self.made.push(IMAGE.to_owned());
        let root = repository().display().to_string();
        if whole {
            self.docker(&["build", "--network", "host", "-t", IMAGE, &root]);
            return Ok(());
        }
        self.made.push(RUNTIME.to_owned());
        self.docker(&["build", "--network", "host", "--target", "runtime", "-t", RUNTIME, &root]);
        let context = self.folder.path().join("image");
        fs::create_dir(&context).expect("a folder can be made");
        let mut dockerfile = format!("FROM {RUNTIME}\n");
        for program in ["imgsync", "imgsync-worker"] {
            fs::copy(Imgsync::named(program).path(), context.join(program)).expect("a program can be copied");
            dockerfile.push_str(&format!("COPY {program} /usr/local/bin/\n"));
        }
        fs::write(context.join("Dockerfile"), dockerfile).expect("the folder can be written to");
        self.docker(&["build", "-t", IMAGE, &context.display().to_string()]);
        fs::remove_dir_all(context).expect("the folder can be removed");
        Ok(())
    }

    /// Writes `.env` from `.env.example` with its own ports, and with passwords and key filled in or left empty.
    /// Configuration and profile default to the example's.
    pub fn write_env(&self, filled: bool, config: Option<&str>) {
        let mut env = String::new();
        for line in fs::read_to_string(self.folder.path().join(".env.example")).expect("the example is there").lines() {
            let needs_more = self.file == ComposeFile::HighlyAvailable;
            let (line, value) = match line {
                "RABBITMQ_PASSWORD=" => (line, &*self.password.broker),
                "REDIS_PASSWORD=" => (line, &*self.password.store),
                "IMGSYNC_KEY=" => (line, &*self.password.key),
                "#RABBITMQ_COOKIE=" if needs_more => (&line[1..], &*self.password.cookie),
                "#IMGSYNC_TOKEN=" if needs_more => (&line[1..], &*self.password.token),
                _ => (line, ""),
            };
            let is_examples = line.starts_with("IMGSYNC_CONFIG=") || line.starts_with("COMPOSE_PROFILES=");
            if !(is_examples && config.is_some()) {
                env.push_str(&format!("{line}{}\n", if filled { value } else { "" }));
            }
        }
        let Ports { serve, second_serve, broker, store, source, target } = self.ports;
        env.push_str(&format!("IMGSYNC_PORT={serve}\nIMGSYNC_PORT2={second_serve}\n"));
        env.push_str(&format!("RABBITMQ_PORT={broker}\nREDIS_PORT={store}\n"));
        env.push_str(&format!("SOURCE_PORT={source}\nTARGET_PORT={target}\n"));
        if let Some(config) = config {
            fs::write(self.folder.path().join("imgsync.yaml"), config).expect("the folder can be written to");
        }
        fs::write(self.folder.path().join(".env"), env).expect("the folder can be written to");
    }

    /// Runs `docker-compose` in the project and returns its output.
    pub fn try_compose(&self, arguments: &[&str]) -> Output {
        let mut command = match find_program("docker-compose") {
            Some(program) => Command::new(program),
            None => {
                let mut docker = Command::new("docker");
                docker.arg("compose");
                docker
            }
        };
        command.args(["-f", self.file.name(), "-p", &self.name]).args(arguments).current_dir(self.folder.path());
        // The shell's environment would override .env.
        for name in [
            "RABBITMQ_PASSWORD",
            "REDIS_PASSWORD",
            "IMGSYNC_KEY",
            "IMGSYNC_CONFIG",
            "COMPOSE_PROFILES",
            "RABBITMQ_COOKIE",
            "IMGSYNC_TOKEN",
        ] {
            command.env_remove(name);
        }
        run(&mut self.on_engine(command))
    }

    /// Runs `docker-compose` in the project and returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn compose(&self, arguments: &[&str]) -> String {
        demand(&format!("docker-compose {arguments:?}"), self.try_compose(arguments))
    }

    /// Runs `docker` and returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn docker(&self, arguments: &[&str]) -> String {
        demand(&format!("docker {arguments:?}"), self.try_docker(arguments))
    }

    fn try_docker(&self, arguments: &[&str]) -> Output {
        run(self.on_engine(Command::new("docker")).args(arguments))
    }

    /// Lists the containers of a service, running or exited, ordered by number.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let [project, service] = [("project", &*self.name), ("service", service)]
            .map(|(label, value)| format!("label=com.docker.compose.{label}={value}"));
        let number = r#"{{.Label "com.docker.compose.container-number"}} {{.ID}}"#;
        let list = self.docker(&["ps", "-a", "--filter", &project, "--filter", &service, "--format", number]);
        let mut found: Vec<(u32, String)> = list
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(number, id)| (number.parse().unwrap_or(0), id.to_owned()))
            .collect();
        found.sort();
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// Reads a property of a container by a `docker inspect --format` template.
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, container])
    }

    /// Waits until every container of a service is healthy.
    ///
    /// # Panics
    /// With the health checks, on timeout.
    pub async fn wait_healthy(&self, service: &str, limit: Duration) {
        let started = Instant::now();
        for container in self.containers(service) {
            while self.inspect(&container, "{{.State.Health.Status}}") != "healthy" {
                assert!(
                    started.elapsed() < limit,
                    "{service} is not healthy: {}\n{}",
                    self.inspect(&container, "{{json .State.Health}}"),
                    self.logs(&container)
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    /// Returns the output of a container, stdout and stderr.
    pub fn logs(&self, container: &str) -> String {
        let output = self.try_docker(&["logs", container]);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Returns the network of the project.
    pub fn network(&self) -> String {
        format!("{}_default", self.name)
    }

    /// Returns the address of a container in a network.
    pub fn address(&self, container: &str) -> String {
        self.inspect(container, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    }

    /// Starts an idle container in the project's network, which only takes an address. Returns its id.
    pub fn start_bystander(&self) -> String {
        let label = format!("com.docker.compose.project={}", self.name);
        let run = ["run", "-d", "--label", &label, "--network", &self.network(), "--entrypoint", "sleep", IMAGE, "600"];
        self.docker(&run)
    }

    /// Shows the newest batch, from outside over the loopback ports, or from a container if the servers have none; `None`
    /// while broker or store are down.
    pub async fn show_batch(&self) -> Option<Value> {
        if self.file == ComposeFile::HighlyAvailable {
            let running = |service: &str| {
                let containers = self.containers(service).into_iter();
                containers.filter(|one| self.inspect(one, "{{.State.Running}}") == "true").collect::<Vec<_>>()
            };
            let asked = running("coordinator2").into_iter().chain(running("coordinator1")).next()?;
            let shown = self.try_docker(&["exec", &asked, "imgsync", "batch", "show", "--json"]);
            return shown.status.success().then(|| serde_json::from_slice(&shown.stdout).expect("it is JSON"));
        }
        let Secrets { broker, store, .. } = &self.password;
        let broker = format!("amqp://imgsync:{broker}@127.0.0.1:{}", self.ports.broker);
        let store = format!("redis://:{store}@127.0.0.1:{}", self.ports.store);
        let program = Imgsync::new().env("IMGSYNC_BROKER", broker).env("IMGSYNC_STORE", store);
        let shown = program.args(["batch", "show", "--json"]).run().await;
        (shown.code == Some(0)).then(|| shown.json())
    }

    /// Polls the newest batch until the predicate holds, and returns it.
    ///
    /// # Panics
    /// With the batch, on timeout.
    pub async fn wait_for_batch(&self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < limit {
            if let Some(shown) = self.show_batch().await {
                if wanted(&shown) {
                    return shown;
                }
                last = Some(shown);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        panic!("{what}: not within {limit:?}; it stands so: {last:#?}");
    }

    /// Returns the example's source registry, reached from outside.
    pub fn source(&self) -> RemoteRegistry {
        RemoteRegistry::at(&format!("http://127.0.0.1:{}", self.ports.source))
    }

    /// Returns the example's target registry, reached from outside.
    pub fn target(&self) -> RemoteRegistry {
        RemoteRegistry::at(&format!("http://127.0.0.1:{}", self.ports.target))
    }

    fn on_engine(&self, mut command: Command) -> Command {
        if let Some(engine) = &self.engine {
            command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
            command.env("DOCKER_CONFIG", self.folder.path().join(".docker"));
        }
        command.stdin(Stdio::null());
        command
    }

    fn remove_all(&self) {
        let label = format!("label=com.docker.compose.project={}", self.name);
        for (list, remove) in [
            (["ps", "-aq"].as_slice(), ["rm", "-f", "-v"].as_slice()),
            (&["volume", "ls", "-q"], &["volume", "rm", "-f"]),
            (&["network", "ls", "-q"], &["network", "rm"]),
        ] {
            let found = self.try_docker(&[list, &["--filter", &label]].concat()).stdout;
            let found = String::from_utf8_lossy(&found).into_owned();
            let found: Vec<&str> = found.lines().collect();
            if !found.is_empty() {
                self.try_docker(&[remove, &found].concat());
            }
        }
        if self.engine.is_none() {
            if self.made.iter().any(|image| image == SAVED_IMAGE) {
                self.try_docker(&["tag", SAVED_IMAGE, IMAGE]);
            }
            let kept = |image: &&String| *image != IMAGE || !self.made.iter().any(|image| image == SAVED_IMAGE);
            let made: Vec<&str> = self.made.iter().filter(kept).map(String::as_str).collect();
            self.try_docker(&[["rmi"].as_slice(), &made].concat());
        }
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        self.remove_all();
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn demand(what: &str, output: Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn succeeds(command: &mut Command, arguments: &[&str]) -> bool {
    command.args(arguments).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

fn engine_runs() -> bool {
    succeeds(&mut Command::new("docker"), &["version", "--format", "{{.Server.Version}}"])
}

fn secret() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 24];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("there are random bytes");
    hex::encode(bytes)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

/// Copies the files of a clone that the compose file uses, and nothing else.
fn copy_clean_clone(to: &Path) {
    let names = ["docker-compose.yml", "docker-compose.ha.yml", ".env.example", "deploy", "examples"];
    let mut copy = Command::new("cp");
    copy.arg("-r").args(names.map(|name| repository().join(name))).arg(to);
    demand("cp", run(&mut copy));
}
