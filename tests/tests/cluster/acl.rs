//! Untrusted networks: TLS to broker and store, and users with the least permissions, as docs/how-to/cluster.md describes.

use imgsync_tests::cluster::TestCluster;
use imgsync_tests::program::{Imgsync, Signal};
use imgsync_tests::servers::{RedisServerOptions, find_program, free_port};
use imgsync_tests::tls::Authority;

use crate::support::{ClusterFixture, WAIT_TIMEOUT};

const QUEUES: &str = r"^(w|sync)\..*$";
const QUEUES_AND_PUBLISHING: &str = r"^((w|sync)\..*|amq\.default)$";
/// As documented: nobody can log in, and Redis may replay its log.
const NO_DEFAULT_USER: &str = "user default off ~* &* +@all";
const STORE_RIGHTS: &str = "resetchannels ~imgsync:* +@all -@admin -@dangerous +info";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_copied_over_tls_by_users_with_the_least_rights() {
    let documented = include_str!("../../../docs/how-to/cluster.md");
    for words in [QUEUES, QUEUES_AND_PUBLISHING, STORE_RIGHTS, NO_DEFAULT_USER] {
        assert!(documented.contains(words), "docs/how-to/cluster.md says {words}");
    }
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let identity = authority.server(&["localhost"]);
    let at = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let tls = free_port();
    let broker = format!(
        "listeners.ssl.1 = 127.0.0.1:{tls}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.cacertfile = {}\nssl_options.verify = verify_none\n",
        at("cert.pem", &identity.certificate_pem),
        at("key.pem", &identity.key_pem),
        at("ca.pem", authority.pem()),
    );
    let extra_config = vec![NO_DEFAULT_USER.to_owned(), format!("user imgsync on >store-secret {STORE_RIGHTS}")];
    let store = RedisServerOptions { extra_config, tls: Some(identity), ..RedisServerOptions::default() };
    let cluster = TestCluster::start_with(&broker, store);
    let broker = &cluster.broker;
    tokio::task::block_in_place(|| {
        broker.ctl(&["add_vhost", "imgsync"]);
        broker.ctl(&["add_user", "imgsync", "broker-secret"]);
        broker.ctl(&["set_permissions", "-p", "imgsync", "imgsync", QUEUES, QUEUES_AND_PUBLISHING, QUEUES]);
        broker.ctl(&["delete_user", "guest"]);
    });
    let broker = format!("amqps://imgsync:broker-secret@localhost:{tls}/imgsync");
    let store = format!("rediss://imgsync:store-secret@localhost:{}", cluster.store.port());
    let mut fixture = ClusterFixture::with_cluster(cluster, 3, 10).await;
    let with_urls = |program: Imgsync| {
        program.file("ca.pem", authority.pem());
        program
            .env("IMGSYNC_BROKER", &broker)
            .env("IMGSYNC_STORE", &store)
            .env("IMGSYNC_KEY", "the key of this cluster")
    };
    let trusting = "cluster: {ca: ca.pem}\n";
    let imgsync = |rules: &str| with_urls(fixture.cluster.imgsync(&format!("{trusting}{rules}")));

    let worker = || with_urls(fixture.cluster.worker(trusting)).args(["--concurrency", "4"]).spawn();
    let workers = [worker(), worker()];
    let mut serve = imgsync("").args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    serve.wait_for_line(|line| line.contains("/readyz"), WAIT_TIMEOUT).await;
    let run = imgsync(&fixture.config).args(["run", "--json"]).run().await;
    fixture.assert_ended_whole(&run);
    // Control and inspection commands too.
    for command in [["batch", "list"], ["batch", "show"], ["batch", "report"], ["cache", "export"]] {
        imgsync("").args(command).run().await.assert_code(0);
    }
    for running in workers.iter().chain([&serve]) {
        let said = running.stderr();
        assert!(!said.contains("ACCESS_REFUSED") && !said.contains("NOPERM"), "{said}");
        assert!(!said.contains("not checked"), "{said}");
    }
    serve.signal(Signal::TERM);
    serve.wait().await;

    // Commands they may not run, sent by another client.
    let redis_cli = find_program("redis-cli").expect("redis-cli is installed (Debian: redis-tools)");
    for command in [&["GET", "other"][..], &["FLUSHALL"], &["CONFIG", "GET", "*"], &["KEYS", "*"]] {
        let mut ask = std::process::Command::new(&redis_cli);
        ask.args(["--no-auth-warning", "--insecure", "-u", &store]).args(command);
        let output = ask.output().unwrap();
        let answer = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(answer.contains("NOPERM"), "{command:?}: {answer}");
    }

    // A denied login is reported in our words, with the exit code of a run that could not start.
    let wrong = |url: &str, secret: &str| url.replace(secret, "wrong-secret");
    for (broker, store, words) in [
        (wrong(&broker, "broker-secret"), store.clone(), "check user and password in the broker's URL"),
        (broker.clone(), wrong(&store, "store-secret"), "check user and password in the store's URL"),
        (broker.clone(), store.replace("imgsync:store-secret@", ""), "check user and password in the store's URL"),
    ] {
        let program = imgsync(&fixture.config).env("IMGSYNC_BROKER", &broker).env("IMGSYNC_STORE", &store);
        let output = program.arg("run").run().await.assert_code(3);
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
        assert!(!output.stderr.contains("lapin::") && !output.stderr.contains("wrong-secret"), "{}", output.stderr);
    }
    let suspicious = with_urls(fixture.cluster.imgsync(&fixture.config)).arg("run").run().await.assert_code(3);
    assert!(suspicious.stderr.contains("`cluster: {ca: FILE}`"), "{}", suspicious.stderr);

    // Redis replays its log without a login: nothing is lost when it starts again.
    tokio::task::block_in_place(|| {
        fixture.cluster.store.kill();
        fixture.cluster.store.restart();
    });
    let batches =
        with_urls(fixture.cluster.imgsync(trusting)).args(["batch", "list", "--json"]).run().await.assert_code(0);
    assert_eq!(batches.stdout.lines().count(), 1, "{}", batches.stdout);
}
