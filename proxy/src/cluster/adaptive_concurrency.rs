//! A limit of requests under way that follows the latency: Envoy's gradient controller
//! (`envoy.filters.http.adaptive_concurrency`), which is Netflix's Gradient2 limiter
//! (concurrency-limits) with a measured least latency.
//!
//! Every so often the limit is lowered to `min_concurrency`, and the latency of a few requests,
//! which then hardly queue, is taken for the least (`min_rtt`). Otherwise, once an interval,
//! `gradient = (min_rtt + buffer) / latency`, within 0.5 to 2, and
//! `limit = limit × gradient + √(limit × gradient)`.
//!
//! It has no timer: the first request to end after an interval moves the limit.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outrigger_config::AdaptiveConcurrency as Settings;

use super::rng::mix;

/// Eight for each doubling of a microsecond, up to an hour: 12 % apart, half of the buffer that
/// tells a longer latency from an equal one.
const BUCKETS: usize = 8 * 33;

/// Intervals in a row at the lowest limit after which the least latency is measured anew: what was
/// measured is then too low for what the cluster has become (Envoy's number).
const TOO_LONG_AT_LEAST: u32 = 5;

#[derive(Debug)]
pub(super) struct AdaptiveConcurrency {
    settings: Settings,
    /// Of the jitter, so that many clusters do not measure in step.
    seed: u64,
    born: Instant,
    live: AtomicU32,
    limit: AtomicU32,
    /// Microseconds since `born`. Requests that began earlier tell nothing of the present limit.
    counted_from: AtomicU64,
    /// Microseconds since `born` of the next change; `u64::MAX` while measuring.
    due: AtomicU64,
    samples: AtomicU32,
    latencies: Box<[AtomicU32]>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Microseconds; 0: not measured yet.
    min_rtt: f64,
    /// The limit to return to after measuring.
    limit: f64,
    is_measuring: bool,
    next_measurement: u64,
    at_least: u32,
    rounds: u64,
}

impl AdaptiveConcurrency {
    pub(super) fn new(settings: Settings, seed: u64, now: Instant) -> Self {
        let least = settings.min_rtt.min_concurrency.get();
        Self {
            seed,
            born: now,
            live: AtomicU32::new(0),
            limit: AtomicU32::new(least),
            counted_from: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            samples: AtomicU32::new(0),
            latencies: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(State {
                min_rtt: 0.0,
                limit: f64::from(least),
                is_measuring: true,
                next_measurement: 0,
                at_least: 0,
                rounds: 0,
            }),
            settings,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub(super) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Counts one more request; false, and not counted, when the limit is reached.
    pub(super) fn admit(&self) -> bool {
        let is_within = self.live.fetch_add(1, Ordering::Relaxed) < self.limit();
        if !is_within {
            self.withdraw();
        }
        is_within
    }

    /// A request ended without an answer.
    pub(super) fn withdraw(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// A request that began at `started` was answered.
    pub(super) fn answered(&self, started: Instant, now: Instant) {
        self.withdraw();
        let now_us = self.micros(now);
        if self.micros(started) >= self.counted_from.load(Ordering::Relaxed) {
            let latency = now.saturating_duration_since(started).as_micros() as u64;
            self.latencies[bucket_of(latency)].fetch_add(1, Ordering::Relaxed);
            self.samples.fetch_add(1, Ordering::Relaxed);
        }
        let is_measured = self.due.load(Ordering::Relaxed) == u64::MAX
            && self.samples.load(Ordering::Relaxed) >= self.settings.min_rtt.request_count.get();
        if is_measured || now_us >= self.due.load(Ordering::Relaxed) {
            // Whoever else is at it does the same.
            if let Ok(mut state) = self.state.try_lock() {
                self.update(&mut state, now_us);
            }
        }
    }

    fn update(&self, state: &mut State, now: u64) {
        let wanted = self.settings.min_rtt.request_count.get();
        if state.is_measuring {
            if self.samples.load(Ordering::Relaxed) >= wanted
                && let Some(latency) = self.take_latency()
            {
                state.min_rtt = latency;
                state.is_measuring = false;
                state.next_measurement = now + self.until_measurement(state);
                self.limit.store(state.limit as u32, Ordering::Relaxed);
                self.begin_interval(now);
            }
            return;
        }
        if now < self.due.load(Ordering::Relaxed) {
            return;
        }
        if now >= state.next_measurement || state.at_least >= TOO_LONG_AT_LEAST {
            self.take_latency();
            state.is_measuring = true;
            state.at_least = 0;
            self.limit.store(self.least(), Ordering::Relaxed);
            self.counted_from.store(now, Ordering::Relaxed);
            self.due.store(u64::MAX, Ordering::Relaxed);
            return;
        }
        if let Some(latency) = self.take_latency() {
            self.move_limit(state, latency);
        }
        self.begin_interval(now);
    }

    fn move_limit(&self, state: &mut State, latency: f64) {
        let buffer = 1.0 + self.settings.min_rtt.buffer_percent.fraction();
        let gradient = (state.min_rtt * buffer / latency.max(1.0)).clamp(0.5, 2.0);
        let scaled = state.limit * gradient;
        let highest = f64::from(self.settings.max_concurrency_limit.get());
        let least = f64::from(self.least());
        state.limit = (scaled + scaled.sqrt()).clamp(least, highest.max(least));
        state.at_least = if state.limit <= least {
            state.at_least + 1
        } else {
            0
        };
        self.limit.store(state.limit as u32, Ordering::Relaxed);
    }

    fn begin_interval(&self, now: u64) {
        let interval = micros_of(self.settings.concurrency_update_interval.0);
        self.due.store(now + interval, Ordering::Relaxed);
    }

    fn until_measurement(&self, state: &mut State) -> u64 {
        state.rounds += 1;
        let interval = micros_of(self.settings.min_rtt.interval.0);
        let jitter = self.settings.min_rtt.jitter_percent.fraction();
        let chance = (mix(state.rounds ^ self.seed) >> 11) as f64 / (1_u64 << 53) as f64;
        interval + (interval as f64 * jitter * chance) as u64
    }

    fn least(&self) -> u32 {
        self.settings.min_rtt.min_concurrency.get()
    }

    /// The percentile of the latencies noted, in microseconds, which are then forgotten.
    fn take_latency(&self) -> Option<f64> {
        self.samples.store(0, Ordering::Relaxed);
        let counts: Vec<u32> = self
            .latencies
            .iter()
            .map(|c| c.swap(0, Ordering::Relaxed))
            .collect();
        let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
        let rank = (total as f64 * self.settings.sample_percentile.fraction())
            .ceil()
            .max(1.0);
        let mut seen = 0;
        counts.iter().enumerate().find_map(|(bucket, count)| {
            seen += u64::from(*count);
            (*count > 0 && seen as f64 >= rank).then(|| middle_of(bucket))
        })
    }

    fn micros(&self, at: Instant) -> u64 {
        micros_of(at.saturating_duration_since(self.born))
    }
}

fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 1)
}

fn bucket_of(micros: u64) -> usize {
    if micros < 8 {
        return micros as usize;
    }
    let octave = micros.ilog2() as usize;
    let eighth = (micros >> (octave - 3)) as usize & 7;
    ((octave - 2) * 8 + eighth).min(BUCKETS - 1)
}

fn middle_of(bucket: usize) -> f64 {
    if bucket < 8 {
        return bucket as f64;
    }
    let (octave, eighth) = (bucket / 8 + 2, bucket % 8);
    (8.0 + eighth as f64 + 0.5) * 2_f64.powi(octave as i32 - 3)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A server that works on `capacity` requests at once, `service` each, and queues the rest.
    struct Simulation {
        limiter: AdaptiveConcurrency,
        now: Instant,
        queue: VecDeque<Instant>,
        working: Vec<(Instant, Instant)>,
        shed: usize,
        longest_queue: usize,
    }

    const STEP: Duration = Duration::from_micros(500);

    impl Simulation {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                limiter: AdaptiveConcurrency::new(Settings::default(), 1, now),
                now,
                queue: VecDeque::new(),
                working: Vec::new(),
                shed: 0,
                longest_queue: 0,
            }
        }

        fn run(&mut self, time: Duration, arrivals: usize, capacity: usize, service: Duration) {
            (self.shed, self.longest_queue) = (0, 0);
            let end = self.now + time;
            while self.now < end {
                self.now += STEP;
                let now = self.now;
                self.working.retain(|(started, done)| {
                    let is_done = *done <= now;
                    if is_done {
                        self.limiter.answered(*started, now);
                    }
                    !is_done
                });
                for _ in 0..arrivals {
                    if self.limiter.admit() {
                        self.queue.push_back(now);
                    } else {
                        self.shed += 1;
                    }
                }
                while self.working.len() < capacity
                    && let Some(started) = self.queue.pop_front()
                {
                    self.working.push((started, now + service));
                }
                self.longest_queue = self.longest_queue.max(self.queue.len());
            }
        }
    }

    #[test]
    fn it_sheds_before_the_queue_grows_and_recovers() {
        let service = Duration::from_millis(5);
        let mut simulation = Simulation::new();
        // 40 at once, 5 ms each: 8,000 a second. Half of that, then three times as much.
        simulation.run(Duration::from_secs(10), 2, 40, service);
        simulation.run(Duration::from_secs(1), 2, 40, service);
        assert_eq!(simulation.shed, 0, "within its capacity nothing is shed");
        simulation.run(Duration::from_secs(2), 12, 40, service);
        simulation.run(Duration::from_secs(5), 12, 40, service);
        assert!(simulation.shed > 0);
        // Without a limit 16,000 a second would queue.
        assert!(
            simulation.longest_queue < 60,
            "{}",
            simulation.longest_queue
        );
        assert!(simulation.limiter.limit() >= 30, "the capacity is used");
        simulation.run(Duration::from_secs(2), 2, 40, service);
        simulation.run(Duration::from_secs(1), 2, 40, service);
        assert_eq!(simulation.shed, 0, "recovered");
    }

    #[test]
    fn a_server_that_has_become_slower_for_good_is_measured_anew() {
        let mut simulation = Simulation::new();
        simulation.run(Duration::from_secs(5), 1, 40, Duration::from_millis(2));
        simulation.run(Duration::from_secs(20), 1, 40, Duration::from_millis(10));
        simulation.run(Duration::from_secs(5), 1, 40, Duration::from_millis(10));
        assert!(
            simulation.limiter.limit() >= 20,
            "{}",
            simulation.limiter.limit()
        );
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_near_its_middle(micros in 8..3_600_000_000_u64) {
            let middle = middle_of(bucket_of(micros));
            prop_assert!((middle / micros as f64 - 1.0).abs() < 0.07);
        }

        #[test]
        fn the_limit_stays_within_its_bounds(latencies in prop::collection::vec(0..2_000_000_u64, 1..500)) {
            let mut now = Instant::now();
            let limiter = AdaptiveConcurrency::new(Settings::default(), 1, now);
            for latency in latencies {
                if limiter.admit() {
                    let started = now;
                    now += Duration::from_micros(latency);
                    limiter.answered(started, now);
                }
                prop_assert!((3..=1000).contains(&limiter.limit()));
                prop_assert_eq!(limiter.live.load(Ordering::Relaxed), 0);
            }
        }
    }
}
