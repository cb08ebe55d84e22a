//! Moments at which something is cut off: anywhere, and the same in every run.

use std::time::Duration;

/// A pseudo-random sequence.
#[derive(Clone, Copy, Debug)]
pub struct Moments(u64);

impl Default for Moments {
    fn default() -> Self {
        Self(2026)
    }
}

impl Moments {
    /// The next one, before `span` is over.
    pub fn below(&mut self, span: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let nanos = (u128::from(self.0 >> 33) * span.as_nanos()) >> 31;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
