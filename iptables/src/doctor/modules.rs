//! Modules of the kernel that a capture needs and that are neither loaded, nor built in, nor there to
//! be loaded.

use std::{fs, path::Path};

use super::{Finding, Level};

const NEEDED: [&str; 5] = [
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_redir",
];

pub(super) fn examine() -> Option<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let dir = format!("/lib/modules/{}", release.trim());
    // Without the list of what is built in nothing can be said to be missing.
    let built_in = fs::read_to_string(format!("{dir}/modules.builtin")).ok()?;
    let loadable = fs::read_to_string(format!("{dir}/modules.dep")).unwrap_or_default();
    let is_loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    let missing = missing(&built_in, &loadable, is_loaded);
    (!missing.is_empty()).then(|| Finding {
        level: Level::Warning,
        kind: "modules_missing",
        what: "the kernel lacks what redirects by nftables need".into(),
        evidence: vec![
            format!("missing: {}", missing.join(", ")),
            format!("neither loaded, nor built in, nor in {dir}"),
        ],
        fix: Some("install the modules of the running kernel (on Debian and Ubuntu linux-modules-extra), or reboot into the kernel whose modules are there".into()),
    })
}

/// The lists name files, one at the beginning of each line.
fn missing(built_in: &str, loadable: &str, is_loaded: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let is_in = |list: &str, name: &str| {
        list.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split('.')
                .next()
                .is_some_and(|stem| stem.replace('-', "_") == name)
        })
    };
    let mut names = NEEDED.to_vec();
    names.retain(|name| !is_loaded(name) && !is_in(built_in, name) && !is_in(loadable, name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_missing_that_is_in_no_list_and_not_loaded() {
        let built_in = "kernel/net/netfilter/nf_conntrack.ko\n";
        let loadable = "kernel/net/netfilter/nf_tables.ko.zst: kernel/net/netfilter/nfnetlink.ko.zst\nkernel/net/netfilter/nft-redir.ko:\n";
        let found = missing(built_in, loadable, |name| name == "nf_nat");
        assert_eq!(found, ["nft_chain_nat"]);
    }
}
