//! Measuring a candidate, in turn with a peer: A B B A, so that a clock that drifts favours neither.

use std::time::Duration;

use super::statistics::Spread;

/// Something that replays the same work again and again and can say how long it took.
pub struct Runner<'a, E> {
    /// Launches of one replay.
    pub launches: usize,
    /// Time of some replays on the device.
    pub timed: &'a mut dyn FnMut(usize) -> Result<Duration, E>,
}

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Measured time in all, warm-up apart.
    pub budget: Duration,
    /// A measurement has as many replays as take this long, so that starting and stopping do not count.
    pub block: Duration,
    /// At least so many rounds, even beyond the budget.
    pub least: usize,
}

impl Protocol {
    /// No more rounds than these, however short.
    const MOST: usize = 1000;

    /// The usual protocol for a time budget.
    pub fn new(budget: Duration) -> Self {
        Self { budget, block: Duration::from_millis(4), least: 3 }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Microseconds of a launch.
    pub candidate: Spread,
    /// The peer's.
    pub peer: Option<Spread>,
    /// Speed of the candidate by that of the peer, per round: above 1 the candidate is faster.
    pub ratio: Option<Spread>,
}

/// Measures the candidate, in turn with the peer if there is one.
///
/// # Errors
/// What a runner says.
pub fn race<E>(
    candidate: &mut Runner<'_, E>,
    mut peer: Option<&mut Runner<'_, E>>,
    protocol: &Protocol,
) -> Result<Outcome, E> {
    let replays = warm_up(candidate, protocol)?;
    let peer_replays = peer.as_deref_mut().map(|p| warm_up(p, protocol)).transpose()?;
    let (mut spent, mut rounds) = (Duration::ZERO, 0);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    while rounds < protocol.least || (spent < protocol.budget && rounds < Protocol::MOST) {
        let mut run = |runner: &mut Runner<'_, E>, replays: usize, into: &mut Vec<f64>| {
            let time = (runner.timed)(replays)?;
            spent += time;
            let us = time.as_secs_f64() * 1e6 / (replays * runner.launches) as f64;
            into.push(us);
            Ok::<f64, E>(us)
        };
        let first = run(candidate, replays, &mut ours)?;
        if let (Some(peer), Some(peer_replays)) = (peer.as_deref_mut(), peer_replays) {
            let second = run(peer, peer_replays, &mut theirs)?;
            let third = run(peer, peer_replays, &mut theirs)?;
            let fourth = run(candidate, replays, &mut ours)?;
            ratios.push((second + third) / (first + fourth).max(f64::MIN_POSITIVE));
        }
        rounds += 1;
    }
    let none = Spread { median: f64::NAN, lower_quartile: f64::NAN, upper_quartile: f64::NAN, samples: 0 };
    Ok(Outcome { candidate: Spread::of(ours).unwrap_or(none), peer: Spread::of(theirs), ratio: Spread::of(ratios) })
}

/// Runs a few times, and returns how many replays fill a block.
fn warm_up<E>(runner: &mut Runner<'_, E>, protocol: &Protocol) -> Result<usize, E> {
    (runner.timed)(1)?;
    let once = (runner.timed)(1)?.as_secs_f64().max(1e-7);
    let replays = (protocol.block.as_secs_f64() / once).ceil().clamp(1.0, 20_000.0) as usize;
    if replays > 1 {
        (runner.timed)(replays)?;
    }
    Ok(replays)
}

/// How many copies of the operands to rotate.
///
/// Together they exceed twice the L2 cache, so that a launch finds nothing of the one before; there are at least four (two
/// where there is no device cache to get past), so that a replay is no single launch. `memory` is what they may take; one
/// copy is always taken.
pub fn copies(bytes: usize, l2: usize, memory: usize) -> usize {
    let least = if l2 == 0 { 2 } else { 4 };
    let wanted = (2 * l2 / bytes.max(1) + 1).max(least);
    wanted.min(MOST_COPIES).min(memory / bytes.max(1)).max(1)
}

/// Launches of a replay at most: what remains in the cache of the smallest products is said in the report.
const MOST_COPIES: usize = 1024;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use super::*;

    /// A runner that takes `us` a replay and writes its name down.
    fn fake<'a>(
        log: &'a RefCell<Vec<(char, usize)>>,
        name: char,
        us: u64,
    ) -> impl FnMut(usize) -> Result<Duration, Infallible> + 'a {
        move |replays| {
            log.borrow_mut().push((name, replays));
            Ok(Duration::from_micros(us * replays as u64))
        }
    }

    #[test]
    fn the_order_is_a_b_b_a() {
        let log = RefCell::default();
        let (mut a, mut b) = (fake(&log, 'A', 100), fake(&log, 'B', 300));
        let protocol = Protocol { budget: Duration::ZERO, block: Duration::from_micros(900), least: 3 };
        let mut candidate = Runner { launches: 10, timed: &mut a };
        let outcome = race(&mut candidate, Some(&mut Runner { launches: 5, timed: &mut b }), &protocol).unwrap();
        // 10 us a launch against 60.
        assert!((outcome.candidate.median - 10.0).abs() < 1e-9 && outcome.candidate.samples == 6);
        assert!((outcome.peer.unwrap().median - 60.0).abs() < 1e-9);
        assert!((outcome.ratio.unwrap().median - 6.0).abs() < 1e-9 && outcome.ratio.unwrap().samples == 3);
        let log = log.take();
        let names: String = log.iter().map(|(name, _)| name).collect();
        assert_eq!(names, "AAABBB".to_owned() + &"ABBA".repeat(3));
        // Blocks of 900 us.
        assert!(log[6..].iter().all(|&(name, replays)| replays == if name == 'A' { 9 } else { 3 }));
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        // The clock halves after each round: the median time says nothing, the ratio stays 2.
        let calls = RefCell::new((0u32, 0u32));
        let slower = |n: u32| 1u64 << (n.saturating_sub(2) / 2);
        let mut a = |replays: usize| {
            let n = &mut calls.borrow_mut().0;
            *n += 1;
            Ok::<_, Infallible>(Duration::from_micros(1000 * slower(*n - 1) * replays as u64))
        };
        let mut b = |replays: usize| {
            let n = &mut calls.borrow_mut().1;
            *n += 1;
            Ok::<_, Infallible>(Duration::from_micros(2000 * slower(*n - 1) * replays as u64))
        };
        let protocol = Protocol { budget: Duration::ZERO, block: Duration::ZERO, least: 5 };
        let mut peer = Runner { launches: 1, timed: &mut b };
        let outcome = race(&mut Runner { launches: 1, timed: &mut a }, Some(&mut peer), &protocol).unwrap();
        let ratio = outcome.ratio.unwrap();
        assert!((ratio.median - 2.0).abs() < 1e-12 && ratio.range() < 1e-12, "{ratio:?}");
        assert!(outcome.candidate.range() > 1.0);
    }

    #[test]
    fn the_budget_ends_a_race_and_alone_it_is_no_race() {
        let log = RefCell::default();
        let mut a = fake(&log, 'A', 1000);
        let protocol = Protocol { budget: Duration::from_millis(40), block: Duration::from_millis(4), least: 3 };
        let outcome = race(&mut Runner { launches: 1, timed: &mut a }, None, &protocol).unwrap();
        assert_eq!((outcome.candidate.samples, outcome.peer, outcome.ratio), (10, None, None));
    }

    #[test]
    fn an_error_ends_a_race() {
        let mut fails = |_| Err("broken");
        let protocol = Protocol::new(Duration::ZERO);
        assert_eq!(race(&mut Runner { launches: 1, timed: &mut fails }, None, &protocol), Err("broken"));
    }

    #[test]
    fn rotated_copies_exceed_twice_the_cache() {
        let l2 = 50 << 20;
        for bytes in [1 << 10, 300_000, 1 << 20, 33 << 20, 134 << 20, 4 << 30] {
            let copies = copies(bytes, l2, 8 << 30);
            assert!(copies * bytes > 2 * l2 || copies == MOST_COPIES, "{bytes}");
            assert!(copies * bytes <= 8 << 30 && copies >= if bytes < 2 << 30 { 4 } else { 2 }, "{bytes}: {copies}");
        }
        // One is needed whatever the memory; without a cache two are enough.
        assert_eq!((copies(9 << 30, l2, 8 << 30), copies(100, 0, 8 << 30)), (1, 2));
    }
}
