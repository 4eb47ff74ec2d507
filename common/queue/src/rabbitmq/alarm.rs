//! Broker alarms: low on memory or disk, the broker blocks connections that publish, from their first message on.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::{Connection, Event};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::task::AbortOnDropHandle;

use imgsync_oci::sanitize::sanitize;
use imgsync_store::outage::{HealthEvent, OutageKind, ServerHealth};
use imgsync_store::{BROKER_ALARM_HINT, BrokerAlarm, WorkerRegistry};

/// How often a lasting alarm is reported to the worker registry, and how long a report is valid.
const ALARM_REPORT_INTERVAL: Duration = Duration::from_secs(5);
const ALARM_TTL: Duration = Duration::from_secs(20);

/// Records the alarms of a publishing connection for as long as the handle exists.
pub(super) fn watch_connection(connection: &Connection, health: &ServerHealth) -> AbortOnDropHandle<()> {
    // A new connection learns of a lasting alarm at its first message.
    health.record_recovery(OutageKind::Blocked);
    let (mut events, health) = (connection.events_listener(), health.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => {
                    health.record_failure(OutageKind::Blocked, &reason, Some(BROKER_ALARM_HINT));
                }
                Event::ConnectionUnblocked | Event::Error(_) => health.record_recovery(OutageKind::Blocked),
                _ => {}
            }
        }
        health.record_recovery(OutageKind::Blocked);
    }))
}

/// Reports alarms to the worker registry while they last, for processes that only read the store.
pub(super) async fn report_alarms(
    worker_registry: Arc<dyn WorkerRegistry>,
    mut events: broadcast::Receiver<HealthEvent>,
) {
    let mut alarm: Option<BrokerAlarm> = None;
    loop {
        let event = match &alarm {
            None => events.recv().await,
            Some(alarm) => {
                // Users of the store report its outages, and it drops the alarm by itself.
                let _ = worker_registry.set_broker_alarm(Some(alarm.clone()), ALARM_TTL).await;
                match tokio::time::timeout(ALARM_REPORT_INTERVAL, events.recv()).await {
                    Ok(event) => event,
                    Err(_) => continue,
                }
            }
        };
        match event {
            Ok(HealthEvent::Began(outage)) if outage.kind == OutageKind::Blocked => {
                let reason = sanitize(&outage.reason).into_owned();
                alarm = Some(BrokerAlarm { reason, since: outage.since });
            }
            Ok(HealthEvent::Ended(outage, _)) if outage.kind == OutageKind::Blocked => {
                alarm = None;
                let _ = worker_registry.set_broker_alarm(None, ALARM_TTL).await;
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
