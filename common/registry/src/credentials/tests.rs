//! Tests the store against real files and real helpers, which are shell scripts in a temporary folder.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use futures_util::future::join_all;
use tempfile::TempDir;

use super::*;

/// An empty home folder, and a PATH with the test's helpers before the system's programs.
struct Home {
    folder: TempDir,
    env: CredentialEnvironment,
}

impl Home {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut path = folder.path().join("bin").into_os_string();
        path.push(":/usr/bin:/bin");
        let env = CredentialEnvironment {
            home: Some(folder.path().to_owned()),
            path: Some(path),
            ..CredentialEnvironment::default()
        };
        Self { folder, env }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Writes a docker configuration with one entry for `r.example` as `user`.
    fn login(&self, name: &str, user: &str) {
        let entry = format!(r#"{{"auths":{{"r.example":{{"username":"{user}","password":"p"}}}}}}"#);
        self.write(name, &entry);
    }

    /// Installs a helper. Each run appends its request to `$HOME/asked`.
    fn helper(&self, name: &str, script: &str) {
        self.write("bin/.keep", "");
        let file = self.path(&format!("bin/docker-credential-{name}"));
        // Written by another process: a file that this one had open for writing may not be executable yet, if another
        // thread has forked meanwhile.
        let mut writer = Command::new("/bin/sh")
            .args(["-c", r#"cat > "$0" && chmod +x "$0""#])
            .arg(&file)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = writer.stdin.take().unwrap();
        write!(stdin, "#!/bin/sh\nread key\necho \"$1 $key\" >> \"$HOME/asked\"\n{script}\n").unwrap();
        drop(stdin);
        assert!(writer.wait().unwrap().success());
    }

    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.path("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }

    fn store(&self) -> CredentialStore {
        CredentialStore::new(BTreeMap::new(), self.env.clone())
    }

    /// Returns the user found for `r.example/app`.
    async fn user(&self) -> Option<String> {
        let found = self.store().lookup("r.example", "app").await.unwrap();
        found.map(|credential| match credential {
            Credential::Basic { username, .. } => username,
            Credential::IdentityToken { .. } => panic!("a token"),
        })
    }

    /// Returns the error of a failing helper that is the default for all registries.
    async fn failure(&self, script: &str, limit: Duration) -> (HelperProblem, String) {
        self.helper("bad", script);
        self.write(".docker/config.json", r#"{"credsStore":"bad"}"#);
        let store = self.store().with_helper_timeout(limit);
        let error = store.lookup("r.example", "app").await.unwrap_err();
        let text = error.to_string();
        for part in ["docker-credential-bad", "r.example", ".docker/config.json"] {
            assert!(text.contains(part), "{text}");
        }
        match error {
            CredentialError::Helper { problem, .. } => (problem, text),
            other => panic!("{other:?}"),
        }
    }
}

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.to_owned(), password: Secret::new(password) }
}

const GIVES: &str = r#"echo '{"ServerURL":"x","Username":"me","Secret":"s3cret"}'"#;
const NOT_FOUND: &str = "echo 'credentials not found in native keychain'; exit 1";
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn credential_sources_are_searched_in_order() {
    let mut home = Home::new();
    assert_eq!(home.user().await, None);
    home.login(".config/containers/auth.json", "home-config");
    assert_eq!(home.user().await.as_deref(), Some("home-config"));
    home.login("xdg/containers/auth.json", "xdg-config");
    home.env.xdg_config_home = Some(home.path("xdg"));
    assert_eq!(home.user().await.as_deref(), Some("xdg-config"));
    home.login("run/containers/auth.json", "runtime");
    home.env.xdg_runtime_dir = Some(home.path("run"));
    assert_eq!(home.user().await.as_deref(), Some("runtime"));
    home.login(".docker/config.json", "docker");
    assert_eq!(home.user().await.as_deref(), Some("docker"));
    home.login("elsewhere/config.json", "docker-config");
    home.env.docker_config = Some(home.path("elsewhere"));
    assert_eq!(home.user().await.as_deref(), Some("docker-config"));
    home.env.registry_auth_file = Some(home.path("auth.json"));
    assert_eq!(home.user().await.as_deref(), Some("docker-config"));
    home.login("auth.json", "auth-file");
    assert_eq!(home.user().await.as_deref(), Some("auth-file"));

    let configured =
        BTreeMap::from([("https://r.example/".to_owned(), vec![basic("configured", "1"), basic("second", "2")])]);
    let store = CredentialStore::new(configured, home.env.clone());
    let found = store.lookup("r.example", "app").await.unwrap();
    assert_eq!(found, Some(basic("configured", "1")));
    assert_eq!(store.configured_for("R.example").len(), 2);
}

#[tokio::test]
async fn a_namespace_entry_wins_and_other_repositories_fall_through_to_later_files() {
    let home = Home::new();
    home.write(".docker/config.json", r#"{"auths":{"r.example/team":{"username":"team","password":"p"}}}"#);
    home.login(".config/containers/auth.json", "all");
    let store = home.store();
    let lookup = |repository| store.lookup("r.example", repository);
    assert_eq!(lookup("team/app").await.unwrap(), Some(basic("team", "p")));
    assert_eq!(lookup("teams/app").await.unwrap(), Some(basic("all", "p")));
}

#[tokio::test]
async fn a_helper_goes_before_the_entries_of_its_file() {
    let home = Home::new();
    home.helper("own", GIVES);
    home.write(
        ".docker/config.json",
        r#"{"credHelpers":{"r.example":"own"},"credsStore":"absent",
            "auths":{"r.example":{"username":"file","password":"p"}}}"#,
    );
    let found = home.store().lookup("r.example", "app").await.unwrap();
    assert_eq!(found, Some(basic("me", "s3cret")));
    assert_eq!(home.asked(), ["get r.example"]);
}

#[tokio::test]
async fn the_hub_is_asked_for_by_the_key_that_docker_uses() {
    let home = Home::new();
    home.helper("all", r#"echo '{"Username":"<token>","Secret":"t"}'"#);
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let store = home.store();
    for name in ["docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"] {
        let found = store.lookup(name, "library/alpine").await.unwrap();
        let token = Credential::IdentityToken { username: None, token: Secret::new("t") };
        assert_eq!(found, Some(token), "{name}");
    }
    assert_eq!(home.asked(), ["get https://index.docker.io/v1/"]);
}

#[tokio::test]
async fn a_helper_without_the_credentials_leaves_it_to_the_entries() {
    let home = Home::new();
    home.helper("all", NOT_FOUND);
    home.write(
        ".docker/config.json",
        r#"{"credsStore":"all","auths":{"r.example":{"username":"file","password":"p"}}}"#,
    );
    assert_eq!(home.user().await.as_deref(), Some("file"));
    let none = home.store().lookup("other.example", "app").await.unwrap();
    assert_eq!(none, None);
}

#[tokio::test]
async fn concurrent_lookups_share_one_helper_call() {
    let home = Home::new();
    home.helper("all", &format!("sleep 0.2; {GIVES}"));
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let store = home.store().with_cache_ttl(Duration::ZERO);
    let found = join_all((0..20).map(|_| store.lookup("r.example", "app"))).await;
    assert!(found.iter().all(|found| *found == Ok(Some(basic("me", "s3cret")))));
    assert_eq!(home.asked().len(), 1);

    store.lookup("r.example", "app").await.unwrap();
    assert_eq!(home.asked().len(), 2, "an old answer is not used");
    let store = store.with_cache_ttl(LONG);
    store.lookup("r.example", "other").await.unwrap();
    assert_eq!(home.asked().len(), 2, "a fresh one is, for all repositories");
}

#[tokio::test]
async fn a_failure_is_shared_by_concurrent_lookups_and_cached() {
    let home = Home::new();
    home.helper("all", "sleep 0.2; exit 3");
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let store = home.store();
    let found = join_all((0..20).map(|_| store.lookup("r.example", "app"))).await;
    assert!(found.iter().all(Result::is_err));
    assert!(store.lookup("r.example", "other").await.is_err());
    assert_eq!(home.asked().len(), 1);

    home.helper("all", GIVES);
    let store = store.with_failure_cache_ttl(Duration::ZERO);
    let found = store.lookup("r.example", "app").await;
    assert_eq!(found, Ok(Some(basic("me", "s3cret"))));
}

#[tokio::test]
async fn a_dropped_lookup_does_not_block_others() {
    let home = Home::new();
    home.helper("all", &format!("sleep 0.3; {GIVES}"));
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let store = home.store();
    let timed_lookup = tokio::time::timeout(Duration::from_millis(50), store.lookup("r.example", "app"));
    assert!(timed_lookup.await.is_err());
    let found = store.lookup("r.example", "app").await;
    assert_eq!(found, Ok(Some(basic("me", "s3cret"))));
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed() {
    let home = Home::new();
    let limit = Duration::from_millis(500);
    let script = r#"echo $$ > "$HOME/pid"; exec sleep 60"#;
    let (problem, text) = home.failure(script, limit).await;
    assert_eq!(problem, HelperProblem::TimedOut(limit));
    assert!(text.contains("500ms"), "{text}");
    let pid = fs::read_to_string(home.path("pid")).unwrap();
    let alive = Command::new("/bin/sh").args(["-c", &format!("kill -0 {} 2>/dev/null", pid.trim())]).status().unwrap();
    assert!(!alive.success(), "process {pid} is still there");
}

/// Waits until no process has this id.
async fn is_gone(pid: &str) -> bool {
    for _ in 0..500 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_helper_has_started_is_killed_with_it() {
    let home = Home::new();
    let script = r#"sleep 600 & echo $! > "$HOME/pid"; wait"#;
    home.failure(script, Duration::from_millis(500)).await;
    let pid = fs::read_to_string(home.path("pid")).unwrap();
    assert!(is_gone(pid.trim()).await, "{pid} runs still after the time-out");

    fs::remove_file(home.path("pid")).unwrap();
    let store = home.store();
    let mut asking = Box::pin(store.lookup("r.example", "app"));
    let pid = loop {
        tokio::select! {
            found = &mut asking => panic!("{found:?}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        match fs::read_to_string(home.path("pid")) {
            Ok(pid) if pid.ends_with('\n') => break pid,
            _ => {}
        }
    };
    drop(asking);
    assert!(is_gone(pid.trim()).await, "{pid} runs still after nobody waits");
}

#[tokio::test]
async fn a_helper_that_has_ended_has_answered_although_a_child_keeps_its_streams_open() {
    let home = Home::new();
    home.helper("all", &format!(r#"sleep 600 & echo $! > "$HOME/pid"; {GIVES}"#));
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let found = home.store().with_helper_timeout(LONG).lookup("r.example", "app").await;
    assert_eq!(found, Ok(Some(basic("me", "s3cret"))));
    let pid = fs::read_to_string(home.path("pid")).unwrap();
    let killed = Command::new("/bin/sh").args(["-c", &format!("kill {}", pid.trim())]).status().unwrap();
    assert!(killed.success(), "an agent that a helper leaves behind lives on");

    home.helper("all", &format!(r#"sleep 600 & echo $! > "$HOME/pid"; {NOT_FOUND}"#));
    assert_eq!(home.store().lookup("r.example", "app").await, Ok(None));
    let pid = fs::read_to_string(home.path("pid")).unwrap();
    Command::new("/bin/sh").args(["-c", &format!("kill {}", pid.trim())]).status().unwrap();
}

#[tokio::test]
async fn a_helper_is_given_the_variables_of_its_environment_and_no_others() {
    let mut home = Home::new();
    home.env.helpers =
        [("AWS_PROFILE".into(), "prod".into()), ("HOME".into(), "/nowhere".into())].into_iter().collect();
    home.helper("all", &format!(r#"env > "$HOME/env"; {GIVES}"#));
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    assert!(home.store().lookup("r.example", "app").await.unwrap().is_some());
    let given = fs::read_to_string(home.path("env")).unwrap();
    let names: Vec<&str> = given.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(
        names.contains(&"AWS_PROFILE") && given.contains(&format!("HOME={}\n", home.folder.path().display())),
        "{given}"
    );
    // The shell sets some of its own.
    let own = ["PATH", "HOME", "AWS_PROFILE", "PWD", "OLDPWD", "SHLVL", "_"];
    assert!(names.iter().all(|name| own.contains(name)), "{given}");
}

#[tokio::test]
async fn a_helper_that_fails_is_quoted_safely() {
    let home = Home::new();
    let script = r#"echo 'keychain is locked'; printf '\033[31mred\nline' >&2; exit 7"#;
    let (problem, text) = home.failure(script, LONG).await;
    let output = r"keychain is locked \u{1b}[31mred\nline".to_owned();
    let status = "exit status: 7".to_owned();
    assert_eq!(problem, HelperProblem::Failed { status, output });
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn invalid_helper_output_is_not_quoted() {
    let home = Home::new();
    for script in [
        "echo 's3cret'; echo 'why' >&2",
        r#"echo '{"Username":"me","Secret":'"#,
        r#"echo '{"Username":"me","Secret":["s3cret"]}'"#,
        r#"echo '{"Username":"s3cret"}'"#,
        "echo",
        "head -c 1000000 /dev/zero",
    ] {
        let (problem, text) = home.failure(script, LONG).await;
        assert!(matches!(problem, HelperProblem::InvalidOutput { .. }), "{problem:?}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    let (problem, text) = home.failure(r#"echo '{"Secret":"s3cret"}'; kill -9 $$"#, LONG).await;
    assert!(matches!(problem, HelperProblem::Failed { .. }), "{problem:?}");
    assert!(text.contains("signal: 9") && !text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_helper_that_is_missing_or_oddly_named_is_an_error_that_says_what_to_do() {
    let home = Home::new();
    let expect = |name: &str, problem: HelperProblem| {
        let config = format!(r#"{{"credHelpers":{{"r.example":"{name}"}}}}"#);
        home.write(".docker/config.json", &config);
        let store = home.store();
        async move {
            match store.lookup("r.example", "app").await {
                Err(CredentialError::Helper { problem: found, .. }) => assert_eq!(found, problem),
                other => panic!("{other:?}"),
            }
            store.lookup("other.example", "app").await.unwrap();
        }
    };
    expect("absent", HelperProblem::Missing).await;
    home.write("bin/docker-credential-plainfile", "#!/bin/sh\n");
    expect("plainfile", HelperProblem::Missing).await;
    for name in ["../bin/x", "a b", "x;y", "/bin/sh"] {
        expect(name, HelperProblem::BadName).await;
    }
    home.helper("nowhere", "");
    fs::write(home.path("bin/docker-credential-nowhere"), "#!/no/such/shell\n").unwrap();
    home.write(".docker/config.json", r#"{"credsStore":"nowhere"}"#);
    let error = home.store().lookup("r.example", "app").await.unwrap_err();
    assert!(error.to_string().contains("could not be started"), "{error}");
}

#[tokio::test]
async fn a_helper_may_ignore_stdin_and_write_to_stderr() {
    let home = Home::new();
    home.helper("all", &format!("exec 0<&-; head -c 1000000 /dev/zero >&2; {GIVES}"));
    home.write(".docker/config.json", r#"{"credsStore":"all"}"#);
    let found = home.store().lookup("r.example", "app").await;
    assert_eq!(found, Ok(Some(basic("me", "s3cret"))));
}

#[tokio::test]
async fn a_file_that_is_broken_is_named_with_the_place() {
    let home = Home::new();
    home.login(".config/containers/auth.json", "below");
    home.write(".docker/config.json", "{\n  \"auths\": oops\n}");
    let error = home.store().lookup("r.example", "app").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(".docker/config.json"), "{text}");
    assert!(text.contains("line 2 column"), "{text}");

    home.write(".docker/config.json", r#"{"auths":{"r.example":{"auth":"czNjcmV0"}}}"#);
    let error = home.store().lookup("r.example", "app").await.unwrap_err();
    assert!(matches!(&error, CredentialError::BadEntry { key, .. } if key == "r.example"));
    let text = format!("{error} {error:?}");
    assert!(!text.contains("czNjcmV0") && !text.contains("s3cret"), "{text}");

    fs::remove_file(home.path(".docker/config.json")).unwrap();
    fs::create_dir(home.path(".docker/config.json")).unwrap();
    let error = home.store().lookup("r.example", "app").await.unwrap_err();
    assert!(matches!(error, CredentialError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn the_store_prints_no_secret() {
    let home = Home::new();
    home.write(".docker/config.json", r#"{"auths":{"r.example":{"auth":"bWU6czNjcmV0"}}}"#);
    let configured = BTreeMap::from([("c.example".to_owned(), vec![basic("me", "s3cret")])]);
    let store = CredentialStore::new(configured, home.env.clone());
    let found = store.lookup("r.example", "app").await.unwrap();
    assert_eq!(found, Some(basic("me", "s3cret")));
    let printed = format!("{store:?} {found:?}");
    assert!(!printed.contains("s3cret") && printed.contains("***"), "{printed}");
}

#[tokio::test]
async fn credentials_that_one_request_found_expired_are_looked_up_again_for_all_others() {
    let home = Home::new();
    home.login(".docker/config.json", "old");
    let store = home.store();
    assert_eq!(store.lookup("r.example", "app").await.unwrap(), Some(basic("old", "p")));
    home.login(".docker/config.json", "new");
    // Two requests began before either of them was refused.
    let began = Instant::now();
    assert!(store.forget("r.example", began).await);
    assert!(store.forget("r.example", began).await, "the second may try again, too");
    assert_eq!(store.lookup("r.example", "app").await.unwrap(), Some(basic("new", "p")));
    assert!(store.forget("r.example", began).await, "what is newer stays, and may help a third");
    // Where there are no credentials, none can be renewed.
    assert_eq!(store.lookup("other.example", "app").await.unwrap(), None);
    assert!(!store.forget("other.example", Instant::now()).await);
    assert!(!store.forget("unknown.example", Instant::now()).await);
}
