//! Exchanges and queues, and their arguments, which never change.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::RabbitSettings;
use imgsync_model::batch::Route;
use imgsync_oci::Digest;

/// Exchange for all task messages; the routing key is the queue of the route.
pub(super) const WORK_EXCHANGE: &str = "sync.work";
/// Exchange and queue of dead letters.
pub(super) const DEAD_LETTER_QUEUE: &str = "sync.dead";
/// Queue of refused messages, for manual inspection.
pub(super) const REFUSED_QUEUE: &str = "sync.refused";

/// Deliveries without an acknowledgement before the broker dead-letters a message.
const DELIVERY_LIMIT: i32 = 20;
/// Maximum number of messages in each delay queue.
const MAX_DELAYED_MESSAGES: i32 = 1_000_000;
/// Maximum number of dead letters that wait for a coordinator.
const MAX_DEAD_LETTERS: i32 = 100_000;
/// Maximum number of refused messages that are kept.
pub(crate) const MAX_REFUSED_MESSAGES: i32 = 10_000;
/// Maximum size of all of them in bytes: 256 of the largest messages.
pub(crate) const MAX_REFUSED_BYTES: i32 = 64 << 20;
/// Brokers accept names of up to 255 bytes.
const MAX_QUEUE_NAME_BYTES: usize = 200;

/// Returns the name of a route's queue, or of the one beside it for high priority.
pub(super) fn queue_name(route: &Route, is_urgent: bool) -> String {
    let (beginning, name) = (if is_urgent { "w.!" } else { "w." }, route.to_string());
    match beginning.len() + name.len() <= MAX_QUEUE_NAME_BYTES {
        true => format!("{beginning}{name}"),
        false => format!("{beginning}{}", &Digest::sha256(format!("w.{name}").as_bytes()).hex()[..40]),
    }
}

/// Returns whether a queue belongs to a route.
pub(super) fn is_route_queue(queue: &str) -> bool {
    queue.starts_with("w.")
}

/// Returns the name of the queue for a delay: `sync.retry.10s`, `sync.retry.5m`.
pub(super) fn retry_queue_name(wait: Duration) -> String {
    match (wait.as_millis(), wait.as_secs()) {
        (millis, _) if millis % 1000 != 0 => format!("sync.retry.{millis}ms"),
        (_, seconds) if seconds >= 300 && seconds.is_multiple_of(60) => format!("sync.retry.{}m", seconds / 60),
        (_, seconds) => format!("sync.retry.{seconds}s"),
    }
}

fn quorum_arguments(more: &[(&str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long_string("quorum"));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

fn long_string(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Returns the queues that belong to no route.
pub(super) fn static_queues(settings: &RabbitSettings) -> Vec<String> {
    let retries = settings.retry_delays.map(retry_queue_name);
    [DEAD_LETTER_QUEUE.to_owned(), REFUSED_QUEUE.to_owned()].into_iter().chain(retries).collect()
}

/// Declares everything that belongs to no route.
pub(super) async fn declare_static(channel: &Channel, settings: &RabbitSettings) -> lapin::Result<()> {
    let exchange = |name: &str, kind| {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default())
    };
    exchange(WORK_EXCHANGE, ExchangeKind::Direct).await?;
    exchange(DEAD_LETTER_QUEUE, ExchangeKind::Fanout).await?;
    // When full, it rejects dead letters, which stay where they are.
    let dead = [("x-max-length", AMQPValue::LongInt(MAX_DEAD_LETTERS)), ("x-overflow", long_string("reject-publish"))];
    declare_queue(channel, DEAD_LETTER_QUEUE, quorum_arguments(&dead)).await?;
    bind(channel, DEAD_LETTER_QUEUE, DEAD_LETTER_QUEUE, "").await?;
    let kept = [
        ("x-max-length", AMQPValue::LongInt(MAX_REFUSED_MESSAGES)),
        ("x-max-length-bytes", AMQPValue::LongInt(MAX_REFUSED_BYTES)),
        ("x-overflow", long_string("drop-head")),
    ];
    declare_queue(channel, REFUSED_QUEUE, quorum_arguments(&kept)).await?;
    for wait in settings.retry_delays {
        let name = retry_queue_name(wait);
        exchange(&name, ExchangeKind::Fanout).await?;
        let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let arguments = quorum_arguments(&[
            ("x-message-ttl", AMQPValue::LongInt(millis)),
            ("x-dead-letter-exchange", long_string(WORK_EXCHANGE)),
            ("x-dead-letter-strategy", long_string("at-least-once")),
            ("x-overflow", long_string("reject-publish")),
            ("x-max-length", AMQPValue::LongInt(MAX_DELAYED_MESSAGES)),
        ]);
        declare_queue(channel, &name, arguments).await?;
        bind(channel, &name, &name, "").await?;
    }
    Ok(())
}

/// Declares a route's queue.
pub(super) async fn declare_route_queue(channel: &Channel, name: &str, settings: &RabbitSettings) -> lapin::Result<()> {
    let length = i32::try_from(settings.max_route_messages).unwrap_or(i32::MAX);
    let arguments = quorum_arguments(&[
        ("x-delivery-limit", AMQPValue::LongInt(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", long_string(DEAD_LETTER_QUEUE)),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        ("x-overflow", long_string("reject-publish")),
        ("x-max-length", AMQPValue::LongInt(length)),
    ]);
    declare_queue(channel, name, arguments).await?;
    bind(channel, name, WORK_EXCHANGE, name).await
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> lapin::Result<()> {
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.map(drop)
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RETRY_DELAYS;

    #[test]
    fn queues_are_named_by_their_routes_and_delays() {
        let route = Route::anonymous("gcr.io".parse().unwrap(), "docker.io".parse().unwrap());
        assert_eq!(queue_name(&route, false), "w.gcr.io>docker.io");
        assert_eq!(queue_name(&route, true), "w.!gcr.io>docker.io");
        let long = Route { source_credential: Some("x".repeat(300).into()), ..route };
        assert_eq!((queue_name(&long, false).len(), queue_name(&long, true).len()), (42, 43));
        let names = RETRY_DELAYS.map(retry_queue_name);
        assert_eq!(names, ["sync.retry.10s", "sync.retry.60s", "sync.retry.5m", "sync.retry.30m"]);
        assert_eq!(retry_queue_name(Duration::from_millis(300)), "sync.retry.300ms");
    }
}
