//! `imgsync serve` as a child process, and a client of its API.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use crate::program::{Imgsync, Output, RunningProgram, Signal};

/// Time limit for the start and for each wait.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);

/// A running `imgsync serve`, killed on drop.
#[derive(Debug)]
pub struct ServeProcess {
    /// The process.
    pub running: RunningProgram,
    /// Base URL, such as `http://127.0.0.1:1234`.
    pub url: String,
    /// The generated token; empty if the configuration sets one.
    pub token: String,
    client: reqwest::Client,
}

impl ServeProcess {
    /// Starts it on a free port with the configuration in the program's home. Retries follow each other quickly.
    pub async fn start(program: &Imgsync, more: &[&str]) -> Self {
        let listen = if more.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"][..] };
        let program = program.again().args(["serve", "--retry-delay", "10ms"]).args(listen).args(more);
        let running = program.spawn();
        let line = running.wait_for_line(|line| line.starts_with("listening on http://"), SERVE_TIMEOUT).await;
        let url = line.split_whitespace().nth(2).expect("the line names an address").replace("0.0.0.0", "127.0.0.1");
        let is_address_line = |line: &str| line.contains("changes require") || line.contains("#token=");
        let line = running.wait_for_line(is_address_line, SERVE_TIMEOUT).await;
        let token = line.split_once("#token=").map_or("", |(_, rest)| rest.split(' ').next().unwrap_or_default());
        let (token, client) = (token.to_owned(), client());
        let served = Self { running, url, token, client };
        let leads = |line: &str| line.ends_with("elected leader") || line.contains("standby");
        served.running.wait_for_line(leads, SERVE_TIMEOUT).await;
        served
    }

    /// URL of the dashboard, with the token.
    pub fn dashboard_url(&self) -> String {
        format!("{}/#token={}", self.url, self.token)
    }

    /// Builds a request to the API without a token.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}/api/v1/{path}", self.url))
    }

    /// Builds a request for a path outside the API.
    pub fn request_outside_api(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    /// Builds a notification for a hook.
    pub fn notification(&self, hook: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}/hooks/{hook}", self.url))
    }

    /// Sends a GET for a path outside the API.
    pub async fn fetch(&self, path: &str) -> reqwest::Response {
        self.request_outside_api(path).send().await.expect("it answers")
    }

    /// Sends a GET to the API.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        send_json(self.request(Method::GET, path).bearer_auth(&self.token)).await
    }

    /// Sends a POST to the API with this JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        send_json(self.request(Method::POST, path).bearer_auth(&self.token).json(body)).await
    }

    /// Polls the API until the predicate holds, and returns that response.
    ///
    /// # Panics
    /// With the last response, on timeout.
    pub async fn wait_for(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (status, value) = self.get(path).await;
            if status == 200 && wanted(&value) {
                return value;
            }
            let log = self.running.stderr();
            assert!(
                started.elapsed() < SERVE_TIMEOUT,
                "{path}: not so within {SERVE_TIMEOUT:?}: {status} {value:#}\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until there are this many batches and all have ended. Returns them, newest first.
    pub async fn wait_for_ended_batches(&self, number: usize) -> Vec<Value> {
        let all_ended = |value: &Value| {
            let batches = value["batches"].as_array().map(Vec::as_slice).unwrap_or_default();
            batches.len() >= number && batches.iter().all(|batch| !batch["ended"].is_null())
        };
        let value = self.wait_for("batches", all_ended).await;
        value["batches"].as_array().cloned().unwrap_or_default()
    }

    /// Sends SIGTERM and waits for the exit.
    pub async fn stop(mut self) -> Output {
        self.running.signal(Signal::TERM);
        self.running.wait().await
    }
}

/// Builds a client without proxies.
fn client() -> reqwest::Client {
    crate::tls::install_provider();
    reqwest::Client::builder().no_proxy().timeout(SERVE_TIMEOUT).build().expect("a client can be made")
}

/// Sends a request. Returns its status and JSON body, or null if the body is not JSON.
pub async fn send_json(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("it answers");
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_default();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}
