//! Debian's headless Chromium, driven over the DevTools protocol.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::servers::find_program;
use crate::servers::process::Process;

/// Time limit for the start of a browser and for each response.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(60);

/// A browser with one page, closed on drop.
pub struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    last: u64,
    /// Errors on the page: exceptions, and requests blocked by its content security policy.
    page_errors: Vec<String>,
    _process: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser; `None` if Chromium is not installed.
    pub async fn start() -> Option<Self> {
        let program = find_program("chromium").or_else(|| find_program("chromium-browser"))?;
        let profile = tempfile::Builder::new().prefix("imgsync-chromium-").tempdir().expect("a folder can be made");
        let mut command = Command::new(program);
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"])
            .args(["--remote-debugging-port=0", "--remote-allow-origins=*", "--lang=en-US"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process::spawn(&mut command, Duration::ZERO).expect("chromium can be started");
        let address = listens_on(&profile.path().join("DevToolsActivePort")).await;
        let (socket, _) = tokio_tungstenite::connect_async(address).await.expect("chromium takes a connection");
        let (session, page_errors) = (String::new(), Vec::new());
        let mut browser = Self { socket, session, last: 0, page_errors, _process: process, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attached =
            browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true})).await;
        browser.session = attached["sessionId"].as_str().expect("a session has an id").to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.resize(1280, 800).await;
        Some(browser)
    }

    /// Navigates to a URL and waits until the page is loaded.
    pub async fn open(&mut self, url: &str) {
        // Navigating to the same URL with another fragment would not load it again.
        self.call("Page.navigate", json!({"url": "about:blank"})).await;
        self.call("Page.navigate", json!({"url": url})).await;
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'").await;
    }

    /// Evaluates an expression on the page and awaits promises.
    ///
    /// # Panics
    /// If it throws.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true on the page.
    ///
    /// # Panics
    /// With the text of the page, on timeout.
    pub async fn wait_for(&mut self, expression: &str) {
        let started = Instant::now();
        // A page that is being left throws.
        let asked = format!("(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()");
        while self.eval(&asked).await != json!(true) {
            if started.elapsed() > BROWSER_TIMEOUT {
                let shown = self.text().await;
                panic!(
                    "not so within {BROWSER_TIMEOUT:?}: {expression}\n--- the page shows\n{shown}\n{:?}",
                    self.page_errors
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the page contains a text.
    pub async fn wait_for_text(&mut self, text: &str) {
        self.wait_for(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    /// Returns the text of the page.
    pub async fn text(&mut self) -> String {
        self.eval("document.body.innerText").await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits for the first element that matches a selector and has this text or accessible name, and clicks it.
    pub async fn click(&mut self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        let find = format!(
            "[...document.querySelectorAll({selector})].find((it) => !it.disabled && \
             (it.innerText.includes({text}) || (it.getAttribute('aria-label') ?? '').includes({text})))"
        );
        self.wait_for(&find).await;
        self.eval(&format!("{find}.click()")).await;
    }

    /// Presses a key, such as `Tab` or `Enter`.
    pub async fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "Escape" => 27,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code
            });
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Types a text into the focused element.
    pub async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Resizes the viewport, in pixels.
    pub async fn resize(&mut self, width: u32, height: u32) {
        let mobile = width < 600;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Emulates `prefers-color-scheme`.
    pub async fn set_color_scheme(&mut self, scheme: &str) {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", feature).await;
    }

    /// Saves a screenshot of the page as PNG.
    pub async fn save_screenshot(&mut self, path: &Path) {
        let taken = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let data = taken["data"].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("pictures come as base64");
        std::fs::write(path, bytes).expect("the folder can be written to");
    }

    /// Returns the errors on the page so far.
    pub fn page_errors(&self) -> &[String] {
        &self.page_errors
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let id = self.last;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(message.to_string())).await.expect("chromium reads");
        let answer = async {
            loop {
                let received = self.socket.next().await.expect("chromium lives").expect("chromium answers");
                let Message::Text(text) = received else { continue };
                let received: Value = serde_json::from_str(&text).expect("chromium speaks JSON");
                if received["id"] == json!(id) {
                    assert!(received.get("error").is_none(), "{method}: {received}");
                    return received["result"].clone();
                }
                record_page_error(&received, &mut self.page_errors);
            }
        };
        tokio::time::timeout(BROWSER_TIMEOUT, answer).await.unwrap_or_else(|_| panic!("{method}: no answer"))
    }
}

fn record_page_error(received: &Value, complaints: &mut Vec<String>) {
    match received["method"].as_str() {
        Some("Runtime.exceptionThrown") => complaints.push(received["params"]["exceptionDetails"].to_string()),
        // Some tests expect responses with errors from the server; none expects violations of the page's policy.
        Some("Log.entryAdded") if received["params"]["entry"]["source"] == "security" => {
            complaints.push(received["params"]["entry"]["text"].to_string());
        }
        _ => {}
    }
}

/// Reads the DevTools address that the browser wrote to a file.
async fn listens_on(file: &Path) -> String {
    let started = Instant::now();
    loop {
        let written = std::fs::read_to_string(file).unwrap_or_default();
        let mut lines = written.lines();
        if let (Some(port), Some(path)) = (lines.next(), lines.next()) {
            return format!("ws://127.0.0.1:{port}{path}");
        }
        assert!(started.elapsed() < BROWSER_TIMEOUT, "chromium did not start within {BROWSER_TIMEOUT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Browser")
    }
}
