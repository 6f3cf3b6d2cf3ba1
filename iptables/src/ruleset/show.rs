//! A rule as the tool that owns it prints it, and the command that removes it.

mod iptables;
mod nft;

pub(crate) use self::nft::address_type;
use super::{Chain, Expression, Rule, Table, Tool};

pub(super) fn rule(table: &Table, chain: &Chain, rule: &Rule) -> String {
    match table.tool {
        Tool::Nft => nft::rule(table, rule),
        Tool::IptablesNft | Tool::IptablesLegacy => {
            format!(
                "-A {} {}",
                chain.name,
                iptables::rule(table, rule).trim_start()
            )
        }
    }
}

pub(super) fn removal(table: &Table, chain: &Chain, rule: &Rule) -> String {
    match (table.tool, rule.handle) {
        (Tool::Nft, Some(handle)) => {
            format!(
                "nft delete rule {} {} {} handle {handle}",
                table.family, table.name, chain.name
            )
        }
        // By its words, which stay right when other rules come and go; by number where not all are known.
        _ => {
            let words = iptables::rule(table, rule);
            let program = table.program();
            let is_whole = !words.contains('[')
                && !rule
                    .expressions
                    .iter()
                    .any(|e| matches!(e, Expression::Unpredictable(_)));
            let what = if is_whole {
                words.trim_start().to_owned()
            } else {
                rule.line.to_string()
            };
            format!("{program} -t {} -D {} {what}", table.name, chain.name)
        }
    }
}
