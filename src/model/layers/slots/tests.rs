//! The slots, with a device that is not there: it copies on a stream of its own, computes behind the host, delays both at
//! random, and fails now and then.

use std::collections::VecDeque;

use super::*;
use crate::model::Error;
use crate::model::fetch::pass_seconds;

/// A device with a stream of copies and a stream of work. Time is a counter; the host moves on by waiting.
struct FakeDevice {
    now: u64,
    random: u64,
    /// Ends of what the streams have to do.
    copies_end: u64,
    work_ends: u64,
    /// One failure in so many fetches; 0: none.
    fails: u64,
    pending: VecDeque<(usize, usize, u64, bool)>,
    /// The layer whose bytes each slot holds, and from when to when they are written.
    memory: Vec<Option<(usize, u64)>>,
    /// Until when launched work reads each slot.
    read_until: Vec<u64>,
    begun: Vec<usize>,
}

#[derive(Debug, PartialEq)]
struct Copied {
    slot: usize,
    layer: usize,
}

impl FakeDevice {
    fn new(slots: usize, seed: u64, fails: u64) -> Self {
        Self {
            now: 0,
            random: seed | 1,
            copies_end: 0,
            work_ends: 0,
            fails,
            pending: VecDeque::new(),
            memory: vec![None; slots],
            read_until: vec![0; slots],
            begun: Vec::new(),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Launches work that reads a slot: it begins behind earlier work, after the copy that filled the slot.
    fn compute(&mut self, copied: &Copied) {
        let (layer, written) = self.memory[copied.slot].expect("a slot that was filled");
        assert_eq!(layer, copied.layer, "the slot holds another layer's bytes");
        let begins = self.work_ends.max(written).max(self.now);
        self.work_ends = begins + self.random(20);
        self.read_until[copied.slot] = self.work_ends;
    }
}

impl Carrier for FakeDevice {
    type Cargo = Copied;

    fn begin(&mut self, slot: usize, layer: usize, old: Option<Copied>) {
        if let Some(old) = old {
            assert_eq!(old.slot, slot);
        }
        if slot == self.memory.len() {
            self.memory.push(None);
            self.read_until.push(0);
        }
        // As an event that the stream of copies waits for: the work that reads the slot.
        let begins = self.copies_end.max(self.now).max(self.read_until[slot]);
        let ends = begins + self.random(20);
        let is_lost = self.fails > 0 && self.random(self.fails) == 0;
        self.copies_end = ends;
        assert!(begins >= self.read_until[slot], "a slot is overwritten while work reads it");
        self.memory[slot] = (!is_lost).then_some((layer, ends));
        self.pending.push_back((slot, layer, ends, is_lost));
        self.begun.push(layer);
    }

    fn next(&mut self) -> (usize, Result<Copied, Error>) {
        let at = self.random(self.pending.len() as u64) as usize;
        let (slot, layer, ends, is_lost) = self.pending.remove(at).expect("something was begun");
        self.now = self.now.max(ends);
        (slot, if is_lost { Err(Error::EmptyBatch) } else { Ok(Copied { slot, layer }) })
    }
}

/// Walks some layers; returns how many fetches failed on the way.
fn walk(slots: &mut Slots<FakeDevice>, order: &[usize]) -> usize {
    let mut failures = 0;
    slots.want(order.iter().copied());
    for &layer in order {
        let place = loop {
            match slots.lend(layer) {
                Ok((place, copied)) => {
                    assert_eq!(copied.layer, layer);
                    break place;
                }
                Err(_) => failures += 1,
            }
        };
        let copied = Copied { slot: place, layer };
        slots.carrier.compute(&copied);
        slots.give_back(place);
    }
    failures
}

#[test]
fn every_layer_is_read_as_it_was_copied_under_any_delays() {
    for seed in 1..200 {
        for count in 1..5 {
            let mut slots = Slots::new(FakeDevice::new(count, seed * 7919, 0), count);
            let (up, down): (Vec<usize>, Vec<usize>) = ((0..9).collect(), (0..9).rev().collect());
            for order in [&up, &down, &up, &up, &down] {
                assert_eq!(walk(&mut slots, order), 0);
            }
            assert_eq!(slots.slots.len(), count, "one walk at a time needs no further slot");
        }
    }
}

#[test]
fn the_top_layers_are_still_there_on_the_way_down() {
    for count in 1..5 {
        let mut slots = Slots::new(FakeDevice::new(count, 11, 0), count);
        let (up, down): (Vec<usize>, Vec<usize>) = ((0..9).collect(), (0..9).rev().collect());
        for step in 0..3 {
            walk(&mut slots, &up);
            walk(&mut slots, &down);
            let first = 9 + 9 - count;
            assert_eq!(slots.carrier.begun.len(), first + step * 2 * (9 - count), "{count} slots");
        }
    }
}

#[test]
fn a_layer_comes_while_the_one_before_it_is_in_use() {
    let mut slots = Slots::new(FakeDevice::new(2, 5, 0), 2);
    slots.want(0..4);
    let (place, _) = slots.lend(0).unwrap();
    assert_eq!(slots.carrier.begun, [0, 1]);
    slots.give_back(place);
    assert_eq!(slots.carrier.begun, [0, 1, 2]);
    let (place, _) = slots.lend(1).unwrap();
    slots.give_back(place);
    assert_eq!(slots.carrier.begun, [0, 1, 2, 3]);
}

#[test]
fn a_fetch_that_fails_is_told_once_and_tried_again() {
    for seed in 1..200 {
        let mut slots = Slots::new(FakeDevice::new(3, seed * 104_729, 4), 3);
        let (up, down): (Vec<usize>, Vec<usize>) = ((0..9).collect(), (0..9).rev().collect());
        let failures = walk(&mut slots, &up) + walk(&mut slots, &down);
        let failed = slots.carrier.begun.len() + 3 - 18;
        assert!(failures <= failed, "{failures} told of {failed}");
    }
}

#[test]
fn a_walk_that_ends_early_and_walks_at_one_time_leave_no_slot_behind() {
    let mut slots = Slots::new(FakeDevice::new(2, 3, 0), 2);
    slots.want(0..9);
    let (first, _) = slots.lend(0).unwrap();
    let (second, _) = slots.lend(1).unwrap();
    // Both are in use: a third gets room of its own.
    let (third, copied) = slots.lend(7).unwrap_or_else(|_| panic!("no failures here"));
    assert_eq!(copied.layer, 7);
    for place in [first, second, third] {
        slots.give_back(place);
    }
    walk(&mut slots, &[3, 1, 2]);
}

/// A device whose copies and layers take as long as they take, in microseconds. The host waits for a copy before it launches
/// what needs it, and for nothing else.
struct TimedDevice {
    copy: u64,
    host: u64,
    copies_end: u64,
    work_ends: u64,
    read_until: Vec<u64>,
    pending: VecDeque<(usize, u64)>,
}

impl Carrier for TimedDevice {
    type Cargo = ();

    fn begin(&mut self, slot: usize, _layer: usize, _old: Option<()>) {
        // Behind the copies before it, and behind the work that reads what lies there.
        self.copies_end = self.copies_end.max(self.host).max(self.read_until[slot]) + self.copy;
        self.pending.push_back((slot, self.copies_end));
    }

    fn next(&mut self) -> (usize, Result<(), Error>) {
        let (slot, ends) = self.pending.pop_front().expect("something was begun");
        self.host = self.host.max(ends);
        (slot, Ok(()))
    }
}

impl TimedDevice {
    /// One pass; each layer is computed with for so long.
    fn walk(slots: &mut Slots<Self>, order: &[usize], work: u64) {
        slots.want(order.iter().copied());
        for &layer in order {
            let Ok((place, ())) = slots.lend(layer) else { panic!("nothing fails here") };
            let device = slots.carrier();
            device.work_ends = device.work_ends.max(device.host) + work;
            device.read_until[place] = device.work_ends;
            slots.give_back(place);
        }
    }
}

/// What `tune plan` says of fetched layers, against layers that are fetched: copies from a tenth to five times as long as a
/// layer's forward pass, whose backward pass takes as long or twice as long.
#[test]
fn passes_take_as_long_as_the_plan_says() {
    const LAYERS: usize = 80;
    const FORWARD: u64 = 1000;
    let (up, down): (Vec<usize>, Vec<usize>) = ((0..LAYERS).collect(), (0..LAYERS).rev().collect());
    for count in [2, 3] {
        for backward in [FORWARD, 2 * FORWARD] {
            for copy in [100, 500, 900, 1100, 1500, 1900, 2500, 5000] {
                let device = TimedDevice {
                    copy,
                    host: 0,
                    copies_end: 0,
                    work_ends: 0,
                    read_until: vec![0; count],
                    pending: VecDeque::new(),
                };
                let mut slots = Slots::new(device, count);
                let mut began = 0;
                for step in 0..6 {
                    TimedDevice::walk(&mut slots, &up, FORWARD);
                    TimedDevice::walk(&mut slots, &down, backward);
                    if step == 0 {
                        began = slots.carrier().work_ends;
                    }
                }
                let found = (slots.carrier().work_ends - began) as f64 / 5.0;
                let copying = (LAYERS - count) as f64 * copy as f64;
                let computing = [FORWARD, backward].map(|each| (LAYERS as u64 * each) as f64);
                let planned = pass_seconds(copying, computing);
                let off = found / planned - 1.0;
                assert!(
                    (-0.01..0.03).contains(&off),
                    "{count} slots, copies of {copy}, {backward} back: {off:+.3}"
                );
            }
        }
    }
}
