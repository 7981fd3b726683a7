//! The table by which the steering program chooses: where what stands in the shared map, and how a
//! new order is put into it. Pure: the map is written by whoever calls.
//!
//! ```text
//! 0       turn      u64          how many connections were given a turn
//! 8       control   u32          bit 31: the half that counts; below: how many entries of it
//! 12      probe     u32          low half: a client's port, as in its packets; high: an index
//! 16      order     u16[2][512]  indices into the array of sockets, in turn
//! 2064    taken     u64[1024]    connections, by index
//! 10256   migrated  u64[1024]    those among them that came from another socket
//! ```
//!
//! A new order goes into the half that does not count, and then one store of `control` makes it
//! count: the program loads that word once, so half and length always belong together.

/// Entries of an order: twice the slots that an app may have, since each may be replaced at once.
pub const ORDER_MAX: u16 = 512;

/// The index of the parking socket. Those of instances are below it.
pub const PARKING: u16 = ORDER_MAX;

/// How many sockets the array holds.
pub const SOCKETS: u32 = 513;

/// Size of the map's one value, in bytes.
pub const BYTES: u32 = 18_448;

/// Version of this layout: maps of another one are not taken over.
pub const VERSION: u32 = 1;

/// Where `turn` stands.
pub const TURN: u32 = 0;
/// Where `control` stands.
pub const CONTROL: u32 = 8;
/// Where the probe stands: a connection from this port goes to this index, in the order or not.
pub const PROBE: u32 = 12;
/// Where the two orders stand.
pub const ORDER: u32 = 16;
/// Where the counters of connections stand.
pub const TAKEN: u32 = 2064;
/// Where the counters of migrated connections stand.
pub const MIGRATED: u32 = 10_256;

/// The bits of `control` that are the number of entries: 0 to 512.
pub const COUNT_MASK: u32 = 0x3ff;
/// The bit of `control` that is the half.
pub const HALF_SHIFT: u32 = 31;

/// One order that is to be written: entries first, then the word that makes them count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    /// Where each entry goes, and which it is.
    pub entries: Vec<(u32, u16)>,
    /// The new `control`.
    pub control: u32,
}

/// What to write so that `order` takes the place of what `control` says now. More entries than
/// there is room for are left out.
pub fn flip(control: u32, order: &[u16]) -> Flip {
    let half = (control >> HALF_SHIFT) ^ 1;
    let start = ORDER.saturating_add(half.saturating_mul(ORDER_MAX.into()).saturating_mul(2));
    let places = (0..ORDER_MAX).map(|at| start.saturating_add(u32::from(at).saturating_mul(2)));
    let entries: Vec<(u32, u16)> = places.zip(order.iter().copied()).collect();
    let count = u32::try_from(entries.len()).unwrap_or_default();
    Flip { entries, control: half << HALF_SHIFT | count }
}

/// What to write at [`PROBE`]. No client has port 0.
pub fn probe(port: u16, index: u16) -> u32 {
    u32::from(port.to_be()) | u32::from(index) << 16
}

/// Where a counter of an index stands, from the start of its kind.
pub fn counter(kind: u32, index: u16) -> u32 {
    kind.saturating_add(u32::from(index).saturating_mul(8))
}

/// The order by which a client stays with its slot: of those that are ready, by a key that a slot
/// keeps and their indices, a place for each of 512 kinds of addresses. Empty where nobody is
/// ready.
///
/// A place belongs to the key with the highest score for it. So a slot that goes away leaves its
/// places to the others and moves none of theirs; and it has the same ones again when it comes
/// back, whatever generation and index it has then.
pub fn by_source(ready: &[(u32, u16)]) -> Vec<u16> {
    let best = |place: u16| {
        let best = ready.iter().max_by_key(|(key, index)| (score(place, *key), *index));
        best.map(|(_, index)| *index)
    };
    (0..ORDER_MAX).filter_map(best).collect()
}

/// A number that looks like chance: place and key by the finalizer of `SplitMix64`.
fn score(place: u16, key: u32) -> u64 {
    let mut z = u64::from(place) << 32 | u64::from(key);
    z = z.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The indices of the array that are in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indices(std::collections::BTreeSet<u16>);

impl Indices {
    /// Takes the lowest that is free; `None` if none is.
    pub fn take(&mut self) -> Option<u16> {
        let free = (0..PARKING).find(|index| !self.0.contains(index))?;
        self.0.insert(free);
        Some(free)
    }

    /// Marks one as taken; says whether it was free and is one of an instance.
    pub fn keep(&mut self, index: u16) -> bool {
        index < PARKING && self.0.insert(index)
    }

    /// Those that are not in use.
    pub fn free(&self) -> impl Iterator<Item = u16> {
        (0..PARKING).filter(|index| !self.0.contains(index))
    }

    /// Gives one back.
    pub fn give_back(&mut self, index: u16) {
        self.0.remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ready(slots: impl IntoIterator<Item = u16>) -> Vec<(u32, u16)> {
        slots.into_iter().map(|slot| (slot.into(), slot ^ 0x155)).collect()
    }

    #[test]
    fn places_of_clients_are_shared_out_evenly() {
        for slots in [1, 2, 3, 4, 8, 16_u16] {
            let places = by_source(&ready(0..slots));
            assert_eq!(places.len(), 512);
            let fair = 512_usize.div_ceil(slots.into());
            for (_, index) in ready(0..slots) {
                let own = places.iter().filter(|place| **place == index).count();
                assert!(own.abs_diff(fair) <= fair / 2, "{own} of {fair} with {slots} slots");
            }
        }
        assert!(by_source(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_slot_that_goes_moves_no_client_of_the_others(
            slots in prop::collection::btree_set(0_u16..256, 2..40),
            gone: prop::sample::Index,
        ) {
            let all: Vec<u16> = slots.iter().copied().collect();
            let gone = *gone.get(&all);
            let own = ready([gone])[0].1;
            let before = by_source(&ready(all.iter().copied()));
            let after = by_source(&ready(all.iter().copied().filter(|slot| *slot != gone)));
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(*after != own && (before == after || *before == own));
            }
            // Its next generation, at another index, has the same clients.
            let mut again = ready(all.iter().copied());
            again.iter_mut().filter(|(key, _)| *key == u32::from(gone)).for_each(|it| it.1 = 511);
            let again = by_source(&again);
            for (before, again) in before.iter().zip(&again) {
                prop_assert_eq!(if *before == own { 511 } else { *before }, *again);
            }
        }
    }

    #[test]
    fn a_flip_fills_the_half_that_does_not_count() {
        let first = flip(0, &[7, 9]);
        assert_eq!(first, Flip { entries: vec![(1040, 7), (1042, 9)], control: 1 << 31 | 2 });
        let second = flip(first.control, &[9]);
        assert_eq!(second, Flip { entries: vec![(16, 9)], control: 1 });
        assert_eq!(flip(second.control, &[]), Flip { entries: vec![], control: 1 << 31 });
    }

    #[test]
    fn the_longest_order_stays_within_its_half() {
        let order: Vec<u16> = (0..600).collect();
        for control in [0, 1 << 31] {
            let flip = flip(control, &order);
            assert_eq!(flip.entries.len(), 512);
            assert_eq!(flip.control & COUNT_MASK, 512);
            assert!(flip.entries.iter().all(|(at, _)| (ORDER..TAKEN).contains(at)));
        }
        let last = |kind| counter(kind, PARKING).saturating_add(8);
        assert!(last(TAKEN) <= MIGRATED && last(MIGRATED) <= BYTES);
        assert_eq!(MIGRATED.saturating_add(1024 * 8), BYTES);
    }

    #[test]
    fn an_index_has_one_holder() {
        let mut indices = Indices::default();
        assert!(indices.keep(1) && !indices.keep(1) && !indices.keep(PARKING));
        assert_eq!((indices.take(), indices.take()), (Some(0), Some(2)));
        indices.give_back(1);
        assert_eq!(indices.free().take(2).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(indices.take(), Some(1));
        for _ in 3..PARKING {
            assert!(indices.take().is_some());
        }
        assert_eq!(indices.take(), None);
    }
}
