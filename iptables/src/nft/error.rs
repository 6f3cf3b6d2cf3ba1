//! What the kernel's error numbers mean for the step that met them.

use std::{fmt, io};

use netlink_packet_core::DecodeError;

/// A netlink request that failed.
#[derive(Debug)]
pub struct NftError {
    /// The step, as in "creating table x".
    pub doing: String,
    pub cause: io::Error,
    /// Linux' own version, which often is the cause.
    kernel: String,
}

impl NftError {
    pub fn new(doing: impl Into<String>, cause: io::Error) -> Self {
        Self {
            doing: doing.into(),
            cause,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        }
    }

    pub(crate) fn malformed(doing: &str, error: &DecodeError) -> Self {
        Self::new(
            doing,
            io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        )
    }

    /// A refusal to touch a table is its owner's; without privilege not even listing works.
    pub fn is_lack_of_privilege(&self) -> bool {
        matches!(self.cause.raw_os_error(), Some(libc::EPERM | libc::EACCES))
            && !self.concerns_a_table()
    }

    fn concerns_a_table(&self) -> bool {
        self.doing.contains("ing table ")
    }

    /// What the kernel would have loaded by itself for this step, had it been there. A rule is written in
    /// the step's name.
    fn missing_modules(&self) -> &'static str {
        const OF: [(&str, &str); 9] = [
            ("redirect to", "nft_redir and nf_nat"),
            ("fib daddr", "nft_fib_inet, nft_fib_ipv4 and nft_fib_ipv6"),
            ("reject", "nft_reject_inet"),
            ("socket cgroupv2", "nft_socket"),
            ("NFLOG", "nfnetlink_log"),
            ("log prefix", "nft_log and nfnetlink_log"),
            ("ct ", "nft_ct and nf_conntrack"),
            (
                "adding timeout",
                "nft_ct and nf_conntrack_timeout (CONFIG_NF_CONNTRACK_TIMEOUT)",
            ),
            (
                "tracked connections",
                "nf_conntrack and nf_conntrack_netlink",
            ),
        ];
        let found = OF.iter().find(|(step, _)| self.doing.contains(step));
        let is_chain = self.doing.starts_with("adding chain");
        found.map_or(
            if is_chain {
                "nft_chain_nat, nf_nat and nf_conntrack"
            } else {
                "nf_tables (CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET)"
            },
            |(_, modules)| modules,
        )
    }

    /// What to do about it.
    pub fn advice(&self) -> String {
        let kernel = &self.kernel;
        match self.cause.raw_os_error() {
            Some(libc::EPERM) if self.concerns_a_table() => {
                "another process owns a table of this name; `nft list tables` shows it, and it ends with that process".into()
            }
            Some(libc::EPERM | libc::EACCES) => {
                "run it as root, or with CAP_NET_ADMIN in the network namespace's own user namespace".into()
            }
            // Before 5.12 the table flag `owner` is an unknown flag.
            Some(libc::EINVAL) if self.concerns_a_table() => format!(
                "tables that end with their owner need Linux 5.12 or newer, and this is {kernel}; use a newer kernel"
            ),
            Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => format!(
                "Linux {kernel} lacks what this needs; load {} (modprobe NAME), use a kernel that has it, or try --backend iptables",
                self.missing_modules()
            ),
            Some(libc::EEXIST) => {
                "another program made a table of this name meanwhile; `nft list ruleset` shows it; try again".into()
            }
            Some(libc::EBUSY) => "another program is changing the rules; try again".into(),
            Some(libc::ENOMEM | libc::ENOBUFS) => {
                "the kernel ran out of memory for it; shorten the lists in `capture` or free memory".into()
            }
            Some(libc::EAGAIN) => "the kernel gave no answer in time; try again".into(),
            _ => format!("this is unexpected on Linux {kernel}; please report it with this message"),
        }
    }
}

impl fmt::Display for NftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

impl std::error::Error for NftError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(kernel: &str, doing: &str, errno: i32) -> NftError {
        NftError {
            doing: doing.into(),
            cause: io::Error::from_raw_os_error(errno),
            kernel: kernel.into(),
        }
    }

    #[test]
    fn a_kernel_without_owned_tables_is_named_with_the_version_it_takes() {
        let advice = on("5.10.0", "creating table outrigger_15001_g1", libc::EINVAL).advice();
        assert!(
            advice.contains("5.12") && advice.contains("5.10.0"),
            "{advice}"
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        for errno in [libc::EOPNOTSUPP, libc::ENOENT, libc::EPROTONOSUPPORT] {
            let advice = on("6.1.0", "adding chain output", errno).advice();
            assert!(advice.contains("nft_chain_nat"), "{advice}");
        }
    }

    #[test]
    fn the_module_that_a_step_needs_is_told_from_the_others() {
        for (doing, module) in [
            ("creating table outrigger_15001_g1", "nf_tables"),
            ("listing the tables", "nf_tables"),
            ("adding chain output", "nf_conntrack"),
            (
                "adding rule `meta nfproto ipv4 redirect to :15001`",
                "nft_redir",
            ),
            ("adding rule `fib daddr type local return`", "nft_fib_inet"),
            ("adding rule `reject with tcp reset`", "nft_reject_inet"),
            ("adding rule `ct state established accept`", "nf_conntrack"),
            (
                "adding rule `socket cgroupv2 level 1 \"a\" jump x`",
                "nft_socket",
            ),
            (
                "adding rule `limit rate 200/second log prefix \"o\" group 1`",
                "nft_log",
            ),
            ("taking NFLOG group 31386", "nfnetlink_log"),
            ("adding timeout passing", "nf_conntrack_timeout"),
            ("listing tracked connections", "nf_conntrack_netlink"),
        ] {
            let advice = on("4.19.0", doing, libc::ENOENT).advice();
            assert!(advice.contains(module), "{doing}: {advice}");
            assert!(advice.contains("4.19.0"), "{doing}: {advice}");
        }
    }

    #[test]
    fn each_known_error_says_what_to_do() {
        let word = [
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EEXIST, "nft list ruleset"),
            (libc::EBUSY, "try again"),
            (libc::ENOMEM, "memory"),
            (libc::EAGAIN, "try again"),
        ];
        for (errno, word) in word {
            let advice = on("6.1.0", "adding chain output", errno).advice();
            assert!(advice.contains(word), "{errno}: {advice}");
        }
    }

    #[test]
    fn an_invalid_rule_is_not_blamed_on_the_owner_flag() {
        let advice = on("6.1.0", "adding rule", libc::EINVAL).advice();
        assert!(!advice.contains("5.12"), "{advice}");
    }
}
