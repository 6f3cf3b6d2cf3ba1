//! Capture with the iptables programs, for hosts where everything must be iptables' or that have
//! nothing else.
//!
//! Rules of iptables belong to nobody, so no kernel removes them with the proxy. They work only
//! while the proxy's beat renews a lease (a list of xt_recent with one entry), and after its death
//! stay without effect until `remove-rules`.

mod change;
mod error;
mod lease;
mod order;
mod programs;
mod rules;
mod ruleset;

use std::net::SocketAddr;

use outrigger_config::{
    Scope, Settings,
    control::{Identity, InIptables, Request, Tether, TetherKind, Watch},
};

pub use error::IptablesError;
pub(crate) use order::look as look_at_order;
pub use programs::Variant;

use crate::{
    control::Proxy,
    error::Refusal,
    gate,
    lock::InstallLock,
    nft::{self, NetlinkSocket, NftError},
    plan::{self, Family, Plan},
    tether::{self, Installed},
};
use change::{Change, Tables};

/// Measured on Linux 6.18: a thousand rules add 2 to 3 µs to a connect of 11 µs.
const MAX_RULES: usize = 1000;

/// What would be loaded, as input of the restore programs.
pub(crate) fn dry_run(plan: &Plan, variant: Variant) -> Result<String, Refusal> {
    check_scope(plan, variant)?;
    let mut text = String::new();
    for note in &plan.notes {
        text += &format!("# {note}\n");
    }
    for &family in &plan.families {
        let command = match family {
            Family::V4 => variant.name().to_owned(),
            Family::V6 => variant.name().replacen("ip", "ip6", 1),
        };
        let wanted = Tables::planned(plan, family)?;
        text += &format!("# {command}-restore --noflush\n{wanted}");
    }
    Ok(text)
}

/// As [`tether::install`], with the rules in iptables. The chains are of the port and not of the proxy: those
/// of a predecessor are replaced by the new ones, in one step for each family and table. It gives no beat while
/// it yields, so that the lease speaks for the new proxy.
pub(crate) fn install(
    settings: &Settings,
    variant: Variant,
    predecessor: &[Tether],
) -> Result<Installed, Refusal> {
    let port = settings.port();
    let mut reader = NetlinkSocket::open()?;
    let tables = tether::tables_if_any(&mut reader)?;
    // Rules that are loaded may be redirecting, which the proxy knows.
    let is_first = predecessor.is_empty() && !lease::is_any_listed(port);
    if is_first {
        tether::forget_redirected(&mut reader, port, &tables);
    }
    let host = tether::look(settings, Some(&mut reader))?;
    let _lock = InstallLock::acquire(port)?;
    let tables = tether::tables_if_any(&mut reader)?;

    let draft = Plan::new(settings, &host, 0)?;
    check_scope(&draft, variant)?;
    let mut change = Change::begin(variant, &draft)?;
    let (mut proxy, identity) = gate::identify(&draft)?;
    let mut known = identity.clone();
    known.tethers.extend_from_slice(predecessor);
    tether::refuse_strangers(port, &tables, &known)?;
    if let Some(plan) = in_force(&change, &draft, &identity, variant)
        .map(|generation| Plan::new(settings, &host, generation))
        .transpose()?
        && tether::is_kept_closed(&mut reader, &identity, &plan)?
    {
        tether::let_go_of_others(&mut reader, &mut proxy, &identity, &plan, predecessor)?;
        return Ok(report(&plan, &identity, variant, false));
    }
    let first = tether::next_generation(port, &tables, &known.tethers);
    let (generation, log) = tether::bind_log(port, first);
    let (mut plan, log) = tether::with_counting(Plan::new(settings, &host, generation)?, log);
    plan.lease.millis = lease::seconds(&plan) * 1000;
    let mut closed = None;
    let captures = |tether: &Tether| tether.kind == TetherKind::Capture;
    if !is_first && !known.tethers.iter().any(captures) {
        tether::forget_redirected(&mut reader, port, &tables);
    }
    let done = Companion::begin(&mut plan, log)
        .and_then(|companion| hold(&mut proxy, &mut plan, variant, companion))
        .and_then(|companion| {
            put_into_force(&mut change, &mut proxy, &identity, &plan).map(|()| companion)
        })
        .map(|companion| companion.count(&mut plan))
        .map(|()| hand_over_applications(&mut proxy, &plan))
        .and_then(|()| tether::keep_closed(&mut reader, &mut proxy, &plan, &mut closed))
        .and_then(|()| {
            tether::let_go_of_others(&mut reader, &mut proxy, &identity, &plan, predecessor)
        });
    if let Err(refusal) = done {
        change.roll_back();
        let _ = proxy.tell(
            "asking the proxy to let the new capture go",
            &Request::Release {
                generation: Some(generation),
            },
        );
        tether::undo_closed(closed, &plan);
        return Err(refusal);
    }
    let mut installed = report(&plan, &identity, variant, true);
    let unforgotten = tether::forget_ended(&mut reader, &plan.families);
    installed.notes.extend(unforgotten);
    Ok(installed)
}

/// After an install by another backend: takes away what there is of ours in iptables.
pub(crate) fn sweep(port: u16, mut installed: Installed) -> Installed {
    if lease::is_any_listed(port) {
        let note = match change::remove_all(port) {
            Ok(gone) => format!("removed: {}", gone.join(", ")),
            Err(error) => format!(
                "older rules are left, without effect: {error}; {}",
                error.advice()
            ),
        };
        installed.notes.push(note);
    }
    installed
}

/// Measured: with a rule by a cgroup that is gone the kernel answers every change with EINVAL.
fn check_scope(plan: &Plan, variant: Variant) -> Result<(), IptablesError> {
    match plan.scope {
        Scope::Cgroup(_) if variant == Variant::Legacy => Err(IptablesError::CgroupInLegacy),
        _ => Ok(()),
    }
}

/// Whether the programs of `variant` are there and understand this kernel.
pub(crate) fn works(variant: Variant, plan: &Plan) -> bool {
    check_scope(plan, variant).is_ok()
        && plan.families.iter().all(|&family| {
            programs::Programs::find(variant, family).is_ok_and(|programs| programs.save().is_ok())
        })
}

/// Removes ours from every variant and family; names what is gone.
pub(crate) fn remove(port: u16) -> Result<Vec<String>, Refusal> {
    Ok(change::remove_all(port)?)
}

/// The generation under which exactly this capture is in force, whole and alone.
fn in_force(change: &Change, draft: &Plan, identity: &Identity, variant: Variant) -> Option<u64> {
    let mut captures = identity
        .tethers
        .iter()
        .filter(|tether| tether.kind == TetherKind::Capture);
    let (Some(held), None) = (captures.next(), captures.next()) else {
        return None;
    };
    let is_same = held.fingerprint == fingerprint(draft, variant)
        && identity.captured_since.is_some()
        && change.is_done();
    let is_fresh =
        |family: &Family| lease::is_renewed(draft, *family, &lease::entry(draft, *family));
    (is_same && draft.families.iter().all(is_fresh)).then_some(held.generation)
}

/// Without nftables beside iptables: an early return for such sockets takes a set of addresses and ports,
/// which a list of xt_recent is not.
fn bound_to_device(error: &NftError) -> String {
    format!(
        "sockets bound to a device (SO_BINDTODEVICE) cannot connect while rules of iptables capture them: exclude their user, group or destination, or use --backend nft ({error})"
    )
}

/// Does from within nftables what iptables cannot, where there is such: the capture works without it too.
struct Companion {
    socket: NetlinkSocket,
    is_made: bool,
    log: Option<NetlinkSocket>,
}

impl Companion {
    /// Makes its table, which counts nothing yet.
    fn begin(plan: &mut Plan, log: Option<NetlinkSocket>) -> Result<Self, Refusal> {
        let mut socket = NetlinkSocket::open()?;
        let mut table = plan.companion();
        table.chains.retain(|chain| !plan::is_counting(chain));
        let made = nft::create(&mut socket, &table).and_then(|()| nft::widen(&mut socket, &table));
        if let Err(error) = &made {
            plan.notes.push(bound_to_device(error));
            plan.notes
                .extend(log.is_some().then(|| tether::uncounted(error)));
        }
        Ok(Self {
            socket,
            is_made: made.is_ok(),
            log: log.filter(|_| made.is_ok()),
        })
    }

    /// To be called with the capture in force, or what was not captured before would be counted.
    fn count(mut self, plan: &mut Plan) {
        let mut table = plan.companion();
        table.chains.retain(plan::is_counting);
        if self.is_made
            && self.log.is_some()
            && let Err(error) = nft::widen(&mut self.socket, &table)
        {
            plan.notes.push(tether::uncounted(&error));
        }
    }
}

/// The proxy beats for what it holds. Of this capture the socket owns the companion only; it is held
/// for the beat's sake, and so that an install and `remove-rules` treat both backends alike.
fn hold(
    proxy: &mut Proxy,
    plan: &mut Plan,
    variant: Variant,
    companion: Companion,
) -> Result<Companion, Refusal> {
    let mut anchor = NetlinkSocket::open()?;
    let anchored =
        nft::create(&mut anchor, &plan.anchor).and_then(|()| nft::widen(&mut anchor, &plan.anchor));
    match anchored {
        Ok(()) => proxy.hold(tether::tether(plan, TetherKind::Anchor), &anchor)?,
        Err(error) => plan.notes.push(format!(
            "connections that live when the rules are removed may break: nothing keeps their translation here ({error})"
        )),
    }
    let capture = Tether {
        table: chain(plan.port, variant),
        fingerprint: fingerprint(plan, variant),
        outlives: true,
        ..tether::tether(plan, TetherKind::Capture)
    };
    proxy.hold(capture, &companion.socket)?;
    let chain = (variant == Variant::Nft).then(|| rules::capture_name(plan.port));
    tether::watch(
        &mut NetlinkSocket::open()?,
        proxy,
        plan,
        companion.log.as_ref(),
        Some(InIptables { chain }),
    );
    Ok(companion)
}

/// A rule of another may come before ours and spare the proxy, so that the proxy cannot see it by itself.
/// To be called with the capture in force, which works without it too.
fn hand_over_applications(proxy: &mut Proxy, plan: &Plan) {
    let sockets = match gate::application_sockets(plan) {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::warn!("rules before ours that spare the proxy are not noticed: {error}");
            return;
        }
    };
    for socket in &sockets {
        let request = Request::Watch {
            generation: plan.generation,
            watch: Watch::Application,
        };
        if let Err(error) = proxy.give("handing an application's socket over", &request, socket) {
            tracing::warn!("the proxy does not take an application's socket: {error}");
        }
    }
}

fn put_into_force(
    change: &mut Change,
    proxy: &mut Proxy,
    identity: &Identity,
    plan: &Plan,
) -> Result<(), Refusal> {
    gate::probe(proxy, identity, plan, |targets: &[SocketAddr]| {
        change.load_probe(plan, targets)?;
        targets
            .iter()
            .try_for_each(|target| lease::start_probe(*target))?;
        Ok(())
    })?;
    change.load_capture()?;
    let entries: Vec<_> = plan
        .families
        .iter()
        .map(|&family| (family, lease::entry(plan, family)))
        .collect();
    proxy.tell(
        "telling the proxy that capture is on",
        &Request::Captured {
            generation: plan.generation,
        },
    )?;
    for (family, before) in entries {
        if !lease::is_renewed(plan, family, &before) {
            return Err(IptablesError::NoBeat { family }.into());
        }
    }
    change.finish()?;
    Ok(())
}

fn fingerprint(plan: &Plan, variant: Variant) -> String {
    format!("{} {}", variant.name(), plan.fingerprint())
}

/// The capture's name for people: where to look, and for what.
fn chain(port: u16, variant: Variant) -> String {
    format!("{} {}", variant.name(), rules::capture_name(port))
}

fn report(plan: &Plan, identity: &Identity, variant: Variant, changed: bool) -> Installed {
    let mut installed = tether::report(plan, identity, changed);
    installed.backend = variant.name();
    installed.table = chain(plan.port, variant);
    installed.notes.push(format!(
        "iptables rules do not end with the proxy: should it be killed, new connections are refused for up to {} s, then go direct, and the rules stay without effect until remove-rules; --backend nft has neither",
        lease::seconds(plan)
    ));
    installed
}
