//! Whether what a run was made of still lies where it was, once it was read.
//!
//! A file that the run has yet to read and that has changed ends it, with a checkpoint: its reader tells. One that it
//! holds in memory, or needs no more, does not: the adapter is made of what was read, whose hashes the lock has, and comes
//! out as it would have. But nobody could make it again, so it is told, and the run's record says it.

use std::collections::BTreeSet;

use super::inputs::{self, Inputs, Stamp};
use super::open::Opened;
use crate::train::event::{Event, Observer};

/// Looks at the inputs at every checkpoint, and hands all events on. One that was told to have changed is looked at again when
/// the run ends, and not before: reading it takes the time of the thread that trains, and it may go on changing.
pub(super) struct Watch<'a> {
    inputs: &'a Inputs,
    opened: &'a Opened,
    /// What each file was when it was looked at last; `None` where it was gone.
    stamps: Vec<Option<Stamp>>,
    /// Names of the hashes that were told to be of other files.
    changed: BTreeSet<String>,
    observer: &'a mut dyn Observer,
}

impl<'a> Watch<'a> {
    pub(super) fn new(inputs: &'a Inputs, opened: &'a Opened, observer: &'a mut dyn Observer) -> Self {
        let stamps = inputs.files().iter().map(|file| Some(file.stamp)).collect();
        Self { inputs, opened, stamps, changed: BTreeSet::new(), observer }
    }

    /// Looks at every file that was not told to have changed.
    fn look_on(&mut self) {
        self.look_at(|name, changed| !changed.contains(name));
    }

    /// Looks at every file, at the end of the run.
    pub(super) fn look(&mut self) {
        self.look_at(|_, _| true);
    }

    /// One is read again only when it is not, at sight, what it was when it was looked at last.
    fn look_at(&mut self, is_wanted: impl Fn(&str, &BTreeSet<String>) -> bool) {
        let mut moved = BTreeSet::new();
        for (file, known) in self.inputs.files().iter().zip(&mut self.stamps) {
            if !is_wanted(&file.hash, &self.changed) {
                continue;
            }
            let stamp = Stamp::of(&file.path).ok();
            if stamp != *known {
                *known = stamp;
                moved.insert(file.hash.as_str());
            }
        }
        for name in moved {
            match (self.inputs.is_other_now(name, self.opened), self.changed.contains(name)) {
                (true, false) => {
                    let what = self.what(name);
                    let text = format!(
                        "{what} changed on disk while the run was under way; the run goes on with what it has read, which is \
                         what recipe.lock names"
                    );
                    self.changed.insert(name.to_owned());
                    self.observer.observe(&Event::InputChanged(what));
                    self.observer.observe(&Event::Warning(text));
                }
                (false, true) => {
                    self.changed.remove(name);
                    let text = format!("{} is again what the run has read", self.what(name));
                    self.observer.observe(&Event::Note(text));
                }
                (true, true) | (false, false) => {}
            }
        }
    }

    fn what(&self, name: &str) -> String {
        let datasets: Vec<String> =
            self.opened.recipe.datasets.iter().map(|dataset| dataset.path.clone()).collect();
        inputs::what(name, &datasets)
    }
}

impl Observer for Watch<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        self.observer.observe(event);
        if matches!(event, Event::Checkpoint { .. }) {
            self.look_on();
        }
    }
}
