//! How often one may call: requests a second over all callers, for each key, and for each address without a key.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::{StateInformationMiddleware, StateSnapshot};
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{NotUntil, Quota, RateLimiter};
use http::{HeaderMap, HeaderName};
use mistralrs_mcp::Principal;

use super::error::EndpointError;
use crate::config::RateLimitConfig;

/// Addresses are hashed onto this many slots, so that memory is fixed (8 bytes each) however many addresses call.
/// Two that meet in one slot share its rate: rare with the addresses that a server of this kind sees in a second.
const NUM_ADDRESS_SLOTS: usize = 16_384;

/// The limits of one endpoint. `C` is the clock, for tests.
pub(super) struct RateLimits<C: Clock = DefaultClock> {
    global: Option<Limiter<C>>,
    per_key: Option<Limiter<C>>,
    per_ip: Option<Limiter<C>>,
    clock: C,
    /// Keyed with a random seed: who calls cannot aim for somebody else's slot.
    hasher: RandomState,
}

type Limiter<C> = RateLimiter<usize, Slots, C, StateInformationMiddleware>;

/// A fixed number of limiter states, each one atomic integer.
#[derive(Debug)]
struct Slots(Box<[InMemoryState]>);

impl StateStore for Slots {
    type Key = usize;

    fn measure_and_replace<T, F, E>(&self, key: &usize, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0[*key].measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

/// Where a caller stands after an admitted or refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateStatus {
    limit: u32,
    remaining: u32,
    /// Until the full limit is there again, or for a refusal until the next request may come. Whole seconds, rounded up.
    reset: Duration,
}

impl RateStatus {
    /// Writes `X-RateLimit-*`.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static("x-ratelimit-limit"), self.limit.into());
        headers.insert(HeaderName::from_static("x-ratelimit-remaining"), self.remaining.into());
        headers.insert(HeaderName::from_static("x-ratelimit-reset"), self.reset.as_secs().into());
    }
}

/// A refusal, and what to tell about it.
#[derive(Debug)]
pub(super) struct Exceeded(pub RateStatus);

impl From<Exceeded> for EndpointError {
    fn from(exceeded: Exceeded) -> Self {
        Self::RateLimited { retry_after: exceeded.0.reset }
    }
}

impl RateLimits {
    pub fn new(config: &RateLimitConfig, num_keys: usize) -> Self {
        Self::with_clock(config, num_keys, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimits<C> {
    fn with_clock(config: &RateLimitConfig, num_keys: usize, clock: C) -> Self {
        let limiter = |rate: Option<NonZeroU32>, num_slots: usize| {
            let slots = Slots((0..num_slots).map(|_| InMemoryState::default()).collect());
            rate.map(|rate| Limiter::new(Quota::per_second(rate), slots, clock.clone()))
        };
        Self {
            global: limiter(config.global, 1),
            per_key: limiter(config.per_key, num_keys),
            per_ip: limiter(config.per_ip, if config.per_ip.is_some() { NUM_ADDRESS_SLOTS } else { 0 }),
            hasher: RandomState::new(),
            clock,
        }
    }

    /// Takes `num_requests` from the caller's own budget and from the common one; `None` if neither has a limit.
    /// The own one comes first: a caller over its limit takes nothing from the others.
    ///
    /// # Errors
    /// [`Exceeded`], and nothing is taken from the budget that had too little.
    pub fn admit(
        &self,
        principal: &Principal,
        address: IpAddr,
        num_requests: NonZeroU32,
    ) -> Result<Option<RateStatus>, Exceeded> {
        let own = match principal {
            Principal::ApiKey(index) => self.take(self.per_key.as_ref(), *index, num_requests)?,
            Principal::Anonymous => self.take(self.per_ip.as_ref(), self.address_slot(address), num_requests)?,
        };
        let common = self.take(self.global.as_ref(), 0, num_requests)?;
        Ok(own.into_iter().chain(common).min_by_key(|status| status.remaining))
    }

    /// Counts a request that showed no valid key, by its address alone.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn admit_stranger(&self, address: IpAddr) -> Result<Option<RateStatus>, Exceeded> {
        self.take(self.per_ip.as_ref(), self.address_slot(address), NonZeroU32::MIN)
    }

    fn take(
        &self,
        limiter: Option<&Limiter<C>>,
        slot: usize,
        num_requests: NonZeroU32,
    ) -> Result<Option<RateStatus>, Exceeded> {
        let Some(limiter) = limiter else { return Ok(None) };
        match limiter.check_key_n(&slot, num_requests) {
            Ok(Ok(snapshot)) => Ok(Some(admitted(&snapshot))),
            Ok(Err(not_until)) => Err(self.refused(&not_until)),
            // More at once than a second allows: it empties the budget, as single requests would.
            Err(_insufficient_capacity) => match limiter.check_key(&slot) {
                Ok(snapshot) => {
                    let left = NonZeroU32::new(snapshot.remaining_burst_capacity());
                    let taken = left.and_then(|left| limiter.check_key_n(&slot, left).ok()?.ok());
                    Ok(Some(admitted(&taken.unwrap_or(snapshot))))
                }
                Err(not_until) => Err(self.refused(&not_until)),
            },
        }
    }

    fn refused(&self, not_until: &NotUntil<C::Instant>) -> Exceeded {
        let wait = not_until.wait_time_from(self.clock.now());
        Exceeded(RateStatus { limit: not_until.quota().burst_size().get(), remaining: 0, reset: whole_seconds(wait) })
    }

    fn address_slot(&self, address: IpAddr) -> usize {
        // One subscriber has a whole IPv6 /64.
        let subscriber = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            address @ IpAddr::V4(_) => address,
        };
        self.hasher.hash_one(subscriber) as usize % NUM_ADDRESS_SLOTS
    }
}

fn admitted(snapshot: &StateSnapshot) -> RateStatus {
    let quota = snapshot.quota();
    let limit = quota.burst_size().get();
    let remaining = snapshot.remaining_burst_capacity();
    let reset = quota.replenish_interval() * limit.saturating_sub(remaining);
    RateStatus { limit, remaining, reset: whole_seconds(reset) }
}

/// Rounded up and at least one: a `Retry-After` of 0 invites the next refusal.
fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn limits(global: u32, per_key: u32, per_ip: u32) -> (RateLimits<FakeRelativeClock>, FakeRelativeClock) {
        let config = RateLimitConfig {
            global: NonZeroU32::new(global),
            per_key: NonZeroU32::new(per_key),
            per_ip: NonZeroU32::new(per_ip),
        };
        let clock = FakeRelativeClock::default();
        (RateLimits::with_clock(&config, 2, clock.clone()), clock)
    }

    fn num_admitted(limits: &RateLimits<FakeRelativeClock>, principal: &Principal, address: IpAddr) -> usize {
        (0..100).take_while(|_| limits.admit(principal, address, ONE).is_ok()).count()
    }

    #[test]
    fn each_key_has_its_own_budget_and_it_refills() {
        let (limits, clock) = limits(0, 10, 0);
        assert_eq!(num_admitted(&limits, &Principal::ApiKey(0), HERE), 10);
        assert_eq!(num_admitted(&limits, &Principal::ApiKey(1), HERE), 10);
        clock.advance(Duration::from_millis(500));
        assert_eq!(num_admitted(&limits, &Principal::ApiKey(0), HERE), 5);
    }

    #[test]
    fn a_caller_over_its_limit_takes_nothing_from_the_others() {
        let (limits, _clock) = limits(15, 10, 0);
        for _ in 0..100 {
            let _ = limits.admit(&Principal::ApiKey(0), HERE, ONE);
        }
        assert_eq!(num_admitted(&limits, &Principal::ApiKey(1), HERE), 5);
    }

    #[test]
    fn addresses_without_a_key_are_told_apart_and_an_ipv6_subscriber_is_one() {
        let (limits, _clock) = limits(0, 0, 3);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(num_admitted(&limits, &Principal::Anonymous, address("10.0.0.1")), 3);
        assert_eq!(num_admitted(&limits, &Principal::Anonymous, address("::ffff:10.0.0.1")), 0);
        assert_eq!(num_admitted(&limits, &Principal::Anonymous, address("2001:db8::1")), 3);
        assert_eq!(num_admitted(&limits, &Principal::Anonymous, address("2001:db8::ffff")), 0);
        assert_eq!(num_admitted(&limits, &Principal::ApiKey(0), address("10.0.0.1")), 100);
    }

    #[test]
    fn headers_count_down_and_a_refusal_says_when_in_whole_seconds() {
        let (limits, _clock) = limits(0, 2, 0);
        let status = |outcome: Result<Option<RateStatus>, Exceeded>| match outcome {
            Ok(status) => (true, status.unwrap()),
            Err(Exceeded(status)) => (false, status),
        };
        let second = Duration::from_secs(1);
        let admit = || status(limits.admit(&Principal::ApiKey(0), HERE, ONE));
        assert_eq!(admit(), (true, RateStatus { limit: 2, remaining: 1, reset: second }));
        assert_eq!(admit(), (true, RateStatus { limit: 2, remaining: 0, reset: second }));
        assert_eq!(admit(), (false, RateStatus { limit: 2, remaining: 0, reset: second }));
    }

    #[test]
    fn a_batch_costs_its_messages_and_one_too_large_empties_the_budget() {
        let (limits, clock) = limits(0, 10, 0);
        let batch = |size| limits.admit(&Principal::ApiKey(0), HERE, NonZeroU32::new(size).unwrap()).is_ok();
        assert!(batch(8));
        assert!(!batch(3));
        assert!(batch(2));
        clock.advance(Duration::from_secs(1));
        assert!(batch(64));
        assert!(!batch(1));
    }

    #[test]
    fn without_limits_everything_passes_and_no_header_is_written() {
        let (limits, _clock) = limits(0, 0, 0);
        assert_eq!(limits.admit(&Principal::Anonymous, HERE, ONE).unwrap(), None);
    }
}
