//! What others do to the rules: nftables notifies of every change, and names who made it.
//!
//! Nobody else can change an owned table, so what is looked for is a foreign chain that translates
//! destinations before ours does, and (with iptables-nft, where both stand in one chain) a foreign rule
//! before our jump. That rules of ours are gone (those in iptables belong to nobody) shows in the beats:
//! see [`Drift::note_rules`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outrigger_config::control::{
    Drift as Told, DriftEvent, ForeignChain, InIptables, RulesTrouble,
};

use super::netlink::{Message, attribute, attributes, messages, number, text};

/// Remembered; what `status` shows.
const RECENT: usize = 10;
/// Foreign rules remembered: nobody's ruleset may grow this process without bound.
const MAX_RULES: usize = 4096;
/// The priority of our own translating chain, with nft and with iptables.
const NFT_PRIORITY: i32 = -150;
const IPTABLES_PRIORITY: i32 = -100;
/// Where iptables-nft keeps what translates locally made connections.
const IPTABLES_TABLE: &str = "nat";
const IPTABLES_CHAIN: &str = "OUTPUT";
/// How the names of chains of ours begin in iptables, a neighbour's too.
const OUR_CHAINS: &str = "OUTRIGGER_";

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
    iptables: Option<InIptables>,
    /// Rules before our jump, by handle, and whether they are foreign: a neighbour of this proxy has its
    /// own jump there, and the gate its probe's.
    rules_ahead: BTreeMap<TableKey, BTreeMap<Vec<u8>, bool>>,
    pushed_behind: BTreeSet<TableKey>,
    trouble: Option<RulesTrouble>,
    count: u64,
    recent: VecDeque<DriftEvent>,
    pub(super) overruns: u64,
}

impl Drift {
    /// What stood before ours when the capture was installed.
    pub(super) fn found(
        &mut self,
        ahead: Vec<ForeignChain>,
        iptables: Option<InIptables>,
        at: u64,
    ) {
        if iptables != self.iptables {
            self.ahead.clear();
            self.rules_ahead.clear();
            self.iptables = iptables;
        }
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
                    self.rules_ahead.remove(&key);
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
            Some(is_nat && number(hook, 1)? == LOCAL_OUT && priority < self.priority())
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
            if is_iptables(&table, &chain) {
                self.rules_ahead.remove(&table);
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
        if is_iptables(&table, &chain) {
            self.new_rule_beside_ours(table.clone(), message);
        }
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

    /// Ours is the first when it is made, so that what counts is what comes before that later.
    fn new_rule_beside_ours(&mut self, table: TableKey, message: Message<'_>) {
        const HANDLE: u16 = 3;
        const EXPRESSIONS: u16 = 4;
        const POSITION: u16 = 6;
        let Some(ours) = self.iptables.as_ref().and_then(|of| of.chain.as_deref()) else {
            return;
        };
        let expressions = attribute(message.attributes, EXPRESSIONS).unwrap_or_default();
        let target = attributes(expressions).find_map(|(_, e)| jumps_to(e));
        let handle = attribute(message.attributes, HANDLE).unwrap_or_default();
        // The one that it stands behind; of the last rule that is not told.
        let behind = attribute(message.attributes, POSITION);
        let is_last = message.flags & libc::NLM_F_APPEND as u16 != 0;
        let rules = self.rules_ahead.entry(table).or_default();
        if target.as_deref() == Some(ours) {
            match behind {
                None if !is_last => rules.clear(),
                Some(known) if rules.contains_key(known) => {}
                Some(unknown) => *rules = [(unknown.to_vec(), true)].into(),
                None => {}
            }
            return;
        }
        // Handles rise: a higher one is of the same transaction, and was put before this one.
        let is_ahead = |behind: &[u8]| rules.contains_key(behind) || behind > handle;
        if behind.map_or(!is_last, is_ahead) && rules.len() < MAX_RULES {
            let is_foreign = target.is_none_or(|target| !target.starts_with(OUR_CHAINS));
            rules.insert(handle.to_vec(), is_foreign);
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
        if let Some((table, chain)) = chain_of(message, 1, 2)
            && is_iptables(&table, &chain)
            && let Some(rules) = self.rules_ahead.get_mut(&table)
        {
            rules.remove(handle);
        }
    }

    fn priority(&self) -> i32 {
        match self.iptables {
            Some(_) => IPTABLES_PRIORITY,
            None => NFT_PRIORITY,
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
        self.settle_order(who, at);
    }

    /// The same of the order within the chain where our jump is.
    fn settle_order(&mut self, who: &str, at: u64) {
        let is_pushed = |rules: &BTreeMap<_, bool>| rules.values().any(|is_foreign| *is_foreign);
        let ahead = self
            .rules_ahead
            .iter()
            .filter(|(_, rules)| is_pushed(rules));
        let now: BTreeSet<_> = ahead.map(|(table, _)| table.clone()).collect();
        let before = std::mem::replace(&mut self.pushed_behind, now.clone());
        let place = |table: &TableKey| name(&(table.clone(), IPTABLES_CHAIN.into()));
        for table in now.difference(&before) {
            let what = format!("a rule before the capture's in {}; by {who}", place(table));
            tracing::warn!("{}: {what}", RulesTrouble::Gone.explanation());
            self.count += 1;
            self.remember(what, at);
        }
        for table in before.difference(&now) {
            let what = format!("the capture comes first in {}; by {who}", place(table));
            tracing::info!("{what}");
            self.remember(what, at);
        }
    }

    /// The latest beat's evidence on our own rules, and what it was that spoke against them.
    pub(super) fn note_rules(&mut self, found: Option<(RulesTrouble, &str)>, at: u64) {
        let found = found.map(|(trouble, why)| (self.judge(trouble), why));
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

    /// To install again does not put ours before a chain that is asked earlier.
    fn judge(&self, trouble: RulesTrouble) -> RulesTrouble {
        match trouble {
            RulesTrouble::Gone if !self.shadowed.is_empty() => RulesTrouble::Overruled,
            trouble => trouble,
        }
    }

    /// No rules are held any more that anything could speak against.
    pub(super) fn forget_rules(&mut self) {
        self.trouble = None;
        self.rules_ahead.clear();
        self.pushed_behind.clear();
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
        let pushed = (!self.pushed_behind.is_empty()).then(|| self.judge(RulesTrouble::Gone));
        let trouble = self.trouble.or(pushed);
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
            trouble,
            needs_repair: trouble.is_some_and(RulesTrouble::is_repairable),
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

/// The chain that a rule goes on in, by jump or goto.
fn jumps_to(expression: &[u8]) -> Option<String> {
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CHAIN: u16 = 2;
    if text(expression, 1)? != "immediate" {
        return None;
    }
    let immediate = attribute(expression, DATA)?;
    let verdict = attribute(attribute(immediate, DATA)?, VERDICT)?;
    text(verdict, CHAIN)
}

fn is_iptables((family, table): &TableKey, chain: &str) -> bool {
    let family = i32::from(*family);
    table == IPTABLES_TABLE
        && chain == IPTABLES_CHAIN
        && (family == libc::NFPROTO_IPV4 || family == libc::NFPROTO_IPV6)
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

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | NEW_RULE as u16;
    const GONE: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | DEL_RULE as u16;
    const END: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | NEW_GENERATION as u16;
    const APPENDED: u16 = libc::NLM_F_APPEND as u16;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = 4 + value.len() as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, flags: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = attributes.concat();
        let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([libc::NFPROTO_IPV4 as u8, 0, 0, 0]);
        bytes.extend(body);
        bytes
    }

    /// In OUTPUT of table nat: a jump to `target`, and the rule that it stands behind.
    fn rule(kind: u16, flags: u16, handle: u64, behind: Option<u64>, target: &str) -> Vec<u8> {
        let verdict = attribute(2, format!("{target}\0").as_bytes());
        let data = attribute(2, &attribute(2, &attribute(2, &verdict)));
        let jump = attribute(1, &[attribute(1, b"immediate\0"), data].concat());
        let mut attributes = vec![
            attribute(1, b"nat\0"),
            attribute(2, b"OUTPUT\0"),
            attribute(3, &handle.to_be_bytes()),
            attribute(4, &jump),
        ];
        attributes.extend(behind.map(|behind| attribute(6, &behind.to_be_bytes())));
        [message(kind, flags, &attributes), message(END, 0, &[])].concat()
    }

    fn captured() -> Drift {
        let mut drift = Drift::default();
        let chain = Some("OUTRIGGER_15001".to_owned());
        drift.found(Vec::new(), Some(InIptables { chain }), 0);
        drift.take(&rule(NEW, 0, 10, None, "OUTRIGGER_15001"), 0);
        assert_eq!(drift.told().trouble, None);
        drift
    }

    #[test]
    fn a_foreign_rule_put_before_our_jump_is_trouble_until_it_goes_or_ours_is_first_again() {
        for after in [
            rule(GONE, 0, 11, None, "THEIRS"),
            rule(NEW, 0, 12, None, "OUTRIGGER_15001"),
        ] {
            let mut drift = captured();
            drift.take(&rule(NEW, 0, 11, None, "THEIRS"), 1);
            let told = drift.told();
            assert_eq!(told.trouble, Some(RulesTrouble::Gone));
            assert!(told.needs_repair && told.recent[0].what.contains("table ip nat chain OUTPUT"));
            drift.take(&after, 2);
            assert_eq!(drift.told().trouble, None);
            assert_eq!(drift.count(), 1);
        }
    }

    #[test]
    fn a_rule_behind_a_foreign_one_is_ahead_too_and_one_behind_ours_is_not() {
        let mut drift = captured();
        drift.take(&rule(NEW, APPENDED, 11, None, "LAST"), 1);
        drift.take(&rule(NEW, 0, 12, Some(10), "BEHIND"), 1);
        assert_eq!(drift.told().trouble, None);
        drift.take(&rule(NEW, 0, 13, None, "FIRST"), 1);
        drift.take(&rule(NEW, 0, 14, Some(13), "SECOND"), 1);
        drift.take(&rule(GONE, 0, 13, None, "FIRST"), 1);
        assert_eq!(drift.told().trouble, Some(RulesTrouble::Gone));
        drift.take(&rule(GONE, 0, 14, None, "SECOND"), 1);
        assert_eq!(drift.told().trouble, None);
    }

    /// One transaction is told when it is over: the first of two stands behind the other already.
    #[test]
    fn of_two_put_first_at_once_both_are_ahead() {
        let mut drift = captured();
        drift.take(&rule(NEW, 0, 11, Some(12), "ONE"), 1);
        drift.take(&rule(NEW, 0, 12, None, "OTHER"), 1);
        drift.take(&rule(GONE, 0, 12, None, "OTHER"), 1);
        assert_eq!(drift.told().trouble, Some(RulesTrouble::Gone));
    }

    #[test]
    fn the_gates_probe_and_a_neighbour_may_stand_before_our_jump() {
        let mut drift = captured();
        drift.take(&rule(NEW, 0, 11, None, "OUTRIGGER_15001_PROBE"), 1);
        drift.take(&rule(GONE, 0, 10, None, "OUTRIGGER_15001"), 1);
        drift.take(&rule(NEW, 0, 12, Some(11), "OUTRIGGER_15001"), 1);
        drift.take(&rule(NEW, 0, 13, None, "OUTRIGGER_15010"), 1);
        assert_eq!((drift.told().trouble, drift.count()), (None, 0));
        // An install that failed puts ours back to where it was, behind a rule from before.
        drift.take(&rule(NEW, 0, 14, Some(5), "OUTRIGGER_15001"), 1);
        assert_eq!(drift.told().trouble, Some(RulesTrouble::Gone));
    }

    #[test]
    fn trouble_of_the_order_ends_with_the_capture() {
        let mut drift = captured();
        drift.take(&rule(NEW, 0, 11, None, "THEIRS"), 1);
        drift.forget_rules();
        assert_eq!(drift.told().trouble, None);
    }
}
