//! Layers fetched ahead of their use: a few slots, each with a layer that is coming, waiting or in use.
//!
//! ```text
//!   ┌─────── begin ───────┐         next            lend           give back
//! Free ─────────────▶ Coming(layer) ─────▶ Here, unused ─────▶ Here, in use ─────▶ Here, unused
//!   ▲                     │ fails                │ begin another layer: what lies here is handed over
//!   └── told, once ── Failed(layer)              └─────────────▶ Coming(other)
//! ```
//!
//! A walk says beforehand in which order it wants layers. Whenever a slot is not in use, the next wanted layer that is not
//! here begins to come, in place of one that is wanted later or not at all. So the layers that the way up left are the
//! first of the way down. Knows neither files nor devices: a [`Carrier`] fetches.

use std::collections::VecDeque;

use crate::model::Error;

/// What fetches layers into slots.
pub(in crate::model) trait Carrier {
    /// A layer in its slot.
    type Cargo;

    /// Begins to fetch a layer. `old` lay in the slot before: it may be overwritten once the work launched with it is done.
    fn begin(&mut self, slot: usize, layer: usize, old: Option<Self::Cargo>);

    /// Waits for a fetch to end, of those that were begun: its slot, and the layer or why it did not come.
    fn next(&mut self) -> (usize, Result<Self::Cargo, Error>);
}

/// Slots, and the layers that are wanted next.
#[derive(Debug)]
pub(in crate::model) struct Slots<C: Carrier> {
    carrier: C,
    slots: Vec<Slot<C::Cargo>>,
    wanted: VecDeque<usize>,
}

#[derive(Debug)]
enum Slot<T> {
    Free,
    Coming(usize),
    Here { layer: usize, cargo: T, users: usize },
    Failed(usize, Error),
}

impl<T> Slot<T> {
    fn layer(&self) -> Option<usize> {
        match self {
            Self::Free => None,
            Self::Coming(layer) | Self::Here { layer, .. } | Self::Failed(layer, _) => Some(*layer),
        }
    }

    /// Whether another layer may come here.
    fn is_idle(&self) -> bool {
        matches!(self, Self::Free | Self::Failed(..) | Self::Here { users: 0, .. })
    }
}

impl<C: Carrier> Slots<C> {
    /// Of `count` slots, at least one.
    pub(in crate::model) fn new(carrier: C, count: usize) -> Self {
        Self { carrier, slots: (0..count.max(1)).map(|_| Slot::Free).collect(), wanted: VecDeque::new() }
    }

    /// What fetches them.
    pub(in crate::model) fn carrier(&mut self) -> &mut C {
        &mut self.carrier
    }

    /// Says which layers are wanted next, in this order; what was said before is forgotten.
    pub(in crate::model) fn want(&mut self, layers: impl Iterator<Item = usize>) {
        self.wanted = layers.collect();
        self.begin_ahead();
    }

    /// A layer, once it is here, and its slot, which stays as it is until [`Self::give_back`].
    ///
    /// # Errors
    /// It could not be fetched. It is fetched anew when it is asked for again.
    pub(in crate::model) fn lend(&mut self, layer: usize) -> Result<(usize, &C::Cargo), Error> {
        let place = loop {
            match self.slots.iter().position(|slot| slot.layer() == Some(layer)) {
                Some(place) => match std::mem::replace(&mut self.slots[place], Slot::Free) {
                    Slot::Failed(_, error) => return Err(error),
                    slot @ Slot::Here { .. } => {
                        self.slots[place] = slot;
                        break place;
                    }
                    slot => {
                        self.slots[place] = slot;
                        self.absorb();
                    }
                },
                None => self.begin_now(layer),
            }
        };
        if let Slot::Here { users, .. } = &mut self.slots[place] {
            *users += 1;
        }
        if self.wanted.front() == Some(&layer) {
            self.wanted.pop_front();
        }
        // The next one comes while this one is computed with.
        self.begin_ahead();
        match &self.slots[place] {
            Slot::Here { cargo, .. } => Ok((place, cargo)),
            _ => unreachable!("a slot in use keeps its layer"),
        }
    }

    /// Ends the use of a slot: the work with its layer has been launched.
    pub(in crate::model) fn give_back(&mut self, place: usize) {
        if let Some(Slot::Here { users, .. }) = self.slots.get_mut(place) {
            *users = users.saturating_sub(1);
        }
        self.begin_ahead();
    }

    /// Takes what comes next.
    fn absorb(&mut self) {
        let (place, result) = self.carrier.next();
        let Some(slot) = self.slots.get_mut(place) else { return };
        let Slot::Coming(layer) = *slot else { return };
        *slot = match result {
            Ok(cargo) => Slot::Here { layer, cargo, users: 0 },
            Err(error) => Slot::Failed(layer, error),
        };
    }

    /// Begins to fetch wanted layers, the nearest first, as far as there are slots for them.
    fn begin_ahead(&mut self) {
        for index in 0..self.wanted.len().min(self.slots.len()) {
            let layer = self.wanted[index];
            if self.slots.iter().any(|slot| slot.layer() == Some(layer)) {
                continue;
            }
            // One that is wanted before this layer stays.
            let found = self.idlest().filter(|(_, next_use)| *next_use > index);
            let Some((place, _)) = found else { return };
            self.begin(place, layer);
        }
    }

    /// Begins to fetch a layer that no walk announced.
    fn begin_now(&mut self, layer: usize) {
        match self.idlest() {
            Some((place, _)) => self.begin(place, layer),
            None if self.slots.iter().any(|slot| matches!(slot, Slot::Coming(_))) => self.absorb(),
            // Every slot is in use: two walks at one time.
            None => {
                self.slots.push(Slot::Free);
                self.begin(self.slots.len() - 1, layer);
            }
        }
    }

    fn begin(&mut self, place: usize, layer: usize) {
        let old = match std::mem::replace(&mut self.slots[place], Slot::Coming(layer)) {
            Slot::Here { cargo, .. } => Some(cargo),
            _ => None,
        };
        self.carrier.begin(place, layer, old);
    }

    /// The slot that can best be spared, and when its layer is wanted: `usize::MAX` for never.
    fn idlest(&self) -> Option<(usize, usize)> {
        let next_use = |slot: &Slot<C::Cargo>| match slot {
            Slot::Free => usize::MAX,
            slot => {
                let at = self.wanted.iter().position(|layer| Some(*layer) == slot.layer());
                at.unwrap_or(usize::MAX)
            }
        };
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle());
        // Free ones before those that hold something.
        let rank = |(_, slot): &(usize, &Slot<C::Cargo>)| (next_use(slot), matches!(slot, Slot::Free));
        idle.max_by_key(rank).map(|(place, slot)| (place, next_use(slot)))
    }
}

#[cfg(test)]
mod tests;
