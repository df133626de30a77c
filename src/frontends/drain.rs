//! When a draining gateway ends each of its streams: spread evenly, so that their clients do not all reconnect in one
//! instant.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::lifecycle::DRAIN_SOFT;

/// Within which time of a drain streams are ended: what follows the last one must fit into the drain as well.
pub(super) fn window() -> Duration {
    DRAIN_SOFT * 3 / 4
}

/// Hands out moments of a drain window.
#[derive(Debug, Default)]
pub(super) struct Slots(AtomicU64);

impl Slots {
    /// The next moment, at most `window`. Successive multiples of the golden ratio leave no crowd and no hole,
    /// however many streams there are.
    pub(super) fn next(&self, window: Duration) -> Duration {
        let n = self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        window.mul_f64((n >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_crowd_and_no_hole() {
        let slots = Slots::default();
        let window = Duration::from_secs(6);
        let mut moments: Vec<_> = (0..600).map(|_| slots.next(window)).collect();
        moments.sort_unstable();
        moments.push(window);
        for pair in moments.windows(2) {
            assert!(pair[1] - pair[0] < Duration::from_millis(30), "{pair:?}");
        }
    }
}
