//! Passwords with any characters at a real broker and store, in every place where they can be configured.

use std::sync::Arc;
use std::time::Duration;

use imgsync_config::{Config, ConfigFile};
use imgsync_queue::{RabbitQueue, RabbitSettings, TaskQueue as _};
use imgsync_store::{ManualClock, RedisOptions, RedisStore, SqliteStore, WorkerRegistry as _};
use imgsync_tests::cluster::TestCluster;
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

/// Each inside a password, and one password with all of them.
const CHARACTERS: [char; 13] = ['@', '/', '#', '?', '%', ':', '[', ']', '+', '&', '\\', ' ', 'ü'];

fn passwords() -> Vec<String> {
    let each = CHARACTERS.iter().map(|character| format!("12{character}34"));
    // Digits look like a port, words like a host, and some passwords look percent-encoded.
    let more = ["p@ss/w#rd", "%41%2f", "a:b@c:d", "$x${y}"].map(str::to_owned);
    each.chain([CHARACTERS.iter().collect()]).chain(more).collect()
}

/// Percent-encodes everything.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Creates a user for each password at broker and store, named `u0`, `u1` and so on.
fn with_users(cluster: &TestCluster) {
    let users: Vec<String> = passwords().iter().map(|password| format!("{:?}", password.as_bytes())).collect();
    let script = format!(
        "lists:foldl(fun(P, N) -> U = list_to_binary(\"u\" ++ integer_to_list(N)), \
         ok = rabbit_auth_backend_internal:add_user(U, list_to_binary(P), <<\"test\">>), \
         ok = rabbit_auth_backend_internal:set_permissions(U, <<\"/\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>), \
         N + 1 end, 0, [{}]).",
        users.join(", ")
    );
    tokio::task::block_in_place(|| cluster.broker.ctl(&["eval", &script]));
    for (number, password) in passwords().iter().enumerate() {
        let (user, password) = (format!("u{number}"), format!(">{password}"));
        let said = cluster.store.command(&["ACL", "SETUSER", &user, "on", &password, "~*", "&*", "+@all"]);
        assert_eq!(said, "+OK\r\n", "{password}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_password_opens_broker_and_store_wherever_it_is_written() {
    let cluster = TestCluster::with_own_broker();
    with_users(&cluster);
    let (broker, store) = (cluster.broker.port(), cluster.store.port());
    let worker_registry =
        Arc::new(SqliteStore::in_memory(Arc::new(ManualClock::starting_at(jiff::Timestamp::now()))).await.unwrap());
    for (number, password) in passwords().iter().enumerate() {
        let encoded = encoded(password);
        let written = [
            format!(
                "broker: 'amqp://u{number}:${{PASSWORD}}@127.0.0.1:{broker}/%2f', \
                 store: 'redis://u{number}:${{PASSWORD}}@127.0.0.1:{store}'"
            ),
            format!(
                "broker: {{url: 'amqp://127.0.0.1:{broker}/${{VHOST}}', username: u{number}, password: '${{PASSWORD}}'}}, \
                 store: {{url: 'redis://127.0.0.1:{store}', username: u{number}, password: '${{PASSWORD}}'}}"
            ),
            format!(
                "broker: 'amqp://u{number}:{encoded}@127.0.0.1:{broker}/%2f', \
                 store: 'redis://u{number}:{encoded}@127.0.0.1:{store}'"
            ),
        ];
        for text in written {
            let environment = |name: &str| match name {
                "PASSWORD" => Some(password.clone()),
                "VHOST" => Some("/".to_owned()),
                _ => None,
            };
            let text = format!("cluster: {{{text}}}\n");
            let file = ConfigFile { name: "imgsync.yaml", text: &text, environment: &environment, presets: None };
            let config = Config::read(&file).unwrap_or_else(|errors| panic!("{password}: {errors}"));
            let addresses = config.cluster.unwrap();
            let (broker, store) = (addresses.broker, addresses.store.unwrap());
            let queue = RabbitQueue::connect(&broker, worker_registry.clone(), RabbitSettings::default()).await;
            let queue = queue.unwrap_or_else(|error| panic!("{password}, {text}: {error}"));
            assert!(queue.is_alive().await);
            let store = RedisStore::connect(&store, RedisOptions::default()).await;
            let store = store.unwrap_or_else(|error| panic!("{password}, {text}: {error}"));
            store.check_writes().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_work_with_a_password_of_all_characters_and_show_nothing_of_it() {
    let cluster = TestCluster::with_own_broker();
    with_users(&cluster);
    let number = CHARACTERS.len();
    let password: String = CHARACTERS.iter().collect();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("any-password");
    source.push("a", "1", &image);
    let config = format!(
        "cluster:\n  broker: {{url: 'amqp://127.0.0.1:{}/%2f', username: u{number}, password: '${{PASSWORD}}'}}\n  \
         store: 'redis://u{number}:${{PASSWORD}}@127.0.0.1:{}'\n\
         rules: [{{from: {}/a, to: {}/m, naming: keep}}]\n",
        cluster.broker.port(),
        cluster.store.port(),
        source.host(),
        target.host()
    );
    let program = |program: Imgsync| {
        program.file("imgsync.yaml", &config);
        program.env("PASSWORD", &password)
    };
    // From the environment, where it must be percent-encoded.
    let worker = Imgsync::worker()
        .env(
            "IMGSYNC_BROKER",
            format!("amqp://u{number}:{}@127.0.0.1:{}/%2f", encoded(&password), cluster.broker.port()),
        )
        .env("IMGSYNC_STORE", format!("redis://u{number}:{}@127.0.0.1:{}", encoded(&password), cluster.store.port()));
    let worker = worker.args(["--debug"]).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(60)).await;
    let run = program(Imgsync::new()).args(["run", "--debug", "--json"]).run().await.assert_code(0);
    target.assert_holds("m/a", "1", &image);
    let shown = program(Imgsync::new()).args(["config", "show"]).run().await.assert_code(0);
    for text in [&run.stdout, &run.stderr, &shown.stdout, &shown.stderr, &worker.stderr()] {
        assert!(!text.contains(&password) && !text.contains(&encoded(&password)) && !text.contains("%40"), "{text}");
    }
    assert!(shown.stdout.contains(&format!("url: amqp://127.0.0.1:{}\n", cluster.broker.port())), "{}", shown.stdout);
}

#[tokio::test]
async fn a_url_whose_password_has_no_clear_end_is_refused_everywhere_and_no_part_of_it_is_shown() {
    for password in ["p@ss/w#rd", "12/34", "12?34", "pa#rd", "a@b", "q%zz", "12\\34"] {
        let pieces: Vec<&str> = password.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let url = |scheme: &str| format!("{scheme}://me:{password}@nowhere.invalid");
        let config = format!("cluster: {{broker: '{}', store: '{}'}}\n", url("amqp"), url("redis"));
        let proxy = format!("registries: {{r.example.com: {{proxy: '{}'}}}}\n", url("http"));
        let configured = |text: &str, arguments: &[&str]| {
            let program = Imgsync::new().args(arguments);
            program.file("imgsync.yaml", text);
            program
        };
        let plain = |program: Imgsync| {
            program.file("imgsync.yaml", "rules: []\n");
            program
        };
        let (broker, store) = (url("amqp"), url("redis"));
        let good = ["amqp://nowhere.invalid", "redis://nowhere.invalid"];
        let whole = "cluster: {broker: '${URL}', store: 'redis://h'}\n";
        for program in [
            configured(&config, &["config", "check"]),
            configured(&config, &["config", "show"]),
            configured(&proxy, &["config", "check"]),
            configured(whole, &["config", "check"]).env("URL", &broker),
            plain(Imgsync::new().args(["batch", "list", "--broker", &broker, "--store", good[1]])),
            plain(Imgsync::new().args(["batch", "list"]).env("IMGSYNC_BROKER", good[0]).env("IMGSYNC_STORE", &store)),
            plain(Imgsync::worker().env("IMGSYNC_BROKER", &broker).env("IMGSYNC_STORE", good[1])),
            plain(Imgsync::worker().args(["--broker", good[0], "--store", &store])),
        ] {
            let output = program.run().await.assert_code(2);
            assert!(
                output.stderr.contains("percent-encode the password, or use `username`/`password`"),
                "{}",
                output.stderr
            );
            let shown = format!("{}{}", output.stdout, output.stderr);
            let words: Vec<&str> = shown.split(|c: char| !c.is_ascii_alphanumeric()).collect();
            assert!(pieces.iter().all(|piece| *piece == "a" || !words.contains(piece)), "{password}: {shown}");
        }
    }
}
