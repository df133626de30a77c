//! How fast one receiver is asked: a window that follows what it takes, a rate if one was set, and a breaker.
//!
//! All three are the endpoint's own, so one receiver in trouble costs the others nothing.

use tokio::time::{Duration, Instant};

/// Failures in a row after which only probes are sent.
const FAILURES_TO_OPEN: u32 = 10;
/// Pause before the first probe and the longest one.
const PROBE_FIRST: Duration = Duration::from_secs(5);
const PROBE_MAX: Duration = Duration::from_secs(300);
/// The window is halved at most this often: what was on its way together fails together.
const HALVE_EVERY: Duration = Duration::from_secs(1);

/// What the receiver's answer says of how fast it may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It took the request.
    Ok,
    /// It refused this one request.
    Failed,
    /// It is overloaded or away: 429, 502, 503, 504, no answer in time.
    Congested,
}

/// What changed by an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Same,
    /// It fails from now on.
    Opened,
    /// It is back.
    Closed,
}

#[derive(Debug, Clone, Copy)]
enum Breaker {
    Closed {
        failures: u32,
    },
    /// Only probes; `pause` is before the next, which may go at `next`.
    Open {
        next: Instant,
        pause: Duration,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub struct Pace {
    window: f64,
    window_max: u32,
    halved_at: Option<Instant>,
    rate: Option<Rate>,
    breaker: Breaker,
    /// Not before: the receiver said so.
    hold: Option<Instant>,
}

/// Requests begun in a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    /// How many may begin now.
    tokens: f64,
    at: Instant,
}

impl Rate {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: f64::from(per_second), tokens: 1.0, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        // A tenth of a second's worth may come at once: timers are no finer than a millisecond.
        self.tokens = (self.tokens + gained).min((self.per_second / 10.0).max(1.0));
        self.at = now;
    }

    fn ready_at(&self) -> Instant {
        let missing = (1.0 - self.tokens).max(0.0);
        self.at + Duration::from_secs_f64(missing / self.per_second)
    }
}

impl Pace {
    /// Begins with the whole window. `failing`: it was failing when the gateway stopped, so it is probed first.
    pub fn new(max_in_flight: u32, rate: Option<u32>, failing: bool, now: Instant) -> Self {
        let breaker = match failing {
            true => Breaker::Open { next: now, pause: PROBE_FIRST },
            false => Breaker::Closed { failures: 0 },
        };
        Self {
            window: f64::from(max_in_flight),
            window_max: max_in_flight,
            halved_at: None,
            rate: rate.map(|rate| Rate::new(rate, now)),
            breaker,
            hold: None,
        }
    }

    /// Takes other settings.
    pub fn set(&mut self, max_in_flight: u32, rate: Option<u32>, now: Instant) {
        self.window = if max_in_flight == self.window_max { self.window } else { f64::from(max_in_flight) };
        self.window_max = max_in_flight;
        if self.rate.map(|rate| rate.per_second as u32) != rate {
            self.rate = rate.map(|rate| Rate::new(rate, now));
        }
    }

    /// Begins anew: somebody says that the receiver is well.
    pub fn reset(&mut self) {
        self.breaker = Breaker::Closed { failures: 0 };
        self.hold = None;
    }

    /// Whether it only gets probes.
    pub fn failing(&self) -> bool {
        matches!(self.breaker, Breaker::Open { .. })
    }

    /// Requests that may be on their way at the same time now.
    pub fn window(&self) -> usize {
        match self.breaker {
            Breaker::Open { .. } => 1,
            Breaker::Closed { .. } => (self.window as usize).max(1),
        }
    }

    /// Whether a request may begin at `now` while `in_flight` are on their way; if so it is counted.
    pub fn admit(&mut self, in_flight: usize, now: Instant) -> bool {
        let admits = self.admits(in_flight, now);
        if let (true, Some(rate)) = (admits, &mut self.rate) {
            rate.tokens -= 1.0;
        }
        admits
    }

    /// The same without counting.
    pub fn admits(&mut self, in_flight: usize, now: Instant) -> bool {
        if in_flight >= self.window() || self.hold.is_some_and(|until| now < until) {
            return false;
        }
        if let Breaker::Open { next, .. } = self.breaker
            && now < next
        {
            return false;
        }
        if let Some(rate) = &mut self.rate {
            rate.refill(now);
            if rate.tokens < 1.0 {
                return false;
            }
        }
        true
    }

    /// When [`Pace::admit`] may change its mind without an answer coming in; None if it waits for one, or for nothing.
    pub fn opens_at(&self, in_flight: usize) -> Option<Instant> {
        if in_flight >= self.window() {
            return None;
        }
        let probe = match self.breaker {
            Breaker::Open { next, .. } => Some(next),
            Breaker::Closed { .. } => None,
        };
        let rate = self.rate.as_ref().map(Rate::ready_at);
        [self.hold, probe, rate].into_iter().flatten().max()
    }

    /// An answer came, or none in time. `retry_after`: the receiver said when to come back; `jitter` is in 0..1.
    pub fn answered(
        &mut self,
        signal: Signal,
        retry_after: Option<Duration>,
        jitter: f64,
        now: Instant,
    ) -> Turn {
        if let (Signal::Congested, Some(wait)) = (signal, retry_after) {
            self.hold = Some(self.hold.unwrap_or(now).max(now + wait));
        }
        match signal {
            Signal::Ok => self.window = (self.window + 1.0 / self.window).min(f64::from(self.window_max)),
            Signal::Congested if self.halved_at.is_none_or(|at| now.duration_since(at) >= HALVE_EVERY) => {
                self.window = (self.window / 2.0).max(1.0);
                self.halved_at = Some(now);
            }
            Signal::Congested | Signal::Failed => {}
        }
        match (&mut self.breaker, signal) {
            (Breaker::Closed { failures }, Signal::Ok) => {
                *failures = 0;
                Turn::Same
            }
            (Breaker::Closed { failures }, _) => {
                *failures += 1;
                if *failures < FAILURES_TO_OPEN {
                    return Turn::Same;
                }
                self.breaker = Breaker::Open { next: now + spread(PROBE_FIRST, jitter), pause: PROBE_FIRST };
                Turn::Opened
            }
            (Breaker::Open { .. }, Signal::Ok) => {
                self.breaker = Breaker::Closed { failures: 0 };
                // It comes back slowly: what waits would meet it all at once.
                self.window = self.window.min(2.0);
                Turn::Closed
            }
            // Of those that were on their way when it opened, only the first after its time counts as a probe.
            (Breaker::Open { next, pause }, _) if now >= *next => {
                *pause = (*pause * 2).min(PROBE_MAX);
                *next = now + spread(*pause, jitter);
                Turn::Same
            }
            (Breaker::Open { .. }, _) => Turn::Same,
        }
    }
}

/// A pause that is not the same for all: 80 to 120 % of it.
pub fn spread(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_window_halves_once_for_what_failed_together_and_grows_back() {
        let now = Instant::now();
        let mut pace = Pace::new(16, None, false, now);
        for _ in 0..5 {
            pace.answered(Signal::Congested, None, 0.5, now);
        }
        assert_eq!(pace.window(), 8);
        pace.answered(Signal::Congested, None, 0.5, now + Duration::from_secs(2));
        assert_eq!(pace.window(), 4);
        for _ in 0..400 {
            pace.answered(Signal::Ok, None, 0.5, now);
        }
        assert_eq!(pace.window(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_opens_probes_ever_more_rarely_and_closes() {
        let now = Instant::now();
        let mut pace = Pace::new(16, None, false, now);
        let turns: Vec<_> =
            (0..FAILURES_TO_OPEN).map(|_| pace.answered(Signal::Failed, None, 0.5, now)).collect();
        assert_eq!(turns.last(), Some(&Turn::Opened));
        assert!(turns[..9].iter().all(|turn| *turn == Turn::Same));
        assert!(!pace.admit(0, now), "only after a pause");
        let mut at = now;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let next = pace.opens_at(0).unwrap();
            pauses.push((next - at).as_secs());
            at = next;
            assert!(pace.admit(0, at) && !pace.admit(1, at), "one at a time");
            assert_eq!(pace.answered(Signal::Congested, None, 0.5, at), Turn::Same);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        at = pace.opens_at(0).unwrap();
        assert_eq!(pace.answered(Signal::Ok, None, 0.5, at), Turn::Closed);
        assert_eq!((pace.failing(), pace.window()), (false, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_and_a_hold_are_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(256, Some(50), false, start);
        let mut begun = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while pace.admit(0, now) {
                begun += 1;
            }
        }
        assert!((495..=506).contains(&begun), "{begun}");
        let now = start + Duration::from_secs(20);
        pace.answered(Signal::Congested, Some(Duration::from_secs(120)), 0.5, now);
        assert!(!pace.admit(0, now + Duration::from_secs(119)));
        assert_eq!(pace.opens_at(0), Some(now + Duration::from_secs(120)));
        assert!(pace.admit(0, now + Duration::from_secs(120)));
    }
}
