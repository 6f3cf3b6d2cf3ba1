//! Rules in both backends of iptables: each tool shows its own, and who looks with one sees half.

use super::{Finding, Level};
use crate::ruleset::{Ruleset, Tool};

pub(super) fn examine(ruleset: &Ruleset) -> Option<Finding> {
    let count = |tool: Tool| -> usize {
        let tables = ruleset.tables.iter().filter(|table| table.tool == tool);
        tables
            .flat_map(|table| &table.chains)
            .map(|chain| chain.rules.len())
            .sum()
    };
    let (legacy, nft) = (count(Tool::IptablesLegacy), count(Tool::IptablesNft));
    (legacy > 0 && nft > 0).then(|| Finding {
        level: Level::Warning,
        kind: "both_iptables_backends",
        what: "rules are loaded in both backends of iptables, and each tool shows only its own"
            .into(),
        evidence: vec![
            format!("iptables-legacy: {legacy} rules"),
            format!("iptables-nft: {nft} rules"),
        ],
        fix: Some("look with both: iptables-legacy-save -c; iptables-nft-save -c".into()),
    })
}
