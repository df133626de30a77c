//! How many slots may be taken, and how fast: a token bucket, slowed down by 429s and stopped by Retry-After.

use std::time::Duration;

use tokio::time::Instant;

/// The most requests at once; safe for fixed windows, sliding windows and token buckets alike.
pub const BURST_MAX: u32 = 20;

/// The allowance is not halved again sooner: refusals come in groups.
const CUT_PAUSE: Duration = Duration::from_secs(10);
const CUT: f64 = 0.5;
const RAISE_EVERY: Duration = Duration::from_secs(30);
const RAISE: f64 = 0.05;
const FACTOR_MIN: f64 = 0.05;

#[derive(Debug)]
pub(super) struct Pace {
    configured: u32,
    factor: f64,
    cut_at: Option<Instant>,
    /// When `factor` last changed.
    changed_at: Instant,
    tokens: f64,
    filled_at: Instant,
    shut_until: Option<Instant>,
}

impl Pace {
    pub fn new(configured: u32, now: Instant) -> Self {
        let mut pace = Self {
            configured,
            factor: 1.0,
            cut_at: None,
            changed_at: now,
            tokens: 0.0,
            filled_at: now,
            shut_until: None,
        };
        pace.tokens = pace.burst();
        pace
    }

    pub fn factor(&self) -> f64 {
        self.factor
    }

    pub fn allowance(&self) -> u32 {
        // The margin keeps a sum of twentieths from falling a hair short of a whole number.
        ((f64::from(self.configured) * self.factor + 1e-6) as u32).max(1)
    }

    /// A twentieth of a minute's worth at once, so that small budgets are spread too.
    fn burst(&self) -> f64 {
        (f64::from(self.configured) / 20.0).clamp(1.0, f64::from(BURST_MAX))
    }

    fn tokens_per_second(&self) -> f64 {
        f64::from(self.allowance()) / 60.0
    }

    pub fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.tokens_per_second()).min(self.burst());
        self.filled_at = now;
        while let Some(at) = self.next_raise()
            && at <= now
        {
            self.factor = (self.factor + RAISE).min(1.0);
            self.changed_at = at;
        }
    }

    /// When the allowance grows next; None while it is whole.
    pub fn next_raise(&self) -> Option<Instant> {
        (self.factor < 1.0).then(|| self.changed_at + RAISE_EVERY)
    }

    /// When one more may be sent, as far as the pace goes: `now`, or later.
    pub fn ready_at(&self, now: Instant) -> Instant {
        let missing = 1.0 - self.tokens;
        // Rounding must not make a wait of nothing.
        let by_tokens = if missing < 1e-9 {
            now
        } else {
            now + Duration::from_secs_f64(missing / self.tokens_per_second()) + Duration::from_micros(1)
        };
        self.shut_until.map_or(by_tokens, |until| by_tokens.max(until))
    }

    /// Whether one more leaves enough for whoever comes next.
    pub fn has_spare(&self, now: Instant) -> bool {
        self.tokens >= (self.burst() / 2.0).max(1.0) && self.ready_at(now) <= now
    }

    pub fn spend(&mut self) {
        self.tokens -= 1.0;
    }

    /// True if the allowance was cut.
    pub fn on_rate_limited(&mut self, now: Instant, retry_after: Option<Duration>) -> bool {
        self.advance(now);
        if let Some(wait) = retry_after {
            self.shut_until(now + wait);
        }
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < CUT_PAUSE) {
            return false;
        }
        self.factor = (self.factor * CUT).max(FACTOR_MIN);
        self.cut_at = Some(now);
        self.changed_at = now;
        true
    }

    pub fn shut_until(&mut self, until: Instant) {
        self.shut_until = Some(self.shut_until.map_or(until, |at| at.max(until)));
    }

    pub fn paused_for(&self, now: Instant) -> Option<Duration> {
        self.shut_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}
