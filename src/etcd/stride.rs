//! Where one page's range ends. For each request etcd counts every key up to the end of the range, however small the limit is: pages
//! that all end where the prefix ends take time with the square of the number of keys.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

/// The bytes behind the common beginning of two keys that a distance is reckoned with.
const WINDOW: usize = 8;
/// A step of one in the first of these bytes.
const FIRST_BYTE: u64 = 1 << 56;

/// How far the next page may reach, by how far the last one did. A wrong guess costs time, and never a key: each range begins
/// where the one before it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stride(Option<Step>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// So many bytes at the beginning stay as they are.
    kept: usize,
    /// How much the bytes after them grow.
    step: u64,
}

impl Stride {
    /// A page that was full reached from one key to another.
    pub(super) fn full(&mut self, first: &[u8], last: &[u8]) {
        let kept = first.iter().zip(last).take_while(|(one, other)| one == other).count();
        let distance = window(last, kept).saturating_sub(window(first, kept));
        // The next keys may lie closer together, or further apart.
        self.0 = Some(Step { kept, step: distance.saturating_mul(2).max(1) });
    }

    /// The range ended before the page was full.
    pub(super) fn short(&mut self) {
        if let Some(Step { kept, step }) = &mut self.0 {
            match step.checked_mul(4) {
                Some(more) => *step = more,
                None => (*kept, *step) = (kept.saturating_sub(1), FIRST_BYTE),
            }
        }
    }

    /// Where the range that begins with `from` ends; at the latest at `end`.
    pub(super) fn end(&self, from: &[u8], end: &[u8]) -> Vec<u8> {
        let Some(Step { mut kept, mut step }) = self.0 else { return end.to_vec() };
        loop {
            kept = kept.min(from.len());
            if let Some(reached) = window(from, kept).checked_add(step) {
                let reached = [from.get(..kept).unwrap_or_default(), reached.to_be_bytes().as_slice()].concat();
                return if is_before(&reached, end) { reached } else { end.to_vec() };
            }
            let Some(less) = kept.checked_sub(1) else { return end.to_vec() };
            (kept, step) = (less, FIRST_BYTE);
        }
    }
}

/// A single zero byte stands for the end of all keys.
fn is_before(key: &[u8], end: &[u8]) -> bool {
    end == [0] || key < end
}

/// The bytes after the first `kept` ones, as a number; zeros where the key ends.
fn window(key: &[u8], kept: usize) -> u64 {
    let mut bytes = [0; WINDOW];
    for (byte, of) in bytes.iter_mut().zip(key.iter().skip(kept)) {
        *byte = *of;
    }
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Reads keys as etcd answers range requests. Keys that were read, requests, and keys that etcd counted for them.
    fn read(keys: &BTreeSet<Vec<u8>>, end: &[u8], limit: usize) -> (Vec<Vec<u8>>, usize, usize) {
        let (mut stride, mut from, mut all, mut requests, mut counted) =
            (Stride::default(), Vec::new(), Vec::new(), 0, 0);
        loop {
            let reached = stride.end(&from, end);
            assert!(reached == end || reached > from, "no request goes back");
            let in_range: Vec<_> = keys.iter().filter(|key| **key >= from && is_before(key, &reached)).collect();
            (requests, counted) = (requests + 1, counted + in_range.len());
            all.extend(in_range.iter().take(limit).map(|key| (*key).clone()));
            if in_range.len() > limit {
                stride.full(in_range[0], in_range[limit - 1]);
                from = [in_range[limit - 1].as_slice(), &[0]].concat();
            } else if reached == end {
                return (all, requests, counted);
            } else {
                if in_range.len() * 2 <= limit {
                    stride.short();
                }
                from = reached;
            }
        }
    }

    proptest! {
        #[test]
        fn every_key_is_read_once_wherever_keys_lie(
            keys in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 1..12), 0..200),
            limit in 1_usize..20,
        ) {
            let (all, ..) = read(&keys, &[0], limit);
            prop_assert_eq!(all, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_etcd_counts_does_not_grow_with_the_square_of_the_keys() {
        let key = |n: u32| format!("/registry/secrets/namespace-{}/name-{n}", n % 100).into_bytes();
        let mut keys: BTreeSet<Vec<u8>> = (0..20_000).map(key).collect();
        keys.extend((0..500).map(|n| format!("/registry/pods/kube-system/pod-{n:x}").into_bytes()));
        let (all, requests, counted) = read(&keys, b"/registry0", 200);
        assert_eq!(all.len(), keys.len());
        assert!(requests < 8 * keys.len() / 200, "{requests} requests");
        assert!(
            counted < 6 * keys.len(),
            "{counted} keys were counted; pages that end with the prefix count a million"
        );
    }
}
