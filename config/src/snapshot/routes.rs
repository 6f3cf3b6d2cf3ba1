//! Which route holds for a connection or request, and what it says.
//!
//! The first route that holds decides. So that ten thousand of them cost what ten do, each is filed
//! once ([`index`]); a lookup sees only the files that the subject can be in, and takes the first
//! route of all of them.

pub(crate) mod covers;
mod forwarding;
mod holds;
mod index;
pub(crate) mod path;
mod subject;

use std::{collections::HashMap, sync::Arc};

use self::{
    holds::holds,
    index::Index,
    path::normal_pattern,
    subject::{View, normal_name},
};
use super::RequestPolicy;
use crate::{Cluster, Labels, Match, ORIGINAL_DESTINATION, PathMatch, Redirect, Respond, Route};

pub use subject::{Headers, HttpRequest, NoHeaders, Subject};

/// One route, ready for use. It is all that a request keeps of a snapshot.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// Which of the file's routes it is, from 0.
    pub index: usize,
    pub name: Arc<str>,
    /// As written, what is compared in its normal form: every policy that needs no compiling is read
    /// from here.
    pub settings: Route,
    /// Where traffic goes, by share; none if the route answers itself.
    pub branches: Box<[Branch]>,
    /// In the order of `settings.mirror`.
    pub mirrors: Box<[Target]>,
    /// Its time limits and retries, if it asks for any.
    pub policy: Option<Arc<RequestPolicy>>,
}

/// A target of a route, and how much of the traffic it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    pub target: Target,
    pub subset: Labels,
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Cluster(Arc<Cluster>),
    OriginalDestination,
}

/// What becomes of traffic that a route holds for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action<'a> {
    /// It goes to one of these.
    Forward(&'a [Branch]),
    Redirect(&'a Redirect),
    Respond(&'a Respond),
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Decision>>,
    index: Index,
    /// Whether any route looks at the path, whose normal form is not for nothing.
    asks_path: bool,
}

impl Decision {
    pub fn action(&self) -> Action<'_> {
        match (&self.settings.redirect, &self.settings.respond) {
            (Some(redirect), _) => Action::Redirect(redirect),
            (None, Some(respond)) => Action::Respond(respond),
            (None, None) => Action::Forward(&self.branches),
        }
    }

    /// Which branch traffic goes to; `draw`, even over 32 bits, is asked for only where there is a
    /// choice. None if the route answers itself.
    pub fn branch(&self, draw: impl FnOnce() -> u32) -> Option<usize> {
        if self.branches.len() < 2 {
            return (!self.branches.is_empty()).then_some(0);
        }
        let total: u64 = self.branches.iter().map(|b| u64::from(b.weight)).sum();
        let mut left = (u64::from(draw()) * total) >> 32;
        self.branches.iter().position(|branch| {
            let weight = u64::from(branch.weight);
            let is_here = left < weight;
            left = left.saturating_sub(weight);
            is_here
        })
    }
}

impl RouteTable {
    /// A route that names a cluster which is not in `clusters` is left out; a checked file has none.
    pub(super) fn compile(routes: Vec<Route>, clusters: &HashMap<Arc<str>, Arc<Cluster>>) -> Self {
        let target = |name: &str| match clusters.get(name) {
            Some(cluster) => Some(Target::Cluster(cluster.clone())),
            None => (name == ORIGINAL_DESTINATION).then_some(Target::OriginalDestination),
        };
        let mut table = Self::default();
        for (index, mut route) in routes.into_iter().enumerate() {
            let one = route.cluster.iter().map(|name| (name, &route.subset, 1));
            let shares = route
                .split
                .iter()
                .map(|s| (&s.cluster, &s.subset, s.weight));
            let branches = one.chain(shares).map(|(name, subset, weight)| {
                Some(Branch {
                    target: target(name)?,
                    subset: subset.clone(),
                    weight,
                })
            });
            let branches = branches.collect::<Option<_>>();
            let mirrors = route.mirror.iter().map(|m| target(&m.cluster));
            let (Some(branches), Some(mirrors)) = (branches, mirrors.collect::<Option<_>>()) else {
                continue;
            };
            route.matches = normal(&route.matches);
            let is_last = route.matches == Match::default();
            table.asks_path |= route.matches.path.is_some();
            let name = route.name_at(index).into();
            table.routes.push(Arc::new(Decision {
                index,
                name,
                policy: RequestPolicy::of_route(&route),
                settings: route,
                branches,
                mirrors,
            }));
            // Nothing after it is ever reached.
            if is_last {
                break;
            }
        }
        table.index = Index::of(table.routes.iter().map(|d| &d.settings.matches).enumerate());
        table
    }

    /// The route that holds for `subject`; none means where it was dialled.
    pub fn decide(&self, subject: &Subject<'_>) -> Option<&Arc<Decision>> {
        self.routes.get(self.position(subject)?)
    }

    /// The same, as its place in the order of [`Self::iter`].
    pub fn position(&self, subject: &Subject<'_>) -> Option<usize> {
        let view = View::of(subject, self.asks_path);
        let mut first = None;
        self.index.look_up(&view.probe(), &mut |filed| {
            let before = first.unwrap_or(usize::MAX);
            let mut ahead = filed.iter().take_while(|position| **position < before);
            let found =
                ahead.find(|position| holds(&self.routes[**position].settings.matches, &view));
            first = found.copied().or(first);
        });
        first
    }

    /// For a `subject` of whose contents nothing is known: the routes before the one that holds which
    /// would hold for some contents.
    pub fn undecided(&self, subject: &Subject<'_>) -> impl Iterator<Item = &Arc<Decision>> {
        let is_known = subject.request.is_some() || subject.sni.is_some();
        let end = match self.position(subject) {
            _ if is_known => 0,
            Some(position) => position,
            None => self.routes.len(),
        };
        let view = View::of(subject, false);
        self.routes[..end].iter().filter(move |decision| {
            let Match {
                destination, port, ..
            } = decision.settings.matches;
            let outside = Match {
                destination,
                port,
                ..Match::default()
            };
            holds(&outside, &view)
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Decision>> {
        self.routes.iter()
    }
}

/// What is compared in its normal form: names in lower case, paths without what can be written in
/// several ways.
pub(crate) fn normal(matches: &Match) -> Match {
    let mut normal = matches.clone();
    for name in [&mut normal.host, &mut normal.sni].into_iter().flatten() {
        *name = normal_name(name).into_owned();
    }
    for condition in &mut normal.headers {
        condition.name.make_ascii_lowercase();
    }
    if let Some(
        PathMatch::Exact(path) | PathMatch::Prefix(path) | PathMatch::SeparatedPrefix(path),
    ) = &mut normal.path
    {
        *path = normal_pattern(path);
    }
    normal
}

#[cfg(test)]
mod tests;
