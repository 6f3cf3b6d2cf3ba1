//! What is counted for each route, by its name and so across reloads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Totals, Traffic};

/// Routes counted one by one; beyond that those that went out of force longest ago make room, and
/// where all are in force the rest is counted together.
const MAX_ROUTES: usize = 1000;

/// The name under which the rest is told.
const OTHER: &str = "other";

#[derive(Debug, Default)]
pub(crate) struct RouteTraffic(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<Arc<str>, Known>,
    /// Of routes for which there is no room.
    other: Arc<Traffic>,
    /// What was counted for routes that made room, so that no total ever falls.
    forgotten: Totals,
    asked: u64,
}

#[derive(Debug)]
struct Known {
    traffic: Arc<Traffic>,
    /// When it was last asked for, as a number that only rises.
    asked: u64,
}

impl RouteTraffic {
    /// Where the route `name` is counted, by whoever holds it.
    pub(crate) fn of(&self, name: &Arc<str>) -> Arc<Traffic> {
        let mut state = self.lock();
        state.asked += 1;
        let asked = state.asked;
        if let Some(known) = state.known.get_mut(name) {
            known.asked = asked;
            return known.traffic.clone();
        }
        if state.known.len() >= MAX_ROUTES && !state.forget_one() {
            return state.other.clone();
        }
        let traffic = Arc::<Traffic>::default();
        let known = Known {
            traffic: traffic.clone(),
            asked,
        };
        state.known.insert(name.clone(), known);
        traffic
    }

    /// Every route that was ever used, in the order of names.
    pub(crate) fn totals(&self) -> Vec<(Arc<str>, Totals)> {
        let state = self.lock();
        let known = state.known.iter();
        let mut totals: Vec<_> = known
            .map(|(name, known)| (name.clone(), known.traffic.totals()))
            .collect();
        totals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut other = state.forgotten.clone();
        other.merge(&state.other.totals());
        if other != Totals::default() {
            totals.push((OTHER.into(), other));
        }
        totals
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The one that was asked for longest ago and that nobody holds; false if all are held.
    fn forget_one(&mut self) -> bool {
        let unused = (self.known.iter()).filter(|(_, k)| Arc::strong_count(&k.traffic) == 1);
        let oldest = unused.min_by_key(|(_, known)| known.asked);
        let Some(name) = oldest.map(|(name, _)| name.clone()) else {
            return false;
        };
        if let Some(known) = self.known.remove(&name) {
            self.forgotten.merge(&known.traffic.totals());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::test_record;

    fn requests(totals: &Totals) -> u64 {
        totals.outcomes.values().sum()
    }

    #[test]
    fn a_route_is_counted_on_after_a_reload() {
        let routes = RouteTraffic::default();
        let name: Arc<str> = "api".into();
        routes.of(&name).observe(0, &test_record(), false);
        routes.of(&name).observe(1, &test_record(), false);
        let totals = routes.totals();
        assert_eq!((&*totals[0].0, requests(&totals[0].1)), ("api", 2));
        assert_eq!(totals.len(), 1);
    }

    #[test]
    fn routes_without_end_are_told_together_and_no_count_is_lost() {
        let routes = RouteTraffic::default();
        let name = |n: usize| -> Arc<str> { format!("r{n}").into() };
        for n in 0..3 * MAX_ROUTES {
            routes.of(&name(n)).observe(0, &test_record(), false);
        }
        let held: Vec<_> = (0..2 * MAX_ROUTES).map(|n| routes.of(&name(n))).collect();
        held.iter()
            .for_each(|traffic| traffic.observe(0, &test_record(), false));
        let totals = routes.totals();
        assert_eq!(totals.len(), MAX_ROUTES + 1);
        assert_eq!(&*totals.last().expect("some").0, OTHER);
        let sum: u64 = totals.iter().map(|(_, t)| requests(t)).sum();
        assert_eq!(sum, 5 * MAX_ROUTES as u64);
    }
}
