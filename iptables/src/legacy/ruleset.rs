//! What is ours in a listing of `iptables-save`, and the script that leads from one state of it to
//! another: pure.

use std::fmt::Write;

use super::IptablesError;

/// Ours in one table: chains, their rules, and the rules of OUTPUT that lead there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    chains: Vec<String>,
    /// Chain and rule.
    rules: Vec<(String, String)>,
    /// Place in OUTPUT, counted from 1, and rule.
    jumps: Vec<(usize, String)>,
    /// Rules of others that lead into a chain of ours, as listed.
    strangers: Vec<String>,
}

impl State {
    /// One chain with `rules`, which OUTPUT jumps to first of all on `condition`.
    pub(super) fn new(chain: &str, rules: Vec<String>, condition: &str) -> Self {
        Self {
            chains: vec![chain.into()],
            rules: rules.into_iter().map(|rule| (chain.into(), rule)).collect(),
            jumps: vec![(1, format!("{condition} -j {chain}"))],
            strangers: Vec::new(),
        }
    }

    /// What `listing` has of the chains for `port` in `table`.
    pub(super) fn read(listing: &str, table: &str, port: u16) -> Self {
        let mut state = Self::default();
        let mut place = 0;
        let ours = |chain: &str| is_ours(chain, port);
        let header = format!("*{table}");
        let lines = listing
            .lines()
            .skip_while(|line| *line != header)
            .take_while(|line| *line != "COMMIT");
        for line in lines {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap_or_default();
                if ours(chain) {
                    state.chains.push(chain.into());
                }
            } else if let Some((chain, rule)) = line
                .strip_prefix("-A ")
                .and_then(|rest| rest.split_once(' '))
            {
                place += usize::from(chain == "OUTPUT");
                if ours(chain) {
                    state.rules.push((chain.into(), rule.into()));
                } else if target(rule).is_some_and(ours) {
                    if chain == "OUTPUT" {
                        state.jumps.push((place, rule.into()));
                    } else {
                        state.strangers.push(line.into());
                    }
                }
            }
        }
        state
    }

    /// With `first` ahead of it.
    pub(super) fn behind(&self, first: &Self) -> Self {
        let moved = self.jumps.iter().map(|(place, rule)| {
            let place = place + first.jumps.len();
            (place, rule.clone())
        });
        Self {
            chains: [first.chains.clone(), self.chains.clone()].concat(),
            rules: [first.rules.clone(), self.rules.clone()].concat(),
            jumps: first.jumps.iter().cloned().chain(moved).collect(),
            strangers: self.strangers.clone(),
        }
    }

    /// Without `chain` and what leads there.
    pub(super) fn without(mut self, chain: &str) -> Self {
        self.chains.retain(|name| name != chain);
        self.rules.retain(|(name, _)| name != chain);
        // Those behind move up: a place beyond the last is refused.
        let mut gone = 0;
        self.jumps.retain_mut(|(place, rule)| {
            let is_kept = target(rule) != Some(chain);
            gone += usize::from(!is_kept);
            *place -= gone * usize::from(is_kept);
            is_kept
        });
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    /// The first difference that matters; another version of the programs may write a rule in
    /// other words, so that the words do not count.
    pub(super) fn difference(&self, found: &Self) -> Option<String> {
        for chain in &self.chains {
            let count = |state: &Self| state.rules.iter().filter(|(of, _)| of == chain).count();
            if !found.chains.contains(chain) || count(found) != count(self) {
                return Some(format!("chain {chain} is not as loaded"));
            }
        }
        let places = |state: &Self| state.jumps.iter().map(|(n, _)| *n).collect::<Vec<_>>();
        (places(self) != places(found)).then(|| "our jump is not the first rule of OUTPUT".into())
    }

    /// The transaction that makes `wanted` of this; `None`: it is so already.
    pub(super) fn script(&self, table: &str, wanted: &Self) -> Option<String> {
        if self == wanted {
            return None;
        }
        let mut script = format!("*{table}\n");
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(script, "{text}");
        let gone = || self.chains.iter().filter(|c| !wanted.chains.contains(c));
        let written = (|| {
            // Makes a chain, or empties one that is there.
            for chain in &wanted.chains {
                line(format_args!(":{chain} - [0:0]"))?;
            }
            for (_, rule) in &self.jumps {
                line(format_args!("-D OUTPUT {rule}"))?;
            }
            gone().try_for_each(|chain| line(format_args!("-F {chain}")))?;
            gone().try_for_each(|chain| line(format_args!("-X {chain}")))?;
            for (chain, rule) in &wanted.rules {
                line(format_args!("-A {chain} {rule}"))?;
            }
            for (place, rule) in &wanted.jumps {
                line(format_args!("-I OUTPUT {place} {rule}"))?;
            }
            line(format_args!("COMMIT"))
        })();
        written.expect("a string takes all");
        Some(script)
    }

    /// Refuses what cannot be undone.
    pub(super) fn check(self, program: &str, table: &str) -> Result<Self, IptablesError> {
        match self.strangers.first() {
            None => Ok(self),
            Some(rule) => Err(IptablesError::Entangled {
                program: program.into(),
                table: table.into(),
                rule: rule.clone(),
            }),
        }
    }
}

fn is_ours(chain: &str, port: u16) -> bool {
    chain
        .strip_prefix(&format!("OUTRIGGER_{port}"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// The chain that a rule leads to. A comment may hold any words, but in quotes or none of its own.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.rsplit(' ');
    let mut last = words.next()?;
    for word in words {
        if word == "-j" || word == "-g" {
            return Some(last);
        }
        last = word;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT -j OUTRIGGER_15001
COMMIT
*nat
:OUTPUT ACCEPT [3:180]
:OUTRIGGER_15001 - [0:0]
:OUTRIGGER_150010 - [0:0]
:KUBE - [0:0]
-A OUTPUT -m comment --comment \"-j OUTRIGGER_15001 is not it\" -j KUBE
-A OUTPUT -p tcp -j OUTRIGGER_15001
-A OUTRIGGER_15001 -o lo -j RETURN
-A OUTRIGGER_150010 -o lo -j RETURN
COMMIT
";

    #[test]
    fn only_what_is_ours_is_found() {
        let state = State::read(LISTING, "nat", 15001);
        let jump = "-p tcp -j OUTRIGGER_15001".to_owned();
        assert_eq!(state.chains, ["OUTRIGGER_15001"]);
        assert_eq!(state.jumps, [(2, jump)]);
        assert_eq!(state.rules.len(), 1);
        assert!(State::read(LISTING, "mangle", 15001).is_empty());
    }

    #[test]
    fn removal_names_nothing_of_others() {
        let state = State::read(LISTING, "nat", 15001);
        let script = state.script("nat", &State::default()).unwrap();
        assert_eq!(
            script,
            "*nat\n-D OUTPUT -p tcp -j OUTRIGGER_15001\n-F OUTRIGGER_15001\n-X OUTRIGGER_15001\nCOMMIT\n"
        );
        assert_eq!(State::default().script("nat", &State::default()), None);
    }

    #[test]
    fn what_was_there_comes_back_to_its_place() {
        let before = State::read(LISTING, "nat", 15001);
        let script = State::default().script("nat", &before).unwrap();
        assert!(
            script.contains("-I OUTPUT 2 -p tcp -j OUTRIGGER_15001\n"),
            "{script}"
        );
    }

    /// Regression: what an install that was killed had left ahead kept its place after its end.
    #[test]
    fn without_a_jump_those_behind_move_up() {
        let rules = "*nat\n:OUTPUT ACCEPT [0:0]\n:OUTRIGGER_15001 - [0:0]\n:OUTRIGGER_15001_PROBE - [0:0]\n-A OUTPUT -j OUTRIGGER_15001_PROBE\n-A OUTPUT -j OUTRIGGER_15001\nCOMMIT\n";
        let found = State::read(rules, "nat", 15001).without("OUTRIGGER_15001_PROBE");
        assert_eq!(found.jumps, [(1, "-j OUTRIGGER_15001".to_owned())]);
    }

    #[test]
    fn a_foreign_rule_that_leads_into_ours_is_named() {
        let listing = LISTING.replace(
            "-A OUTRIGGER_150010 -o lo -j RETURN",
            "-A KUBE -g OUTRIGGER_15001",
        );
        let state = State::read(&listing, "nat", 15001);
        let error = state.check("iptables-save", "nat").unwrap_err();
        assert!(error.to_string().contains("-A KUBE -g"), "{error}");
        assert!(error.advice().contains("-D KUBE"), "{}", error.advice());
    }
}
