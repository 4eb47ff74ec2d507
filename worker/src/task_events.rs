//! Observers of tasks and of the transfers that they cause.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use imgsync_model::event::TaskEvent;
use imgsync_registry::event::{Event, Events, Observer};

/// Receives the events of tasks, besides those of requests and transfers.
pub trait TaskObserver: Observer {
    /// Handles an event of a task. Must not block.
    fn on_task(&self, event: &TaskEvent);
}

/// Sends events of tasks to an observer. Dereferences to the [`Events`] of requests and transfers.
#[derive(Clone)]
pub struct TaskEvents {
    observer: Arc<dyn TaskObserver>,
    events: Events,
}

struct TaskFanOut(Vec<Arc<dyn TaskObserver>>);

impl Observer for TaskFanOut {
    fn on_event(&self, event: &Event) {
        for observer in &self.0 {
            observer.on_event(event);
        }
    }
}

impl TaskObserver for TaskFanOut {
    fn on_task(&self, event: &TaskEvent) {
        for observer in &self.0 {
            observer.on_task(event);
        }
    }
}

impl TaskEvents {
    /// Creates a sender for one observer.
    pub fn new(observer: Arc<dyn TaskObserver>) -> TaskEvents {
        TaskEvents { events: Events::new(observer.clone()), observer }
    }

    /// Creates a sender for several observers, called in order.
    pub fn fan_out(observers: Vec<Arc<dyn TaskObserver>>) -> TaskEvents {
        TaskEvents::new(Arc::new(TaskFanOut(observers)))
    }

    /// Sends an event of a task.
    pub fn emit_task(&self, event: TaskEvent) {
        self.observer.on_task(&event);
    }

    /// Returns the sender for requests and transfers.
    pub fn transfers(&self) -> &Events {
        &self.events
    }
}

impl Deref for TaskEvents {
    type Target = Events;

    fn deref(&self) -> &Events {
        &self.events
    }
}

impl fmt::Debug for TaskEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskEvents")
    }
}
