//! What others do to the rules: nftables notifies of every change, and names who made it.
//!
//! Nobody else can change an owned table, so what is looked for is a foreign chain that translates
//! destinations before ours does. That rules of ours are gone (those in iptables belong to nobody)
//! shows in the beats: see [`Drift::note_rules`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outrigger_config::control::{Drift as Told, DriftEvent, ForeignChain, RulesTrouble};

use super::netlink::{Message, attribute, attributes, messages, number, text};

/// Remembered; what `status` shows.
const RECENT: usize = 10;
/// Foreign rules remembered: nobody's ruleset may grow this process without bound.
const MAX_RULES: usize = 4096;
/// The priority of our own translating chain.
const OUR_PRIORITY: i32 = -150;

const NEW_CHAIN: u8 = libc::NFT_MSG_NEWCHAIN as u8;
const DEL_CHAIN: u8 = libc::NFT_MSG_DELCHAIN as u8;
const NEW_RULE: u8 = libc::NFT_MSG_NEWRULE as u8;
const DEL_RULE: u8 = libc::NFT_MSG_DELRULE as u8;
const DEL_TABLE: u8 = libc::NFT_MSG_DELTABLE as u8;
const NEW_GENERATION: u8 = libc::NFT_MSG_NEWGEN as u8;

/// Family and name.
type TableKey = (u8, String);

#[derive(Debug, Default)]
pub(super) struct Drift {
    pub(super) readers: usize,
    /// Chains that translate locally made connections before ours.
    ahead: BTreeSet<(TableKey, String)>,
    /// Rules that translate destinations, by chain and handle. Those found at install have no
    /// handle that was told, and stand until their chain goes.
    translating: BTreeMap<TableKey, BTreeSet<(String, Vec<u8>)>>,
    shadowed: BTreeSet<(TableKey, String)>,
    trouble: Option<RulesTrouble>,
    count: u64,
    recent: VecDeque<DriftEvent>,
    pub(super) overruns: u64,
}

impl Drift {
    /// What stood before ours when the capture was installed.
    pub(super) fn found(&mut self, ahead: Vec<ForeignChain>, at: u64) {
        for chain in ahead {
            let Some(family) = family_number(&chain.family) else {
                continue;
            };
            let table = (family, chain.table);
            if chain.translates {
                let rule = (chain.chain.clone(), Vec::new());
                self.translating
                    .entry(table.clone())
                    .or_default()
                    .insert(rule);
            }
            self.ahead.insert((table, chain.chain));
        }
        self.settle("somebody, before the capture", at);
    }

    pub(super) fn take(&mut self, datagram: &[u8], at: u64) {
        for message in messages(datagram) {
            let [subsystem, kind] = message.kind.to_be_bytes();
            if subsystem == libc::NFNL_SUBSYS_NFTABLES as u8 {
                self.message(kind, message, at);
            }
        }
    }

    fn message(&mut self, kind: u8, message: Message<'_>, at: u64) {
        const NAME: u16 = 1;
        const PROCESS: u16 = 3;
        match kind {
            NEW_CHAIN => self.new_chain(message),
            DEL_CHAIN => self.gone_chain(message),
            NEW_RULE => self.new_rule(message),
            DEL_RULE => self.gone_rule(message),
            DEL_TABLE => {
                if let Some(name) = text(message.attributes, NAME) {
                    let key = (message.family, name);
                    self.ahead.retain(|(table, _)| *table != key);
                    self.translating.remove(&key);
                }
            }
            // The last of a transaction.
            NEW_GENERATION => {
                let who = text(message.attributes, PROCESS);
                self.settle(who.as_deref().unwrap_or("somebody"), at);
            }
            _ => {}
        }
    }

    fn new_chain(&mut self, message: Message<'_>) {
        const HOOK: u16 = 4;
        const TYPE: u16 = 7;
        const LOCAL_OUT: u32 = 3;
        let translates_ahead = || {
            let hook = attribute(message.attributes, HOOK)?;
            let is_nat = text(message.attributes, TYPE)? == "nat";
            let priority = number(hook, 2)?.cast_signed();
            Some(is_nat && number(hook, 1)? == LOCAL_OUT && priority < OUR_PRIORITY)
        };
        if let Some((table, chain)) = chain_of(message, 1, 3)
            && !is_ours(&table.1)
            && translates_ahead() == Some(true)
            && self.ahead.len() < MAX_RULES
        {
            self.ahead.insert((table, chain));
        }
    }

    fn gone_chain(&mut self, message: Message<'_>) {
        if let Some((table, chain)) = chain_of(message, 1, 3) {
            if let Some(rules) = self.translating.get_mut(&table) {
                rules.retain(|(of, _)| *of != chain);
            }
            self.ahead.remove(&(table, chain));
        }
    }

    fn new_rule(&mut self, message: Message<'_>) {
        const EXPRESSIONS: u16 = 4;
        const HANDLE: u16 = 3;
        let expressions = attribute(message.attributes, EXPRESSIONS).unwrap_or_default();
        let Some((table, chain)) = chain_of(message, 1, 2) else {
            return;
        };
        if is_ours(&table.1) || !attributes(expressions).any(|(_, e)| is_translation(e)) {
            return;
        }
        let known: usize = self.translating.values().map(BTreeSet::len).sum();
        if known < MAX_RULES {
            let handle = attribute(message.attributes, HANDLE).unwrap_or_default();
            let rules = self.translating.entry(table).or_default();
            rules.insert((chain, handle.to_vec()));
        }
    }

    fn gone_rule(&mut self, message: Message<'_>) {
        const HANDLE: u16 = 3;
        let handle = attribute(message.attributes, HANDLE).unwrap_or_default();
        if let Some((table, chain)) = chain_of(message, 1, 2)
            && let Some(rules) = self.translating.get_mut(&table)
        {
            rules.remove(&(chain, handle.to_vec()));
        }
    }

    /// Tells what has changed for us with a transaction of `who`.
    fn settle(&mut self, who: &str, at: u64) {
        let translates =
            |table: &TableKey| self.translating.get(table).is_some_and(|r| !r.is_empty());
        let now: BTreeSet<_> = self
            .ahead
            .iter()
            .filter(|(table, _)| translates(table))
            .cloned()
            .collect();
        let before = std::mem::replace(&mut self.shadowed, now.clone());
        for chain in now.difference(&before) {
            let what = format!(
                "{} translates destinations before the capture; by {who}",
                name(chain)
            );
            tracing::warn!("the capture is shadowed: {what}");
            self.count += 1;
            self.remember(what, at);
        }
        for chain in before.difference(&now) {
            let what = format!(
                "{} no longer translates before the capture; by {who}",
                name(chain)
            );
            tracing::info!("{what}");
            self.remember(what, at);
        }
    }

    /// The latest beat's evidence on our own rules, and what it was that spoke against them.
    pub(super) fn note_rules(&mut self, found: Option<(RulesTrouble, &str)>, at: u64) {
        let found = found.map(|(trouble, why)| match trouble {
            // To install again does not put ours before a chain that is asked earlier.
            RulesTrouble::Gone if !self.shadowed.is_empty() => (RulesTrouble::Overruled, why),
            trouble => (trouble, why),
        });
        let before = std::mem::replace(&mut self.trouble, found.map(|(trouble, _)| trouble));
        match found {
            Some((trouble, why)) if before != Some(trouble) => {
                let explanation = trouble.explanation();
                tracing::warn!("{explanation}: {why}");
                self.count += 1;
                self.remember(format!("{explanation}: {why}"), at);
            }
            None if before.is_some() => self.remember("the rules work again".into(), at),
            _ => {}
        }
    }

    /// No rules are held any more that anything could speak against.
    pub(super) fn forget_rules(&mut self) {
        self.trouble = None;
    }

    fn remember(&mut self, what: String, at: u64) {
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(DriftEvent { at, what });
    }

    pub(super) fn shadows(&self) -> usize {
        self.shadowed.len()
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn told(&self) -> Told {
        Told {
            is_watched: self.readers > 0,
            shadowed_by: self
                .shadowed
                .iter()
                .map(|((family, table), chain)| ForeignChain {
                    family: family_name(*family).into(),
                    table: table.clone(),
                    chain: chain.clone(),
                    translates: true,
                })
                .collect(),
            trouble: self.trouble,
            needs_repair: self.trouble.is_some_and(RulesTrouble::is_repairable),
            count: self.count,
            recent: self.recent.iter().cloned().collect(),
            overruns: self.overruns,
        }
    }
}

fn chain_of(message: Message<'_>, table: u16, chain: u16) -> Option<(TableKey, String)> {
    let name = |kind| text(message.attributes, kind);
    Some(((message.family, name(table)?), name(chain)?))
}

/// A redirect or a translation, nftables' own or one of iptables in its clothes.
fn is_translation(expression: &[u8]) -> bool {
    match text(expression, 1).as_deref() {
        Some("redir" | "nat") => true,
        Some("target") => attribute(expression, 2)
            .and_then(|target| text(target, 1))
            .is_some_and(|target| target == "REDIRECT" || target == "DNAT"),
        _ => false,
    }
}

fn is_ours(table: &str) -> bool {
    table.starts_with("outrigger_")
}

fn name(((family, table), chain): &(TableKey, String)) -> String {
    format!("table {} {table} chain {chain}", family_name(*family))
}

const FAMILIES: [(u8, &str); 3] = [
    (libc::NFPROTO_INET as u8, "inet"),
    (libc::NFPROTO_IPV4 as u8, "ip"),
    (libc::NFPROTO_IPV6 as u8, "ip6"),
];

fn family_name(number: u8) -> &'static str {
    let found = FAMILIES.iter().find(|(of, _)| *of == number);
    found.map_or("?", |(_, name)| name)
}

fn family_number(name: &str) -> Option<u8> {
    FAMILIES.iter().find(|(_, of)| *of == name).map(|(n, _)| *n)
}
