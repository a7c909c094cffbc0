//! Tells events to the observer and the event log.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::control::JobStatus;

use crate::clock;
use crate::event::{Event, EventLog, Observer};

pub(super) struct Teller<'a> {
    observer: &'a mut dyn Observer,
    log: Option<EventLog>,
    /// Warnings told already: each process of each start finds the same things.
    warned: BTreeSet<String>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer, log: Option<EventLog>) -> Self {
        Self {
            observer,
            log,
            warned: BTreeSet::new(),
        }
    }

    pub(super) fn tell(&mut self, event: &Event) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(clock::now(), event)
        {
            self.log = None;
            self.observer.event(&Event::Warning {
                text: format!("the event log can't be written, no more events go there: {error}"),
            });
        }
        self.observer.event(event);
    }

    /// Tells a warning, the first time.
    pub(super) fn warn(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            self.tell(&Event::Warning { text });
        }
    }

    pub(super) fn tick_every(&self) -> Option<Duration> {
        self.observer.tick_every()
    }

    pub(super) fn tick(&mut self, status: &JobStatus) {
        self.observer.tick(status);
    }
}
