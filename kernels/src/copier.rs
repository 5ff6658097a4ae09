//! Copies from the host to a device through a few pieces of memory that the device reads by itself: while one is on its
//! way, the next is filled. Knows no driver: a [`Link`] sends.
//!
//! ```text
//! free ──fill──▶ full ──send──▶ on its way ──arrived──▶ free
//! ```
//!
//! A copy returns when all of its bytes have arrived, or after an error when none are under way: the memory of the device
//! may then be used or freed. Where even that cannot be known, the memory on both ends is never freed, and the copier
//! refuses further copies. Pieces are filled on rayon's threads, so copies are asked for by other threads.

use rayon::prelude::*;

/// Pieces that take turns.
pub(crate) const PIECES: usize = 2;

/// What one thread fills at a time.
const PART: usize = 1 << 20;

/// The driver of a device.
pub(crate) trait Link {
    /// Memory of the host that the device reads by itself. Dropping frees it.
    type Piece;
    /// Memory of the device that nothing else uses. Dropping frees it.
    type Place;

    /// The bytes of a piece that is not on its way.
    fn bytes<'a>(&self, piece: &'a mut Self::Piece) -> &'a mut [u8];

    /// Begins to copy the first `count` bytes of a piece to a place, from its byte `offset` on.
    fn send(
        &mut self,
        piece: &mut Self::Piece,
        count: usize,
        place: &mut Self::Place,
        offset: usize,
    ) -> Result<(), String>;

    /// Waits until no copy reads this piece.
    fn wait(&mut self, piece: &mut Self::Piece) -> Result<(), String>;

    /// Waits until no copy is under way.
    fn wait_for_all(&mut self) -> Result<(), String>;
}

/// Copies over a link.
pub(crate) struct Copier<L: Link> {
    /// Before the link, which they are of. Without them: why copies may be under way of which nothing is known any more.
    pieces: Result<[L::Piece; PIECES], String>,
    link: L,
}

impl<L: Link> Copier<L> {
    pub(crate) fn new(link: L, pieces: [L::Piece; PIECES]) -> Self {
        Self { pieces: Ok(pieces), link }
    }

    /// Copies `bytes` to the begin of a place that is as large, and hands it back.
    ///
    /// # Errors
    /// What the driver says. The place is gone then.
    pub(crate) fn copy(&mut self, bytes: &[u8], mut place: L::Place) -> Result<L::Place, String> {
        let pieces = self.pieces.as_mut().map_err(|lost| lost.clone())?;
        let sent = send(&mut self.link, pieces, bytes, &mut place);
        // After a failure too: what was sent before it may be under way.
        match (sent, self.link.wait_for_all()) {
            (sent, Ok(())) => sent.map(|()| place),
            (sent, Err(message)) => {
                let message = sent.err().unwrap_or(message);
                std::mem::forget(place);
                std::mem::forget(std::mem::replace(&mut self.pieces, Err(message.clone())));
                Err(message)
            }
        }
    }
}

fn send<L: Link>(
    link: &mut L,
    pieces: &mut [L::Piece],
    mut bytes: &[u8],
    place: &mut L::Place,
) -> Result<(), String> {
    let mut offset = 0;
    for number in (0..pieces.len()).cycle() {
        if bytes.is_empty() {
            break;
        }
        let piece = &mut pieces[number];
        link.wait(piece)?;
        let room = link.bytes(piece);
        let (now, later) = bytes.split_at(room.len().min(bytes.len()));
        let parts = room.par_chunks_mut(PART).zip(now.par_chunks(PART));
        parts.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        link.send(piece, now.len(), place, offset)?;
        offset += now.len();
        bytes = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, VecDeque};
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    const PIECE: usize = 5;

    /// A device that copies whenever it likes, in order, and reads a piece only then.
    #[derive(Default)]
    struct Device {
        /// Numbers that decide what happens next.
        chance: VecDeque<u8>,
        /// A call in so many fails; 0: none.
        failing: u8,
        /// Pieces and places by number; what is freed is gone.
        pieces: BTreeMap<usize, Vec<u8>>,
        places: BTreeMap<usize, Vec<u8>>,
        /// Copies under way: piece, count, place, offset.
        queue: VecDeque<(usize, usize, usize, usize)>,
        failures: usize,
    }

    impl Device {
        fn next(&mut self) -> u8 {
            let next = self.chance.pop_front().unwrap_or(7);
            self.chance.push_back(next.wrapping_mul(5).wrapping_add(3));
            next
        }

        /// Time passes: some copies arrive.
        fn pass(&mut self) {
            for _ in 0..self.next() % 3 {
                self.arrive();
            }
        }

        fn arrive(&mut self) {
            if let Some((piece, count, place, offset)) = self.queue.pop_front() {
                let bytes = self.pieces.get(&piece).expect("a copy reads a piece that was freed");
                let to = self.places.get_mut(&place).expect("a copy writes to memory that was freed");
                to[offset..offset + count].copy_from_slice(&bytes[..count]);
            }
        }

        fn fails(&mut self) -> Result<(), String> {
            self.pass();
            match self.failing > 0 && self.next().is_multiple_of(self.failing) {
                true => {
                    self.failures += 1;
                    Err(format!("failure {}", self.failures))
                }
                false => Ok(()),
            }
        }
    }

    type Shared = Rc<RefCell<Device>>;

    struct FakeLink(Shared);

    struct Piece {
        device: Shared,
        number: usize,
        /// What the device reads when it copies, written back when it is sent.
        bytes: Vec<u8>,
    }

    struct Place(Shared, usize);

    impl Drop for Piece {
        fn drop(&mut self) {
            self.device.borrow_mut().pieces.remove(&self.number);
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.0.borrow_mut().places.remove(&self.1);
        }
    }

    impl Link for FakeLink {
        type Piece = Piece;
        type Place = Place;

        fn bytes<'a>(&self, piece: &'a mut Piece) -> &'a mut [u8] {
            let device = self.0.borrow();
            assert!(
                device.queue.iter().all(|copy| copy.0 != piece.number),
                "a piece on its way is written to"
            );
            &mut piece.bytes
        }

        fn send(
            &mut self,
            piece: &mut Piece,
            count: usize,
            place: &mut Place,
            offset: usize,
        ) -> Result<(), String> {
            let mut device = self.0.borrow_mut();
            let copy = (piece.number, count, place.1, offset);
            device.pieces.insert(piece.number, piece.bytes.clone());
            // A call that fails may have begun the copy all the same.
            match device.fails() {
                Err(message) => {
                    if device.next().is_multiple_of(2) {
                        device.queue.push_back(copy);
                    }
                    Err(message)
                }
                Ok(()) => {
                    device.queue.push_back(copy);
                    Ok(())
                }
            }
        }

        fn wait(&mut self, piece: &mut Piece) -> Result<(), String> {
            let mut device = self.0.borrow_mut();
            device.fails()?;
            while device.queue.iter().any(|copy| copy.0 == piece.number) {
                device.arrive();
            }
            Ok(())
        }

        fn wait_for_all(&mut self) -> Result<(), String> {
            let mut device = self.0.borrow_mut();
            device.fails()?;
            while !device.queue.is_empty() {
                device.arrive();
            }
            Ok(())
        }
    }

    proptest! {
        /// Whatever the device does and when, what arrives is what was sent, a piece is never overwritten on its way, and
        /// memory that a copy may still reach is never freed.
        #[test]
        fn bytes_arrive_or_nothing_is_under_way(
            lengths in prop::collection::vec(0usize..40, 1..8),
            chance in prop::collection::vec(any::<u8>(), 1..60),
            failing in 0u8..12,
        ) {
            let device = Shared::default();
            device.borrow_mut().chance = chance.into();
            device.borrow_mut().failing = failing;
            let piece = |number| Piece { device: Rc::clone(&device), number, bytes: vec![0; PIECE] };
            let mut copier = Copier::new(FakeLink(Rc::clone(&device)), std::array::from_fn(piece));
            for (number, length) in lengths.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..length).map(|index| (number * 41 + index * 7 + 1) as u8).collect();
                device.borrow_mut().places.insert(number, vec![0; length]);
                let (failures, was_lost) = (device.borrow().failures, copier.pieces.is_err());
                match copier.copy(&bytes, Place(Rc::clone(&device), number)) {
                    Ok(place) => {
                        let found = device.borrow();
                        prop_assert_eq!(found.failures, failures);
                        prop_assert_eq!(&found.places[&place.1], &bytes);
                        drop(found);
                    }
                    Err(message) => {
                        let found = device.borrow();
                        prop_assert!(was_lost || message == format!("failure {}", failures + 1), "{}", message);
                        prop_assert!(copier.pieces.is_err() || found.queue.is_empty());
                        prop_assert_eq!(found.failures == failures, was_lost);
                    }
                }
            }
            drop(copier);
            // What is left arrives long after: it finds its memory.
            while !device.borrow().queue.is_empty() {
                device.borrow_mut().arrive();
            }
        }
    }
}
