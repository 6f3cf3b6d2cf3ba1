//! How rules are loaded, and which way works here.

use std::{fmt, str::FromStr};

use outrigger_config::{Settings, control::Tether};

use crate::{
    error::Refusal,
    legacy::{self, Variant},
    nft::{self, NetlinkSocket},
    plan::Plan,
    tether::{self, Anchor, Installed},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The first that works here of nft, the host's own iptables, the other iptables.
    Auto,
    /// Over netlink; no program is needed.
    Nft,
    /// Whichever of the two the host's plain `iptables` is.
    Iptables,
    Variant(Variant),
}

/// A backend that was chosen, and why.
enum Choice {
    Nft(Option<String>),
    Iptables(Variant, Option<String>),
}

/// Passes the gate, captures, and leaves the capture to the proxy.
///
/// # Errors
/// The first check that failed; the rules are then as they were before.
pub fn install(settings: &Settings, backend: Backend) -> Result<Installed, Refusal> {
    install_and_anchor(settings, backend, false).map(|(installed, _)| installed)
}

/// The same for a caller that outlives the proxy and keeps the anchor. There is none in iptables,
/// whose chains no socket owns, nor where exactly this capture was in force already.
///
/// `is_swept`: the caller has called [`forget_dead_proxy`](crate::forget_dead_proxy) since a proxy died.
///
/// # Errors
/// As [`install`].
pub fn install_and_anchor(
    settings: &Settings,
    backend: Backend,
    is_swept: bool,
) -> Result<(Installed, Option<Anchor>), Refusal> {
    let ((mut installed, anchor), why) = match choose(settings, backend)? {
        Choice::Nft(why) => (tether::install(settings, &[], is_swept)?, why),
        Choice::Iptables(variant, why) => ((legacy::install(settings, variant, &[])?, None), why),
    };
    installed.notes.splice(0..0, why);
    Ok((installed, anchor))
}

/// What [`install`] would load, without looking at the proxy and without changing anything.
///
/// # Errors
/// When the settings cannot be planned on this host.
pub fn dry_run(settings: &Settings, backend: Backend) -> Result<String, Refusal> {
    let plan = tether::dry_run(settings)?;
    match choose(settings, backend)? {
        Choice::Nft(_) => Ok(plan.to_string()),
        Choice::Iptables(variant, why) => {
            let why = why.map(|why| format!("# {why}\n")).unwrap_or_default();
            Ok(why + &legacy::dry_run(&plan, variant)?)
        }
    }
}

/// Captures for a proxy that takes over the sockets of another one, which holds `predecessor`'s tables until it
/// is told to let go; [`reopen`](crate::reopen) is to be called then.
///
/// # Errors
/// The first check that failed; the rules are then as they were before.
pub fn install_after(
    settings: &Settings,
    backend: Backend,
    predecessor: &[Tether],
) -> Result<Option<Anchor>, Refusal> {
    match choose(settings, backend)? {
        Choice::Nft(_) => Ok(tether::install(settings, predecessor, true)?.1),
        Choice::Iptables(variant, _) => {
            legacy::install(settings, variant, predecessor).map(|_| None)
        }
    }
}

fn choose(settings: &Settings, backend: Backend) -> Result<Choice, Refusal> {
    match backend {
        Backend::Nft => Ok(Choice::Nft(None)),
        Backend::Variant(variant) => Ok(Choice::Iptables(variant, None)),
        Backend::Iptables => Ok(Choice::Iptables(Variant::of_host()?, None)),
        Backend::Auto => match try_nft(settings) {
            Ok(()) => Ok(Choice::Nft(Some(
                "nft was chosen: it works here, and its rules end with the proxy".into(),
            ))),
            Err(Refusal::Kernel(error)) if !error.is_lack_of_privilege() => {
                let Some(variant) = first_that_works(settings)? else {
                    return Err(Refusal::Kernel(error));
                };
                let why = format!(
                    "{} was chosen, because nft does not work here: {error}",
                    variant.name()
                );
                Ok(Choice::Iptables(variant, Some(why)))
            }
            Err(refusal) => Err(refusal),
        },
    }
}

/// Loads the very rules, without a hook, into a table that goes at once.
fn try_nft(settings: &Settings) -> Result<(), Refusal> {
    let mut socket = NetlinkSocket::open()?;
    let host = tether::look(settings, Some(&mut socket))?;
    let mut table = Plan::new(settings, &host, 0)?.capture;
    table.name = format!("outrigger_{}_trial", settings.port());
    for chain in &mut table.chains {
        chain.hook = None;
    }
    nft::tables(&mut socket)?;
    nft::create(&mut socket, &table)?;
    nft::widen(&mut socket, &table)?;
    Ok(())
}

fn first_that_works(settings: &Settings) -> Result<Option<Variant>, Refusal> {
    let host = tether::look(settings, NetlinkSocket::open().ok().as_mut())?;
    let plan = Plan::new(settings, &host, 0)?;
    let mut all = Variant::of_host()
        .into_iter()
        .chain([Variant::Nft, Variant::Legacy]);
    Ok(all.find(|&variant| legacy::works(variant, &plan)))
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Nft),
            "iptables" => Ok(Self::Iptables),
            "iptables-legacy" => Ok(Self::Variant(Variant::Legacy)),
            "iptables-nft" => Ok(Self::Variant(Variant::Nft)),
            _ => Err(
                "no such backend; use `auto`, `nft`, `iptables`, `iptables-legacy` or `iptables-nft`"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Variant(variant) => variant.name(),
        })
    }
}
