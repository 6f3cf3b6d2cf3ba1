//! A configuration as the data plane uses it: compiled once, never changed.

mod policy;
pub(crate) mod routes;

use std::{collections::HashMap, sync::Arc};

use crate::{Cluster, Settings};

pub use policy::RequestPolicy;
pub use routes::{
    Action, Branch, Decision, Headers, HttpRequest, NoHeaders, RouteTable, Subject, Target,
};

/// Everything that one configuration says. Requests hold the parts that they need, each in an `Arc`
/// of its own, so that none holds the whole of an old one in memory.
#[derive(Debug)]
pub struct Snapshot {
    /// Rises by one with each snapshot that takes the place of another; the first is 1.
    pub generation: u64,
    /// What applies to all traffic; its `clusters` and `routes` are empty, for they are here.
    pub settings: Arc<Settings>,
    /// By name. A cluster that is the same in two snapshots is one `Arc` in both.
    pub clusters: HashMap<Arc<str>, Arc<Cluster>>,
    /// `defaults` as a cluster, if they ask for anything.
    pub defaults: Option<Arc<Cluster>>,
    /// Time limits and retries of `defaults`.
    pub default_policy: Option<Arc<RequestPolicy>>,
    pub routes: RouteTable,
}

/// The names of the clusters that are not the same in two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<Arc<str>>,
    pub removed: Vec<Arc<str>>,
    pub changed: Vec<Arc<str>>,
}

impl Snapshot {
    /// From settings without a problem, and what they take the place of.
    pub fn compile(mut settings: Settings, before: Option<&Self>) -> Self {
        let clusters: HashMap<_, _> = std::mem::take(&mut settings.clusters)
            .into_iter()
            .map(|cluster| {
                let same = before
                    .and_then(|b| b.clusters.get_key_value(cluster.name.as_str()))
                    .filter(|(_, old)| ***old == cluster);
                match same {
                    Some((name, old)) => (name.clone(), old.clone()),
                    None => (cluster.name.as_str().into(), Arc::new(cluster)),
                }
            })
            .collect();
        let routes = RouteTable::compile(std::mem::take(&mut settings.routes), &clusters);
        let settings = match before {
            Some(before) if *before.settings == settings => before.settings.clone(),
            _ => Arc::new(settings),
        };
        let defaults = settings
            .defaults
            .as_cluster(settings.timeouts.connect)
            .map(|cluster| {
                let same = before.and_then(|b| b.defaults.as_ref());
                match same.filter(|old| ***old == cluster) {
                    Some(same) => same.clone(),
                    None => Arc::new(cluster),
                }
            });
        Self {
            defaults,
            default_policy: RequestPolicy::of_defaults(&settings.defaults),
            generation: before.map_or(1, |b| b.generation + 1),
            settings,
            clusters,
            routes,
        }
    }

    /// What has come, gone and changed since `before`, each in the order of names.
    pub fn changes_since(&self, before: &Self) -> Changes {
        let mut changes = Changes::default();
        for (name, cluster) in &self.clusters {
            match before.clusters.get(name) {
                None => changes.added.push(name.clone()),
                Some(old) if !Arc::ptr_eq(old, cluster) => changes.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        let gone = before
            .clusters
            .keys()
            .filter(|name| !self.clusters.contains_key(*name));
        changes.removed.extend(gone.cloned());
        for names in [
            &mut changes.added,
            &mut changes.removed,
            &mut changes.changed,
        ] {
            names.sort_unstable();
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn snapshot(text: &str, before: Option<&Snapshot>) -> Snapshot {
        Snapshot::compile(parse(text).unwrap(), before)
    }

    #[test]
    fn what_has_not_changed_is_shared_with_the_snapshot_before() {
        let cluster =
            |name: &str, port| format!("- {{ name: {name}, dns: {{ name: x, port: {port} }} }}\n");
        let first = snapshot(
            &format!(
                "clusters:\n{}{}{}",
                cluster("a", 1),
                cluster("b", 1),
                cluster("c", 1)
            ),
            None,
        );
        let second = snapshot(
            &format!(
                "clusters:\n{}{}{}",
                cluster("d", 1),
                cluster("b", 2),
                cluster("a", 1)
            ),
            Some(&first),
        );
        assert!(Arc::ptr_eq(&first.clusters["a"], &second.clusters["a"]));
        assert!(Arc::ptr_eq(&first.settings, &second.settings));
        assert_eq!((first.generation, second.generation), (1, 2));
        let changes = second.changes_since(&first);
        assert_eq!(
            changes,
            Changes {
                added: vec!["d".into()],
                removed: vec!["c".into()],
                changed: vec!["b".into()],
            }
        );
    }
}
