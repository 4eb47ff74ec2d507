//! Failures of the broker, and how programs handle them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant};

use imgsync_oci::error::{Error, ErrorKind};
use imgsync_queue::{RabbitQueue, RabbitSettings, RouteFilter, TaskQueue as _};
use imgsync_tests::RabbitMq;
use imgsync_tests::servers::free_port;
use imgsync_tests::tcp_proxy::TcpProxy;
use imgsync_tests::tls::Authority;
use tokio_util::sync::CancellationToken;

use crate::queue::{connect, index, is_silent, only, publish, route_messages, settings, take, until, worker_registry};
use crate::store_contract::secret;

/// Consumes all messages until stopped, and returns them.
async fn take_all(queue: RabbitQueue, stop: CancellationToken) -> Vec<(String, u32)> {
    let mut done = Vec::new();
    loop {
        match queue.receive(&RouteFilter::All, &stop).await {
            Ok(Some(delivery)) => {
                // About as long as a small task.
                tokio::time::sleep(Duration::from_millis(5)).await;
                let what = (delivery.route.to_string(), index(&delivery.message));
                delivery.acknowledge().await.unwrap();
                done.push(what);
            }
            Ok(None) => return done,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing_that_it_confirmed() {
    let mut broker = RabbitMq::start();
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let (first, second) = (route_messages("gcr.io", 500), route_messages("quay.io", 100));
    publish(&queue, &first).await;
    let held = take(&queue, &RouteFilter::All).await;
    let stop = CancellationToken::new();
    let takers: Vec<_> = (0..4).map(|_| tokio::spawn(take_all(queue.clone(), stop.clone()))).collect();
    let routes = [first[0].0.clone(), second[0].0.clone()];
    until("some are taken", async || queue.count_ready(&routes).await.unwrap()[0] < 490).await;

    tokio::task::block_in_place(|| {
        broker.sync_metadata();
        broker.kill();
    });
    let began = Instant::now();
    let error = queue.publish(&second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(began.elapsed() < settings().confirm_timeout / 2, "it waits for no confirm: {:?}", began.elapsed());
    // Too late: it is delivered again.
    let again = index(&held.message);
    held.acknowledge().await.unwrap();

    tokio::task::block_in_place(|| broker.restart());
    publish(&queue, &second).await;
    until("all are taken", async || queue.count_ready(&routes).await.is_ok_and(|waiting| waiting == [0, 0])).await;
    // The same without a restart: the broker closes all connections.
    let third = route_messages("mcr.example", 50);
    publish(&queue, &third).await;
    tokio::task::block_in_place(|| broker.ctl(&["close_all_connections", "bye"]));
    let fourth = route_messages("ghcr.example", 50);
    publish(&queue, &fourth).await;
    let routes = [third[0].0.clone(), fourth[0].0.clone()];
    until("these, too", async || queue.count_ready(&routes).await.is_ok_and(|waiting| waiting == [0, 0])).await;
    assert!(queue.is_alive().await);

    stop.cancel();
    let mut done = BTreeSet::new();
    for taker in takers {
        done.extend(taker.await.unwrap());
    }
    // What a stopped consumer held is acknowledged.
    assert_eq!(done.len(), 700);
    assert!(done.contains(&(first[0].0.to_string(), again)));
    assert!(is_silent(&queue, &RouteFilter::All).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_cannot_be_heard_is_given_up_and_found_again() {
    let broker = RabbitMq::shared();
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", broker.port())).await;
    let url = format!("{}?heartbeat=2", broker.url_through(&relay.host()));
    let queue = connect(&url, settings()).await.unwrap();
    let block = route_messages("gcr.io", 2);
    publish(&queue, &block).await;
    let held = take(&queue, &RouteFilter::All).await;
    assert!(queue.is_alive().await);

    relay.freeze(true);
    let error = queue.publish(&block[..1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let error = queue.receive(&RouteFilter::All, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!queue.is_alive().await);
    // Stopping does not wait for the broker.
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let began = Instant::now();
    assert!(queue.receive(&RouteFilter::All, &cancelled).await.map_or(true, |taken| taken.is_none()));
    assert!(began.elapsed() < settings().confirm_timeout / 2, "{:?}", began.elapsed());

    relay.cut_all();
    relay.freeze(false);
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let delivery = take(&queue, &RouteFilter::All).await;
        seen.insert(index(&delivery.message));
        delivery.acknowledge().await.unwrap();
    }
    held.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_not_acknowledged_in_time_is_delivered_again() {
    let broker = RabbitMq::start_with("consumer_timeout = 2000\n");
    tokio::task::block_in_place(|| broker.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]));
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let (slow, other) = (route_messages("slow.example", 1), route_messages("other.example", 2));
    publish(&queue, &slow).await;
    publish(&queue, &other).await;
    let held = take(&queue, &only(&slow)).await;
    let again = take(&queue, &only(&slow)).await;
    assert!(again.redelivered);
    assert!(broker.log().contains("timed out"), "the broker has ended the channel");
    held.acknowledge().await.unwrap();
    again.acknowledge().await.unwrap();
    assert!(is_silent(&queue, &only(&slow)).await);
    for _ in 0..2 {
        let delivery = take(&queue, &only(&other)).await;
        assert!(!delivery.redelivered);
        delivery.acknowledge().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_short_of_memory_takes_no_messages_and_goes_on_giving() {
    let broker = RabbitMq::start();
    let retrying = connect(&broker.url(), settings()).await.unwrap();
    let short = RabbitSettings { confirm_timeout: Duration::from_secs(2), ..settings() };
    let queue = RabbitQueue::connect(&[secret(&broker.url())], worker_registry().await, short).await.unwrap();
    let (before, later) = (route_messages("gcr.io", 3), route_messages("quay.io", 3));
    publish(&queue, &before).await;
    let held = take(&queue, &RouteFilter::All).await;
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]));
    until("the alarm is on", async || broker.log().contains("resource limit alarm set")).await;

    let error = queue.publish(&later).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("low on memory"), "{error}");
    assert!(error.hint().unwrap().contains("rabbitmq-diagnostics"), "{error}");
    let waits = tokio::spawn({
        let (retrying, later) = (retrying.clone(), later.clone());
        async move { retrying.publish(&later).await }
    });
    let began = Instant::now();
    held.acknowledge().await.unwrap();
    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
    assert!(began.elapsed() < settings().confirm_timeout, "no confirm is waited for: {:?}", began.elapsed());
    until("they arrive", async || queue.count_ready(&[before[0].0.clone()]).await.unwrap() == [1]).await;
    // A message that cannot be moved elsewhere returns by itself.
    let kept = take(&queue, &RouteFilter::All).await;
    assert_eq!(kept.requeue().await.unwrap_err().kind(), ErrorKind::Unreachable);
    let kept = take(&queue, &RouteFilter::All).await;
    assert!(kept.redelivered);
    assert!(!waits.is_finished());

    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "0.8"]));
    let published = tokio::time::timeout(Duration::from_secs(30), waits).await.expect("it goes on").unwrap().unwrap();
    assert!(published.rejected.is_empty());
    kept.requeue().await.unwrap();
}

/// Returns the full text of an error.
fn shown(error: &Error) -> String {
    let text = format!("{error} {error:?} {}", error.hint().unwrap_or_default());
    assert!(!text.contains("hunter2"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_way_to_the_broker_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let identity = authority.server(&["localhost"]);
    let at = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let tls = free_port();
    let broker = RabbitMq::start_with(&format!(
        "listeners.ssl.1 = 0.0.0.0:{tls}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.cacertfile = {}\nssl_options.verify = verify_none\n",
        at("cert.pem", &identity.certificate_pem),
        at("key.pem", &identity.key_pem),
        at("ca.pem", authority.pem()),
    ));
    tokio::task::block_in_place(|| {
        broker.ctl(&["add_user", "limited", "hunter2"]);
        broker.ctl(&["set_permissions", "limited", "^$", "^$", "^$"]);
    });
    let plain = broker.port();
    let fails = async |url: String, ca: Option<String>| {
        let error = connect(&url, RabbitSettings { ca, ..settings() }).await.unwrap_err();
        assert!(shown(&error).contains("127.0.0.") || shown(&error).contains("localhost"), "{error}");
        error
    };

    let error = fails(format!("amqp://guest:hunter2@127.0.0.1:{}/", free_port()), None).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(shown(&error).contains("RabbitMQ is running"), "{error:?}");
    let error = fails(format!("amqp://guest:hunter2@127.0.0.1:{plain}/%2f"), None).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(shown(&error).contains("password"), "{error:?}");
    let error = fails(format!("amqp://guest:guest@127.0.0.1:{plain}/nowhere"), None).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(shown(&error).contains("virtual host"), "{error:?}");
    let error = fails(format!("amqp://limited:hunter2@127.0.0.1:{plain}/%2f"), None).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(shown(&error).contains("configure"), "{error:?}");

    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        if let Ok((mut stream, _)) = other.accept() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error = fails(format!("amqp://guest:hunter2@127.0.0.1:{port}/"), None).await;
    assert!(shown(&error).contains("port"), "{error:?}");

    let error = fails(format!("amqps://guest:guest@localhost:{tls}/%2f"), None).await;
    assert_eq!(error.kind(), ErrorKind::Insecure, "{error}");
    assert!(shown(&error).contains("ca: FILE"), "{error:?}");
    let ca = Some(authority.pem().to_owned());
    let error = fails(format!("amqps://guest:guest@127.0.0.2:{tls}/%2f"), ca.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Insecure, "another name than the certificate's: {error}");
    for wrong in
        [format!("amqps://guest:guest@localhost:{plain}/%2f"), format!("amqp://guest:guest@localhost:{tls}/%2f")]
    {
        assert!(shown(&fails(wrong, ca.clone()).await).contains("port"));
    }
    let custom = RabbitSettings { ca, ..settings() };
    let queue = connect(&format!("amqps://guest:guest@localhost:{tls}/%2f"), custom).await.unwrap();
    assert!(!format!("{queue:?}").contains("guest:guest"), "{queue:?}");
    let block = route_messages("gcr.io", 1);
    publish(&queue, &block).await;
    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_named_and_stops_its_route_alone() {
    let broker = RabbitMq::shared();
    let worker_registry = worker_registry().await;
    let (theirs, ours) = (route_messages("theirs.example", 1), route_messages("ours.example", 2));
    let other = RabbitSettings { max_route_messages: 7, ..settings() };
    let other = RabbitQueue::connect(&[secret(&broker.url())], worker_registry.clone(), other).await.unwrap();
    publish(&other, &theirs).await;
    let queue = RabbitQueue::connect(&[secret(&broker.url())], worker_registry, settings()).await.unwrap();
    publish(&queue, &ours).await;

    let never = CancellationToken::new();
    let error = queue.receive(&only(&theirs), &never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = queue.publish(&theirs).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains(&format!("w.{}", theirs[0].0)), "{error}");
    assert!(error.hint().unwrap().contains("delete it"), "{error:?}");
    let held = take(&queue, &RouteFilter::All).await;
    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
    held.acknowledge().await.unwrap();
    assert!(is_silent(&queue, &only(&ours)).await, "what was held was not delivered again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_does_not_answer_holds_up_no_other_and_is_asked_again() {
    let broker = RabbitMq::shared();
    const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
    let custom = RabbitSettings { confirm_timeout: CONFIRM_TIMEOUT, ..settings() };
    let queue = connect(&broker.url(), custom).await.unwrap();
    let (dumb, other) = (route_messages("dumb.example", 2), route_messages("other.example", 20));
    publish(&queue, &dumb[..1]).await;
    publish(&queue, &other).await;
    let name = format!("w.{}", dumb[0].0);
    tokio::task::block_in_place(|| broker.suspend(&name, true));

    let error = queue.publish(&dumb[1..]).await.unwrap_err();
    assert!(error.to_string().contains(&name), "{error}");
    assert!(error.hint().unwrap().contains("quorum_status"), "{error:?}");
    // At most one response is waited for once.
    let began = Instant::now();
    for _ in 0..20 {
        let delivery = take(&queue, &RouteFilter::All).await;
        assert_eq!(delivery.route, other[0].0);
        delivery.acknowledge().await.unwrap();
    }
    assert!(began.elapsed() < 20 * CONFIRM_TIMEOUT, "{:?}", began.elapsed());
    assert!(queue.is_alive().await);

    tokio::task::block_in_place(|| broker.suspend(&name, false));
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let delivery = take(&queue, &RouteFilter::All).await;
        seen.insert(index(&delivery.message));
        delivery.acknowledge().await.unwrap();
    }
}
