//! Which connections went past the capture, and why: logged, not touched.

use outrigger_config::{
    Settings,
    control::{BypassReason as Reason, Lease, application_probe_addresses},
};

use super::{
    Chain, Family, Hook, Match, ProxyIdentity, Rule, Verdict,
    build::{
        EXCLUDED_GIDS, EXCLUDED_PORTS, EXCLUDED_UIDS, INCLUDED_PORTS, LEASES, LINK_LOCAL_V6, bound,
        exclude_neighbours, exclude_proxy, excluded, has_every_port, in_scope, included, networks,
    },
};
use crate::host::Host;

const ENTRY: &str = "bypass";
const REASONS: &str = "bypassed";

pub(crate) fn is(chain: &Chain) -> bool {
    [ENTRY, REASONS].contains(&chain.name)
}

/// The capture's own conditions once more, in its order, with where the packet was going before
/// anybody translated it. Behind translation, so that a captured one is told by its answers.
pub(super) fn chains(
    settings: &Settings,
    host: &Host,
    proxy: &ProxyIdentity,
    families: &[Family],
    group: u16,
) -> [Chain; 2] {
    let scope = in_scope(&settings.capture.scope, host.cgroup.as_ref());
    let entry = Rule::new(
        [Match::PureSyn].into_iter().chain(scope),
        Verdict::Jump(REASONS),
    );
    let mut rules = exclude_proxy(proxy);
    rules.extend(exclude_neighbours(proxy, &host.neighbours));
    let port = settings.port();
    let captured = [Match::Translated, Match::ReplyPort(port)];
    rules.push(Rule::new(captured, Verdict::Return));
    let is_captured = |family: &Family| families.contains(family);
    for family in Family::ALL.into_iter().filter(|f| !is_captured(f)) {
        rules.push(Rule::new([Match::Family(family)], Verdict::Return));
    }
    let mut log = Log { rules, group };
    log.add(Reason::Loopback, [Match::OutLoopback]);
    if families.contains(&Family::V6) {
        log.add(Reason::LinkLocal, [Match::Destination(LINK_LOCAL_V6)]);
    }
    let exclude = &settings.capture.exclude;
    if !exclude.uids.is_empty() {
        log.add(Reason::ExcludedUid, [Match::SocketUidIn(EXCLUDED_UIDS)]);
    }
    if !exclude.gids.is_empty() {
        log.add(Reason::ExcludedGid, [Match::SocketGidIn(EXCLUDED_GIDS)]);
    }
    log.untracked(settings, families);
    for &family in families {
        if !networks(&exclude.cidrs, family).is_empty() {
            let set = excluded(family);
            let is_in = true;
            let to = Match::OriginallyTo { family, set, is_in };
            log.add(Reason::ExcludedCidr, [to]);
        }
    }
    if !exclude.ports.is_empty() {
        let set = EXCLUDED_PORTS;
        log.add(
            Reason::ExcludedPort,
            [Match::OriginalPort { set, is_in: true }],
        );
    }
    log.leave_what_is_not_included(settings, families);
    for &family in families {
        let source = Match::SourceIn(family, bound(family));
        log.add(Reason::BoundToDevice, [source]);
    }
    log.add(Reason::ForeignNat, [Match::Translated]);
    log.add(Reason::LocalDestination, [Match::DestinationLocal]);
    log.add(Reason::Lapsed, [Match::FamilyNotIn(LEASES)]);
    log.add(Reason::OlderEntry, [Match::Tcp]);
    [
        Chain {
            name: ENTRY,
            hook: Some(Hook::BYPASS),
            rules: vec![entry],
        },
        Chain {
            name: REASONS,
            hook: None,
            rules: log.rules,
        },
    ]
}

/// The proxy's own dials with an application's socket are no connection of the application.
pub(super) fn application_probes(lease: &Lease) -> impl Iterator<Item = Rule> + use<> {
    let targets = lease.beats.clone().into_iter();
    let targets = targets.flat_map(application_probe_addresses);
    targets.map(|target| Rule::new([Match::OriginallyAt(target)], Verdict::Return))
}

struct Log {
    rules: Vec<Rule>,
    group: u16,
}

impl Log {
    /// Beyond its rate the first rule does not match, and the next reason is not this packet's.
    fn add<const N: usize>(&mut self, reason: Reason, matches: [Match; N]) {
        let group = self.group;
        self.rules
            .push(Rule::new(matches.clone(), Verdict::Log { reason, group }));
        self.rules.push(Rule::new(matches, Verdict::Return));
    }

    /// No entry tells where such a packet was going, but nobody can have translated it either.
    fn untracked(&mut self, settings: &Settings, families: &[Family]) {
        let capture = &settings.capture;
        for &family in families {
            if !networks(&capture.exclude.cidrs, family).is_empty() {
                let to = Match::DestinationIn(family, excluded(family));
                self.add(Reason::ExcludedCidr, [Match::Untracked, to]);
            }
        }
        if !capture.exclude.ports.is_empty() {
            let to = Match::PortIn(EXCLUDED_PORTS);
            self.add(Reason::ExcludedPort, [Match::Untracked, to]);
        }
        for &family in families {
            let to = if networks(&capture.include.cidrs, family).is_everything() {
                Match::Family(family)
            } else {
                Match::DestinationIn(family, included(family))
            };
            let port = if has_every_port(&capture.include.ports) {
                Match::Tcp
            } else {
                Match::PortIn(INCLUDED_PORTS)
            };
            self.add(Reason::Untracked, [Match::Untracked, to, port]);
        }
        self.rules
            .push(Rule::new([Match::Untracked], Verdict::Return));
    }

    fn leave_what_is_not_included(&mut self, settings: &Settings, families: &[Family]) {
        let include = &settings.capture.include;
        let is_in = false;
        let mut leave = |m| self.rules.push(Rule::new([m], Verdict::Return));
        for &family in families {
            if !networks(&include.cidrs, family).is_everything() {
                let set = included(family);
                leave(Match::OriginallyTo { family, set, is_in });
            }
        }
        if !has_every_port(&include.ports) {
            let set = INCLUDED_PORTS;
            leave(Match::OriginalPort { set, is_in });
        }
    }
}
