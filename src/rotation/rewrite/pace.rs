//! How many requests may be under way: more while the API server answers well, half of them when it does not.
//! Slowness that fewer requests do not cure is not the server's load (a webhook hangs): it stops counting as slow.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::{Duration, Instant};

use crate::rotation::cluster::webhooks::Breakers;

const FIRST: usize = 8;
/// The most that lies between two requests, whatever rate a shard is told.
const SLOWEST: Duration = Duration::from_secs(100);
/// An answer in a hundred may take longer than this before fewer requests are sent.
const SLOW: Duration = Duration::from_secs(1);
/// Slow answers alone bring the limit down to this many requests; only an overload that the server itself reports
/// brings it lower.
const SLOW_FLOOR: usize = 4;

/// Doubled for each good second until the first bad one; from then on additive increase, multiplicative decrease. And
/// an upper rate.
#[derive(Debug)]
pub struct Pace {
    limit: usize,
    found: bool,
    most: usize,
    interval: Option<Duration>,
    next: Instant,
    quiet_until: Instant,
    second: Second,
    /// What an answer takes however few requests are under way.
    inherent: Duration,
    /// When the last request went well.
    last_good: Option<Instant>,
    /// Webhooks that cannot be called.
    pub webhooks: Breakers,
}

#[derive(Debug)]
struct Second {
    began: Instant,
    answers: usize,
    slow: usize,
    longest: Duration,
    throttled: bool,
}

impl Pace {
    /// At most `most` requests at once, and `rate` a second if there is one.
    pub fn new(most: usize, rate: Option<f64>, now: Instant) -> Self {
        Self {
            limit: FIRST.min(most).max(1),
            found: false,
            most: most.max(1),
            interval: rate.map(|rate| Duration::try_from_secs_f64(1.0 / rate).map_or(SLOWEST, |own| own.min(SLOWEST))),
            next: now,
            quiet_until: now,
            second: Second::begin(now),
            inherent: Duration::ZERO,
            last_good: None,
            webhooks: Breakers::default(),
        }
    }

    /// How many requests may be under way.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether any request went well after this moment.
    pub fn was_good_after(&self, moment: Instant) -> bool {
        self.last_good.is_some_and(|good| good > moment)
    }

    /// Whether any request went well at all.
    pub fn was_ever_good(&self) -> bool {
        self.last_good.is_some()
    }

    /// When the next request may be sent; the past means now.
    pub fn next(&self) -> Instant {
        self.next.max(self.quiet_until)
    }

    /// A request is sent.
    pub fn sent(&mut self, now: Instant) {
        if let Some(interval) = self.interval {
            // Time that was not used is not made up for by a burst.
            let from = self.next.max(now.checked_sub(interval).unwrap_or(now));
            self.next = from.checked_add(interval).unwrap_or(from);
        }
    }

    /// An answer came after `took`.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        self.last_good = Some(now);
        self.second.answers = self.second.answers.saturating_add(1);
        let is_slow = took > SLOW.max(self.inherent.saturating_mul(2));
        self.second.slow = self.second.slow.saturating_add(is_slow.into());
        self.second.longest = self.second.longest.max(took);
        self.turn(now);
    }

    /// The server is overloaded, or did not answer. `wait` is its wish.
    pub fn throttled(&mut self, wait: Option<Duration>, now: Instant) {
        if let Some(until) = wait.and_then(|wait| now.checked_add(wait)) {
            self.quiet_until = self.quiet_until.max(until);
        }
        // Many requests meet the same overload: it counts once a second.
        if !self.second.throttled {
            self.second.throttled = true;
            self.halve(1);
        }
        self.turn(now);
    }

    fn turn(&mut self, now: Instant) {
        if now.duration_since(self.second.began) < Duration::from_secs(1) {
            return;
        }
        let last = std::mem::replace(&mut self.second, Second::begin(now));
        // It was halved for this second already.
        if last.throttled {
            return;
        }
        if last.slow.saturating_mul(100) > last.answers {
            // So few requests are not what makes it slow: from now on, this is what an answer takes.
            if self.limit <= SLOW_FLOOR {
                (self.inherent, self.found) = (last.longest, false);
            }
            self.halve(SLOW_FLOOR);
        } else {
            let more = if self.found { self.limit.saturating_add(1) } else { self.limit.saturating_mul(2) };
            self.limit = more.min(self.most);
        }
    }

    fn halve(&mut self, floor: usize) {
        if self.limit > floor {
            self.found = true;
            self.limit = (self.limit / 2).max(floor);
        }
    }
}

impl Second {
    fn begin(now: Instant) -> Self {
        Self { began: now, answers: 0, slow: 0, longest: Duration::ZERO, throttled: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(10);

    #[test]
    fn no_rate_and_no_wish_is_more_than_can_be_waited_for() {
        let now = Instant::now();
        for rate in [0.0, -1.0, 1e-300, f64::NAN, f64::MIN_POSITIVE] {
            let mut pace = Pace::new(8, Some(rate), now);
            pace.sent(now);
            pace.throttled(Some(Duration::MAX), now);
            assert!(pace.next() <= now + SLOWEST, "{rate}");
        }
    }

    #[test]
    fn good_seconds_double_until_an_overload_halves_once_and_then_add_one() {
        let mut now = Instant::now();
        let mut pace = Pace::new(64, None, now);
        assert_eq!(pace.limit(), 8);
        for doubled in [16, 32, 64, 64] {
            now += Duration::from_secs(1);
            pace.answered(MOMENT, now);
            assert_eq!(pace.limit(), doubled);
        }
        for _ in 0..5 {
            pace.throttled(None, now + MOMENT);
        }
        assert_eq!(pace.limit(), 32);
        now += Duration::from_secs(2);
        pace.answered(MOMENT, now);
        assert_eq!(pace.limit(), 32, "that second was bad");
        now += Duration::from_secs(1);
        pace.answered(MOMENT, now);
        assert_eq!(pace.limit(), 33);
    }

    #[test]
    fn slow_answers_halve() {
        let mut now = Instant::now();
        let mut pace = Pace::new(64, None, now);
        pace.answered(Duration::from_secs(3), now);
        now += Duration::from_secs(1);
        pace.answered(MOMENT, now);
        assert_eq!(pace.limit(), 4);
    }

    #[test]
    fn slowness_that_fewer_requests_do_not_cure_stops_counting() {
        let (mut now, hangs) = (Instant::now(), Duration::from_secs(10));
        let mut pace = Pace::new(64, None, now);
        let mut limits = Vec::new();
        for _ in 0..8 {
            now += hangs;
            pace.answered(hangs, now);
            limits.push(pace.limit());
        }
        assert_eq!(limits, [4, 4, 8, 16, 32, 64, 64, 64]);
        pace.throttled(None, now);
        assert_eq!(pace.limit(), 32, "an overload still halves");
    }

    #[test]
    fn the_wish_to_wait_is_honoured() {
        let now = Instant::now();
        let mut pace = Pace::new(64, None, now);
        pace.throttled(Some(Duration::from_secs(7)), now);
        assert_eq!(pace.next(), now + Duration::from_secs(7));
    }

    #[test]
    fn the_rate_is_never_exceeded_and_not_made_up_for() {
        let now = Instant::now();
        let mut pace = Pace::new(64, Some(10.0), now);
        for _ in 0..10 {
            pace.sent(now);
        }
        assert!(pace.next() >= now + Duration::from_millis(900));
        let later = now + Duration::from_mins(1);
        pace.sent(later);
        pace.sent(later);
        assert!(pace.next() > later);
    }
}
