//! Everything in a network namespace that can rewrite or stop an outbound connection, as data.
//!
//! Read by [`read`] from nftables (which holds the rules of iptables-nft too) and iptables-legacy,
//! without any program. Nothing in here judges; that is [`crate::verdict`]'s.

mod attributes;
mod expression;
mod legacy;
mod netlink;
mod nft;
mod set;
mod show;
mod xt;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, io};

use serde::Serialize;

use crate::plan::Family;

pub(crate) use attributes::Attributes;
pub(crate) use netlink::Dumper;
pub(crate) use show::address_type;

pub use expression::{Base, CmpOp, Expression, Extent, NatKind, Verdict, ct, meta};
pub use set::{Data, Element, Set};
pub use xt::{IpMatch, Nat, PortRange, XtMatch, XtTarget};

/// All that was found, and what could not be looked at.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    pub tables: Vec<Table>,
    /// What could not be seen, as sentences; empty: this is all there is.
    pub unseen: Vec<String>,
}

/// Whose rules they are, in the sense of the tool that shows and removes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Tool {
    #[serde(rename = "nft")]
    Nft,
    #[serde(rename = "iptables-nft")]
    IptablesNft,
    #[serde(rename = "iptables-legacy")]
    IptablesLegacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFamily {
    Ip,
    Ip6,
    Inet,
    Netdev,
    Bridge,
    Arp,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub tool: Tool,
    pub family: TableFamily,
    pub name: String,
    /// The netlink port of the socket that the table belongs to and dies with.
    pub owner: Option<u32>,
    pub is_dormant: bool,
    pub chains: Vec<Chain>,
    pub sets: HashMap<String, Set>,
    pub(crate) chain_index: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
pub struct Chain {
    pub name: String,
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
}

/// What makes the kernel enter a chain by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub hook: Hook,
    pub priority: i32,
    pub kind: ChainKind,
    pub drops_by_policy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// `ingress` and `egress` of a device, or a hook of another family.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    /// Routes anew when a mark or an address changed.
    Route,
}

#[derive(Clone, Debug)]
pub struct Rule {
    /// nftables' name of it, for the command that deletes it.
    pub handle: Option<u64>,
    /// Its place in the chain, from 1.
    pub line: usize,
    pub expressions: Vec<Expression>,
    pub counters: Option<Counters>,
    /// Its maker's own word on it; of nftables' rules, for iptables' have it among their conditions.
    pub comment: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
}

/// Where a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleAt {
    pub table: usize,
    pub chain: usize,
    pub rule: usize,
}

/// Reads the rules of the calling thread's network namespace; what cannot be read is named in
/// [`Ruleset::unseen`].
pub fn read() -> Ruleset {
    let mut found = Ruleset::default();
    nft::read(&mut found);
    legacy::read(&mut found);
    found
}

/// One table of iptables-legacy in the calling thread's network namespace; `None`: there is none.
///
/// # Errors
/// When it cannot be read, for lack of privilege above all.
pub(crate) fn legacy_table(family: Family, name: &str) -> io::Result<Option<Table>> {
    legacy::find(family, name)
}

/// For tests and fuzzing: decodes `bytes` as everything that a kernel may hand over, and takes what
/// comes of it through printing and judging. Nothing may panic, whatever the bytes are.
#[doc(hidden)]
pub fn digest(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else {
        return;
    };
    let mut table = Table::new(Tool::Nft, TableFamily::Inet, "t".into());
    let mut rules = Vec::new();
    match kind % 4 {
        0 => rules.push(nft::rule(Attributes(bytes), 1)),
        1 => table
            .sets
            .extend(nft::digest_set(bytes).map(|set| (set.name.clone(), set))),
        2 => {
            let (info, blob) = bytes.split_at(bytes.len().min(legacy::INFO));
            for family in [TableFamily::Ip, TableFamily::Ip6] {
                if let Some(found) = legacy::decode(family, "nat", info, blob) {
                    table = found;
                }
            }
        }
        _ => {
            let expressions = xt::digest(bytes);
            rules.push(Rule {
                handle: None,
                line: 1,
                expressions,
                counters: None,
                comment: None,
            });
        }
    }
    if table.chains.is_empty() {
        table.add_chain(Chain {
            name: "OUTPUT".into(),
            base: Some(legacy::base("nat", Hook::Output, false)),
            rules,
        });
    }
    let ruleset = Ruleset {
        tables: vec![table],
        unseen: Vec::new(),
    };
    for at in ruleset.places() {
        let _ = (ruleset.text(at), ruleset.removal(at));
    }
    crate::verdict::digest(&ruleset);
}

impl Ruleset {
    pub fn rule(&self, at: RuleAt) -> (&Table, &Chain, &Rule) {
        let table = &self.tables[at.table];
        let chain = &table.chains[at.chain];
        (table, chain, &chain.rules[at.rule])
    }

    /// As the tool that owns it prints it.
    pub fn text(&self, at: RuleAt) -> String {
        let (table, chain, rule) = self.rule(at);
        show::rule(table, chain, rule)
    }

    /// The command that removes just this rule.
    pub fn removal(&self, at: RuleAt) -> String {
        let (table, chain, rule) = self.rule(at);
        show::removal(table, chain, rule)
    }

    /// Every rule, in the order of reading.
    pub fn places(&self) -> impl Iterator<Item = RuleAt> + '_ {
        self.tables.iter().enumerate().flat_map(|(table, of)| {
            of.chains.iter().enumerate().flat_map(move |(chain, of)| {
                (0..of.rules.len()).map(move |rule| RuleAt { table, chain, rule })
            })
        })
    }
}

impl Table {
    pub(crate) fn new(tool: Tool, family: TableFamily, name: String) -> Self {
        Self {
            tool,
            family,
            name,
            owner: None,
            is_dormant: false,
            chains: Vec::new(),
            sets: HashMap::new(),
            chain_index: HashMap::new(),
        }
    }

    pub(crate) fn add_chain(&mut self, chain: Chain) {
        self.chain_index
            .insert(chain.name.clone(), self.chains.len());
        self.chains.push(chain);
    }

    pub fn chain(&self, name: &str) -> Option<usize> {
        self.chain_index.get(name).copied()
    }

    /// As in commands and listings.
    pub fn title(&self) -> String {
        match self.tool {
            Tool::Nft => format!("table {} {}", self.family, self.name),
            Tool::IptablesNft | Tool::IptablesLegacy => {
                format!("{} table {}", self.program(), self.name)
            }
        }
    }

    /// The program that edits it.
    pub fn program(&self) -> &'static str {
        match (self.tool, self.family) {
            (Tool::Nft, _) => "nft",
            (Tool::IptablesNft, TableFamily::Ip6) => "ip6tables-nft",
            (Tool::IptablesNft, _) => "iptables-nft",
            (Tool::IptablesLegacy, TableFamily::Ip6) => "ip6tables-legacy",
            (Tool::IptablesLegacy, _) => "iptables-legacy",
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Other => "another hook",
        })
    }
}
