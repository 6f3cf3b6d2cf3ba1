//! What an iptables backend cannot do here, and what would help.

use std::fmt;

use super::{MAX_RULES, rules::MATCHES};
use crate::plan::Family;

#[derive(Debug, PartialEq, Eq)]
pub enum IptablesError {
    /// Not installed, as far as PATH and the system's directories tell.
    NoProgram(String),
    Failed {
        program: String,
        reason: String,
    },
    /// Each connect would walk them all.
    TooManyRules {
        family: Family,
    },
    /// Rules by cgroup would bar every change of the table once the cgroup is gone.
    CgroupInLegacy,
    /// A rule of somebody else leads into our chain, which can therefore not be deleted.
    Entangled {
        program: String,
        table: String,
        rule: String,
    },
    /// The proxy's beat does not renew the lease.
    NoBeat {
        family: Family,
    },
    /// The tables hold something else than was loaded.
    ReadBack {
        program: String,
        difference: String,
    },
}

impl IptablesError {
    pub(crate) fn check(&self) -> &'static str {
        match self {
            Self::NoProgram(_)
            | Self::Failed { .. }
            | Self::TooManyRules { .. }
            | Self::CgroupInLegacy => "backend",
            Self::Entangled { .. } => "leftover",
            Self::NoBeat { .. } => "lease",
            Self::ReadBack { .. } => "read-back",
        }
    }

    pub(crate) fn advice(&self) -> String {
        match self {
            Self::NoProgram(_) => {
                "install it (Debian, Ubuntu, Fedora, Alpine: package `iptables`; Alpine's ip6tables may be a package of its own), or use `--backend nft`, which needs no program".into()
            }
            Self::Failed { reason, .. } => advice_on_failure(reason),
            Self::CgroupInLegacy => "use `--backend nft` or `iptables-nft`, or another scope".into(),
            Self::TooManyRules { .. } => {
                "use `--backend nft`, which searches a set instead; or shorten the lists in `capture`".into()
            }
            Self::Entangled { table, rule, .. } => format!(
                "delete that rule (`-t {table} {}`), then try again",
                rule.replacen("-A ", "-D ", 1)
            ),
            Self::NoBeat { .. } => {
                "look at the proxy's log: it sends no beat while one of its workers hangs; and whether a rule drops UDP packets on `lo`".into()
            }
            Self::ReadBack { .. } => {
                "another program may be changing the rules at the same time; try again".into()
            }
        }
    }
}

/// The programs tell a missing extension in many ways, according to which half of it is missing.
fn advice_on_failure(reason: &str) -> String {
    let modules = MATCHES.map(|name| format!("xt_{name}")).join(", ");
    let is_missing = [
        "Couldn't load",
        "missing kernel module",
        "No chain/target/match",
    ]
    .iter()
    .any(|words| reason.contains(words));
    if reason.contains("Permission denied") || reason.contains("must be root") {
        "run it as root, or with CAP_NET_ADMIN in the network namespace's own user namespace".into()
    } else if is_missing {
        format!(
            "the backend needs the extensions {modules} and xt_REDIRECT: load them (`modprobe NAME`; the kernel's extra modules may be a package of their own, such as linux-modules-extra) and install the whole package `iptables`; or use `--backend nft`"
        )
    } else if reason.contains("does the table exist") || reason.contains("do you need to insmod") {
        "the kernel lacks these tables: `modprobe ip_tables ip6_tables iptable_nat ip6table_nat iptable_mangle ip6table_mangle`; or use `--backend iptables-nft` or `nft`".into()
    } else if reason.contains("Protocol not supported")
        || reason.contains("Failed to initialize nft")
    {
        "the kernel lacks nf_tables: `modprobe nf_tables nft_compat`; or use `--backend iptables-legacy`".into()
    } else if reason.contains("incompatible") {
        "a table of iptables was changed with the `nft` program, so iptables no longer understands it: use `--backend nft`".into()
    } else if reason.contains("lock") {
        "another program holds the iptables lock (/run/xtables.lock): wait and try again".into()
    } else {
        "see what the program said; `--backend nft` needs no program".into()
    }
}

impl fmt::Display for IptablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProgram(program) => write!(f, "the program `{program}` is not installed"),
            Self::Failed { program, reason } => write!(f, "{program} failed: {reason}"),
            Self::CgroupInLegacy => f.write_str(
                "iptables-legacy loads a table as a whole, so that once a cgroup in it is gone nobody could change the table any more",
            ),
            Self::TooManyRules { family } => write!(
                f,
                "the settings take more than {MAX_RULES} iptables rules for {}, and every new connection would walk them one by one",
                family.name()
            ),
            Self::Entangled {
                program,
                table,
                rule,
            } => write!(
                f,
                "{program}: a rule that is not ours leads into our chain, in table {table}: {rule}"
            ),
            Self::NoBeat { family } => write!(
                f,
                "the proxy's beat over {} does not arrive, so the capture would never come into force",
                family.name()
            ),
            Self::ReadBack {
                program,
                difference,
            } => write!(
                f,
                "{program} shows something else than was loaded: {difference}"
            ),
        }
    }
}

impl std::error::Error for IptablesError {}
