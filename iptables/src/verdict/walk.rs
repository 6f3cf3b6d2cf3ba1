//! The order of things: hooks, chains by priority, jumps, and the two ways of a rule in doubt.

use std::{cell::Cell, collections::BTreeMap};

use super::{
    Connection, End, Event, Matched, Surroundings, Verdict, Way,
    machine::{self, Action, Ruled},
    packet::Packet,
};
use crate::ruleset::{
    BaseChain, ChainKind, Hook, RuleAt, Ruleset, Table, TableFamily, Verdict as RuleVerdict,
};

/// More ways than these nobody would read.
const MOST_WAYS: usize = 64;
/// Five chains of one priority have 120; more are not met on hosts.
const MOST_ORDERS: usize = 720;
/// The kernel's own bound is 16.
const DEEPEST_JUMP: usize = 32;
/// All chains of NAT run at these two places among the others, whatever their own priority.
const NAT_OUT: i32 = -100;
const NAT_IN: i32 = 100;

pub(super) fn judge(
    ruleset: &Ruleset,
    connection: &Connection,
    surroundings: &dyn Surroundings,
) -> Verdict {
    // The kernel runs chains of one priority in the order in which they came, which it does not tell.
    let ties = ties(ruleset, connection.destination.is_ipv6());
    let follow = |order: Vec<(usize, usize)>| {
        let walk = Walk {
            ruleset,
            connection,
            surroundings,
            order,
            ways: Cell::new(1),
        };
        walk.all()
    };
    let Some(orders) = orders(&ties) else {
        let mut ways = follow(Vec::new());
        for way in &mut ways {
            let reason =
                format!("more than {MOST_ORDERS} orders of chains of one priority are possible");
            way.end = End::Unknown { reason };
        }
        return Verdict { ways };
    };
    let mut ways: Vec<Way> = Vec::new();
    let mut is_settled = true;
    for order in orders {
        let title = title(ruleset, &order);
        let mut found = follow(order);
        let is_like = |a: &[Way], b: &[Way]| a.iter().all(|a| b.iter().any(|b| a.end == b.end));
        if ways.is_empty() || !is_like(&found, &ways) || !is_like(&ways, &found) {
            is_settled &= ways.is_empty();
            for way in &mut found {
                way.assumptions.insert(0, title.clone());
            }
            ways.extend(found);
        }
    }
    if is_settled {
        // The order makes no difference.
        ways.iter_mut()
            .for_each(|way| drop(way.assumptions.remove(0)));
    }
    Verdict { ways }
}

/// Chains, each as table and place, that the kernel enters at one hook and one priority, and that can
/// make a difference.
fn ties(ruleset: &Ruleset, is_v6: bool) -> Vec<Vec<(usize, usize)>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (table, of) in ruleset.tables.iter().enumerate() {
        for (chain, of) in of.chains.iter().enumerate() {
            let Some(base) = &of.base else { continue };
            if applies(&ruleset.tables[table], is_v6)
                && (!of.rules.is_empty() || base.drops_by_policy)
            {
                let key = (base.hook, place(base), base.priority);
                groups.entry(key).or_default().push((table, chain));
            }
        }
    }
    groups
        .into_values()
        .filter(|group| group.len() > 1)
        .collect()
}

/// Every order of every group; `None`: too many.
fn orders(ties: &[Vec<(usize, usize)>]) -> Option<Vec<Vec<(usize, usize)>>> {
    let mut orders = vec![Vec::new()];
    for group in ties {
        let mut ordered = vec![Vec::new()];
        for _ in group {
            ordered = ordered
                .iter()
                .flat_map(|begun: &Vec<(usize, usize)>| {
                    let rest = group.iter().filter(|chain| !begun.contains(chain));
                    rest.map(|next| begun.iter().chain([next]).copied().collect())
                })
                .take(MOST_ORDERS + 1)
                .collect();
        }
        orders = orders
            .iter()
            .flat_map(|begun: &Vec<_>| {
                ordered
                    .iter()
                    .map(|group| [begun.as_slice(), group].concat())
            })
            .take(MOST_ORDERS + 1)
            .collect();
    }
    (orders.len() <= MOST_ORDERS).then_some(orders)
}

fn title(ruleset: &Ruleset, order: &[(usize, usize)]) -> String {
    let names = order.iter().map(|(table, chain)| {
        let table = &ruleset.tables[*table];
        format!("{} of {}", table.chains[*chain].name, table.title())
    });
    let names: Vec<_> = names.collect();
    format!(
        "chains of one priority come in this order: {}",
        names.join(", ")
    )
}

fn applies(table: &Table, is_v6: bool) -> bool {
    !table.is_dormant
        && match table.family {
            TableFamily::Inet => true,
            TableFamily::Ip => !is_v6,
            TableFamily::Ip6 => is_v6,
            TableFamily::Netdev | TableFamily::Bridge | TableFamily::Arp => false,
        }
}

/// Where a chain is among those of all kinds.
fn place(base: &BaseChain) -> i32 {
    match (base.kind, base.hook) {
        (ChainKind::Nat, Hook::Output | Hook::Prerouting) => NAT_OUT,
        (ChainKind::Nat, _) => NAT_IN,
        _ => base.priority,
    }
}

struct Walk<'r, 'a> {
    ruleset: &'r Ruleset,
    connection: &'a Connection,
    surroundings: &'r dyn Surroundings,
    /// Of chains that nothing else puts in order.
    order: Vec<(usize, usize)>,
    ways: Cell<usize>,
}

#[derive(Clone, Debug)]
struct State<'a> {
    packet: Packet<'a>,
    assumptions: Vec<String>,
    events: Vec<Event>,
    is_nat_done: bool,
}

/// What a chain comes to.
#[derive(Clone, Debug)]
enum Left {
    /// At its end, or by `return`.
    Behind,
    Accepted,
    /// By NAT, which no further chain of NAT is asked after.
    Translated,
    Ended(End, Option<RuleAt>),
}

/// A chain that the kernel enters by itself.
#[derive(Clone, Copy)]
struct Entry {
    table: usize,
    chain: usize,
    priority: i32,
    own_priority: i32,
}

impl<'a> Walk<'_, 'a> {
    fn all(&self) -> Vec<Way> {
        let connection = self.connection;
        let to = connection.destination;
        let route = match self.surroundings.route(
            to.ip(),
            connection.source,
            connection.mark,
            connection.uid,
        ) {
            Ok(route) => route,
            Err(reason) => {
                return vec![Way {
                    assumptions: Vec::new(),
                    end: End::NoRoute { reason },
                    decided_by: None,
                    redirected_by: None,
                    source: connection.source.unwrap_or(to.ip()),
                    events: Vec::new(),
                }];
            }
        };
        let source = connection.source.unwrap_or(route.source);
        let packet = Packet {
            connection,
            hook: Hook::Output,
            priority: 0,
            source,
            destination: to,
            original: to,
            original_source: source,
            mark: Ok(connection.mark),
            ct_mark: Ok(0),
            ct_zone: Ok(0),
            is_tos_changed: false,
            output: Some((route.device.clone(), route.device_index)),
            input: None,
            route,
            is_untracked: false,
            redirected_by: None,
            is_source_changed: false,
        };
        let state = State {
            packet,
            assumptions: Vec::new(),
            events: Vec::new(),
            is_nat_done: false,
        };
        let mut ways = Vec::new();
        let out = self.hook(state, Hook::Output, &mut ways);
        for mut state in out {
            let packet = &mut state.packet;
            packet.output = Some((packet.route.device.clone(), packet.route.device_index));
            // NAT of sources is decided anew.
            state.is_nat_done = false;
            for mut state in self.hook(state, Hook::Postrouting, &mut ways) {
                if !state.packet.route.is_local {
                    let packet = &state.packet;
                    let end = End::Leaves {
                        to: packet.destination,
                        device: packet.route.device.clone(),
                    };
                    ways.push(way(state, end, None));
                    continue;
                }
                let packet = &mut state.packet;
                packet.input = packet.output.take();
                for state in self.hook(state, Hook::Prerouting, &mut ways) {
                    for state in self.hook(state, Hook::Input, &mut ways) {
                        let end = End::Here {
                            to: state.packet.destination,
                        };
                        ways.push(way(state, end, None));
                    }
                }
            }
        }
        ways
    }

    /// Those that go on; the others are added to `ways`.
    fn hook(&self, mut state: State<'a>, hook: Hook, ways: &mut Vec<Way>) -> Vec<State<'a>> {
        state.packet.hook = hook;
        let mut states = vec![state];
        for entry in self.entries(hook) {
            let mut next = Vec::new();
            for mut state in states {
                let chain = &self.ruleset.tables[entry.table].chains[entry.chain];
                let base = chain.base.as_ref().expect("entries are base chains");
                state.packet.priority = entry.priority;
                let is_nat = base.kind == ChainKind::Nat;
                // The loopback device brings back what NAT has decided on before.
                let is_decided =
                    state.is_nat_done || matches!(hook, Hook::Prerouting | Hook::Input);
                if is_nat && (is_decided || state.packet.is_untracked) {
                    next.push(state);
                    continue;
                }
                let (mark, had_tos) = (state.packet.mark.clone(), state.packet.is_tos_changed);
                for (mut state, left) in self.chain(state, entry.table, entry.chain, 0, 0) {
                    let is_moved = match left {
                        Left::Behind if base.drops_by_policy => {
                            ways.push(way(state, End::Dropped, None));
                            continue;
                        }
                        Left::Ended(end, by) => {
                            ways.push(way(state, end, by));
                            continue;
                        }
                        Left::Behind | Left::Accepted => {
                            base.kind == ChainKind::Route
                                && (state.packet.mark != mark
                                    || state.packet.is_tos_changed != had_tos)
                        }
                        Left::Translated => {
                            state.is_nat_done = true;
                            hook == Hook::Output
                        }
                    };
                    match is_moved.then(|| self.route_anew(&mut state)) {
                        Some(Err(end)) => ways.push(way(state, end, None)),
                        Some(Ok(())) | None => next.push(state),
                    }
                }
            }
            states = next;
        }
        states
    }

    /// `Err`: where it ends for want of a route, or of knowledge of it.
    fn route_anew(&self, state: &mut State<'_>) -> Result<(), End> {
        let packet = &mut state.packet;
        let policy = self.surroundings.routing_policy();
        let unknown = |what: &str| End::Unknown {
            reason: format!("the route depends on {what}, by which this host chooses routes"),
        };
        let mark = match &packet.mark {
            Ok(mark) => *mark,
            Err(_) if !policy.by_mark => self.connection.mark,
            Err(reason) => return Err(unknown(&format!("the packet's mark ({reason})"))),
        };
        if packet.is_tos_changed && policy.by_tos {
            return Err(unknown("the packet's type of service"));
        }
        let (from, to) = (packet.source, packet.destination);
        let found = self
            .surroundings
            .route(to.ip(), Some(from), mark, self.connection.uid);
        packet.route = found.map_err(|_| End::NoRoute {
            reason: format!("no way from {from} to {to}, where the rules turn it"),
        })?;
        Ok(())
    }

    fn entries(&self, hook: Hook) -> Vec<Entry> {
        let is_v6 = self.connection.destination.is_ipv6();
        let mut found = Vec::new();
        for (table, of) in self.ruleset.tables.iter().enumerate() {
            if !applies(of, is_v6) {
                continue;
            }
            for (chain, of) in of.chains.iter().enumerate() {
                if let Some(base) = of.base.as_ref().filter(|base| base.hook == hook) {
                    found.push(Entry {
                        table,
                        chain,
                        priority: place(base),
                        own_priority: base.priority,
                    });
                }
            }
        }
        found.sort_by_key(|e| {
            let order = self.order.iter().position(|at| *at == (e.table, e.chain));
            (e.priority, e.own_priority, order)
        });
        found
    }

    fn chain(
        &self,
        mut state: State<'a>,
        table: usize,
        chain: usize,
        from: usize,
        depth: usize,
    ) -> Vec<(State<'a>, Left)> {
        let of = &self.ruleset.tables[table];
        let rules = &of.chains[chain].rules;
        let mut out = Vec::new();
        for (n, rule) in rules.iter().enumerate().skip(from) {
            let at = RuleAt {
                table,
                chain,
                rule: n,
            };
            let hook = state.packet.hook;
            let (packet, action, doubts, has_effect) =
                match machine::run(of, rule, &state.packet, self.surroundings) {
                    Ruled::No(reason) => {
                        state.events.push(Event {
                            hook,
                            at,
                            matched: Matched::No(reason),
                        });
                        continue;
                    }
                    Ruled::Yes {
                        packet,
                        action,
                        doubts,
                        has_effect,
                    } => (packet, action, doubts, has_effect),
                };
            if !doubts.is_empty() {
                let doubt = doubts.join(", ");
                state.events.push(Event {
                    hook,
                    at,
                    matched: Matched::Perhaps(doubt.clone()),
                });
                if !has_effect {
                    continue;
                }
                if self.ways.get() >= MOST_WAYS {
                    let reason = format!("more than {MOST_WAYS} ways are possible");
                    out.push((state, Left::Ended(End::Unknown { reason }, Some(at))));
                    return out;
                }
                self.ways.set(self.ways.get() + 1);
                let place = self.place(at);
                let mut other = state.clone();
                other
                    .assumptions
                    .push(format!("{place} does not match, which depends on {doubt}"));
                out.extend(self.chain(other, table, chain, n + 1, depth));
                state
                    .assumptions
                    .push(format!("{place} matches, which depends on {doubt}"));
            } else {
                state.events.push(Event {
                    hook,
                    at,
                    matched: Matched::Yes(describe(&action)),
                });
            }
            state.packet = *packet;
            let verdicts = match action {
                Action::OneOf(verdicts, reason) => {
                    let place = self.place(at);
                    let mut all = Vec::new();
                    for verdict in verdicts {
                        let mut state = state.clone();
                        self.ways.set(self.ways.get() + 1);
                        state.assumptions.push(format!(
                            "{place} comes to `{}`, by {reason}",
                            word(&verdict)
                        ));
                        all.push((state, Action::Verdict(verdict)));
                    }
                    all
                }
                action => vec![(state, action)],
            };
            let mut going_on = Vec::new();
            for (state, action) in verdicts {
                self.act(state, action, at, depth, &mut going_on, &mut out);
            }
            // All but one go on by themselves.
            let Some(last) = going_on.pop() else {
                return out;
            };
            for state in going_on {
                out.extend(self.chain(state, table, chain, n + 1, depth));
            }
            state = last;
        }
        out.push((state, Left::Behind));
        out
    }

    fn act(
        &self,
        mut state: State<'a>,
        action: Action,
        at: RuleAt,
        depth: usize,
        going_on: &mut Vec<State<'a>>,
        out: &mut Vec<(State<'a>, Left)>,
    ) {
        let table = &self.ruleset.tables[at.table];
        let unknown = |reason: &str| {
            Left::Ended(
                End::Unknown {
                    reason: reason.into(),
                },
                Some(at),
            )
        };
        match action {
            Action::Next | Action::OneOf(..) | Action::Verdict(RuleVerdict::Continue) => {
                going_on.push(state)
            }
            Action::Verdict(RuleVerdict::Accept) => out.push((state, Left::Accepted)),
            Action::Verdict(RuleVerdict::Drop) => {
                out.push((state, Left::Ended(End::Dropped, Some(at))))
            }
            Action::Verdict(RuleVerdict::Return) => out.push((state, Left::Behind)),
            Action::Verdict(RuleVerdict::Queue) => {
                out.push((state, unknown("a program in user space decides (queue)")));
            }
            Action::Verdict(RuleVerdict::Jump(ref name) | RuleVerdict::Goto(ref name)) => {
                let is_goto = matches!(action, Action::Verdict(RuleVerdict::Goto(_)));
                let Some(target) = table.chain(name).filter(|_| depth < DEEPEST_JUMP) else {
                    return out.push((state, unknown("a chain that could not be read")));
                };
                for (state, left) in self.chain(state, at.table, target, 0, depth + 1) {
                    match left {
                        Left::Behind if !is_goto => going_on.push(state),
                        left => out.push((state, left)),
                    }
                }
            }
            Action::Destination(Ok(to)) => {
                state.packet.destination = to;
                state.packet.redirected_by = Some(at);
                out.push((state, Left::Translated));
            }
            Action::Source(Ok(from)) => {
                state.packet.source = from;
                state.packet.is_source_changed = true;
                out.push((state, Left::Translated));
            }
            Action::Tproxy(Ok(to)) => {
                state.packet.redirected_by = Some(at);
                out.push((state, Left::Ended(End::Here { to }, Some(at))));
            }
            Action::Destination(Err(reason)) | Action::Tproxy(Err(reason)) => {
                state.packet.redirected_by = Some(at);
                out.push((state, unknown(&reason)));
            }
            Action::Source(Err(_)) => {
                state.packet.is_source_changed = true;
                out.push((state, Left::Translated));
            }
            Action::Unknown(reason) => out.push((state, unknown(&reason))),
            Action::Reject => out.push((state, Left::Ended(End::Rejected, Some(at)))),
        }
    }

    fn place(&self, at: RuleAt) -> String {
        let (table, chain, rule) = self.ruleset.rule(at);
        match rule.handle {
            Some(handle) => format!(
                "rule {} (handle {handle}) of chain {} in {}",
                rule.line,
                chain.name,
                table.title()
            ),
            None => format!(
                "rule {} of chain {} in {}",
                rule.line,
                chain.name,
                table.title()
            ),
        }
    }
}

fn way(state: State<'_>, end: End, decided_by: Option<RuleAt>) -> Way {
    Way {
        assumptions: state.assumptions,
        end,
        decided_by: decided_by.or(state.packet.redirected_by),
        redirected_by: state.packet.redirected_by,
        source: state.packet.source,
        events: state.events,
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Next => "goes on".into(),
        Action::Verdict(verdict) => word(verdict),
        Action::OneOf(..) => "one of several verdicts".into(),
        Action::Destination(Ok(to)) => format!("destination becomes {to}"),
        Action::Destination(Err(why)) => format!("destination becomes one that depends on {why}"),
        Action::Source(Ok(from)) => format!("source becomes {from}"),
        Action::Source(Err(why)) => format!("source becomes one that depends on {why}"),
        Action::Unknown(what) => format!("does what is not known: {what}"),
        Action::Reject => "reject".into(),
        Action::Tproxy(_) => "given to a local transparent socket".into(),
    }
}

fn word(verdict: &RuleVerdict) -> String {
    match verdict {
        RuleVerdict::Accept => "accept".into(),
        RuleVerdict::Drop => "drop".into(),
        RuleVerdict::Continue => "continue".into(),
        RuleVerdict::Return => "return".into(),
        RuleVerdict::Jump(chain) => format!("jump {chain}"),
        RuleVerdict::Goto(chain) => format!("goto {chain}"),
        RuleVerdict::Queue => "queue".into(),
    }
}
