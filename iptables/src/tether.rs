//! Binds capture to the life of the proxy: the order in which tables are made, handed over, put
//! into force and let go.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::Duration,
};

use outrigger_config::{
    Scope, Settings,
    control::{Identity, InIptables, Request, Status, Tether, TetherKind, Watch},
};
use serde::Serialize;

use crate::{
    cgroup::Cgroup,
    conntrack,
    control::{ANSWER_TIMEOUT, Proxy},
    error::{Leftover, Refusal},
    gate,
    host::Host,
    legacy,
    listeners::outbound_connections,
    lock::InstallLock,
    neighbours,
    nft::{self, NetlinkSocket, NftError, TableInfo},
    plan::{
        Family, IPTABLES_NAT_PRIORITY, NAT_PRIORITY, Plan, generation_of, is_closed, is_ours,
        log_group, table_name,
    },
    process::netlink_holders,
};

/// What an install came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// False: the same capture was in force already, and nothing was changed.
    pub changed: bool,
    /// How the rules were loaded.
    pub backend: &'static str,
    pub table: String,
    pub generation: u64,
    pub families: Vec<Family>,
    /// Whose connections.
    pub scope: Scope,
    pub proxy_pid: u32,
    pub proxy_uid: u32,
    pub notes: Vec<String>,
}

/// Keeps live and queued connections of a capture translated for as long as somebody holds it,
/// besides the proxy: what is queued at a listener that outlives the proxy can then still be asked
/// where it was going.
pub struct Anchor {
    owner: NetlinkSocket,
    table: String,
}

impl Anchor {
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl AsFd for Anchor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_fd()
    }
}

/// What a removal came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The captures that are gone now; empty: there was nothing to remove.
    pub tables: Vec<String>,
    pub notes: Vec<String>,
}

/// What [`install`] would load, without looking at the proxy and without changing anything.
///
/// # Errors
/// When the settings cannot be planned on this host.
pub(crate) fn dry_run(settings: &Settings) -> Result<Plan, Refusal> {
    let mut reader = NetlinkSocket::open();
    let host = look(settings, reader.as_mut().ok())?;
    // Without the privilege to list tables this is taken for the first generation.
    let tables = reader
        .and_then(|mut socket| nft::tables(&mut socket))
        .unwrap_or_default();
    let generation = next_generation(settings.port(), &tables, &[]);
    Plan::new(settings, &host, generation)
}

/// Passes the gate, captures, and leaves the capture to the proxy.
///
/// # Errors
/// The first check that failed; the rules are then as they were before.
///
/// `predecessor`: what a proxy holds that this one is about to replace on the same sockets. `is_swept`: what
/// a former proxy was redirected has been forgotten since it died.
pub(crate) fn install(
    settings: &Settings,
    predecessor: &[Tether],
    is_swept: bool,
) -> Result<(Installed, Option<Anchor>), Refusal> {
    let port = settings.port();
    let mut reader = NetlinkSocket::open()?;
    // First of all, because it shows the lack of privilege before anything else can.
    let tables = nft::tables(&mut reader)?;
    if !is_swept && predecessor.is_empty() {
        forget_redirected(&mut reader, port, &tables);
    }
    let host = look(settings, Some(&mut reader))?;
    let _lock = InstallLock::acquire(port)?;
    let tables = nft::tables(&mut reader)?;

    let draft = Plan::new(settings, &host, 0)?;
    let (mut proxy, identity) = gate::identify(&draft)?;
    let mut known = identity.clone();
    known.tethers.extend_from_slice(predecessor);
    refuse_strangers(port, &tables, &known)?;
    if let Some(generation) = in_force(&mut reader, settings, &host, &identity)? {
        let plan = Plan::new(settings, &host, generation)?;
        // An install that was killed just before its end leaves an older anchor behind.
        let_go_of_others(&mut reader, &mut proxy, &identity, &plan, predecessor)?;
        return Ok((legacy::sweep(port, report(&plan, &identity, false)), None));
    }
    let first = next_generation(port, &tables, &identity.tethers);
    let (generation, log) = bind_log(port, first);
    let plan = Plan::new(settings, &host, generation)?;
    let (plan, log) = with_counting(plan, log);
    let probed = gate::probe(&mut proxy, &identity, &plan, |targets| {
        gate::redirect(&plan, targets)
    })?;
    // Closed last, when the kernel has freed its table: else that would be waited for.
    let _probed = probed.end()?;
    let anchor = capture(
        &mut reader,
        &mut proxy,
        (&identity, predecessor),
        &plan,
        log,
    )?;
    let mut installed = thread::scope(|scope| {
        let forgetting = scope.spawn(|| forget_ended(&mut reader, &plan.families));
        let mut installed = report(&plan, &identity, true);
        installed
            .notes
            .extend(forgetting.join().unwrap_or_default());
        installed
    });
    installed = legacy::sweep(port, installed);
    Ok((installed, Some(anchor)))
}

/// Asks the proxy to let go of everything; idempotent.
///
/// # Errors
/// When a table of ours is still there: whose it is and how to end it.
pub fn remove(port: u16) -> Result<Removed, Refusal> {
    let mut reader = NetlinkSocket::open()?;
    tables_if_any(&mut reader)?;
    let _lock = InstallLock::acquire(port)?;
    let before = captures(&mut reader, port)?;
    let mut notes = Vec::new();
    // Nobody owns these, so that no proxy is needed for it.
    let in_iptables = legacy::remove(port);
    let asked = ask_to_release(port);
    let after = captures(&mut reader, port)?;
    if !after.is_empty() {
        // With the capture still on, the proxy's own reason says more than the table's name.
        return match asked {
            Err(
                refusal @ (Refusal::ProxySilent { .. }
                | Refusal::Declined { .. }
                | Refusal::NotAllowed { .. }),
            ) => Err(refusal),
            _ => Err(Refusal::StillThere(after.iter().map(leftover).collect())),
        };
    }
    let reopened = reopen_others(&mut reader, port, &[])?;
    if tables_if_any(&mut reader)?
        .iter()
        .any(|t| is_ours(&t.name, port))
    {
        notes.push(
            "a table that redirects nothing stays until the proxy's live connections have ended"
                .into(),
        );
    }
    let mut gone = in_iptables?;
    gone.extend(before.into_iter().map(|table| table.name));
    gone.extend(reopened);
    Ok(Removed {
        tables: gone,
        notes,
    })
}

/// What the proxy on `port` says of its capture; `None`: no proxy runs there.
///
/// # Errors
/// When the proxy does not answer.
pub fn status(port: u16) -> Result<Option<Status>, Refusal> {
    status_within(port, ANSWER_TIMEOUT)
}

/// The same, for a caller that will not wait longer than `limit` for the answer.
///
/// # Errors
/// When the proxy does not answer in that time.
pub fn status_within(port: u16, limit: Duration) -> Result<Option<Status>, Refusal> {
    match Proxy::connect_within(port, limit)? {
        Some(mut proxy) => {
            let status = proxy.status()?;
            Ok(Some(legacy::look_at_order(port, status)))
        }
        None => Ok(None),
    }
}

/// How the rules of a capture were loaded.
pub fn backend_of(tether: &Tether) -> &str {
    let in_iptables = tether.table.split(' ').next().filter(|_| tether.outlives);
    in_iptables.unwrap_or("nft")
}

/// Why the scope of `tether` has nobody in it, though its rules are in force.
pub fn scope_problem(tether: &Tether) -> Option<String> {
    let id = tether.cgroup_id?;
    let Scope::Cgroup(path) = &tether.scope else {
        return None;
    };
    let reinstall = "run install-rules again once the application's cgroup is there, and start the application after it";
    match Cgroup::find(path) {
        Ok(cgroup) if cgroup.id() == id => None,
        Ok(cgroup) => Some(format!(
            "captures nothing: cgroup {path} was removed and made again (number {id} then, {} now); {reinstall}",
            cgroup.id()
        )),
        Err(error) if error.is_absent() => Some(format!(
            "captures nothing: cgroup {path} (number {id}) is gone; {reinstall}"
        )),
        // Not for this process to see, such as from another cgroup namespace.
        Err(_) => None,
    }
}

pub(crate) fn look(
    settings: &Settings,
    socket: Option<&mut NetlinkSocket>,
) -> Result<Host, Refusal> {
    let mut host = Host::look(socket).map_err(|cause| Refusal::Host {
        doing: "looking at the host".into(),
        cause,
    })?;
    if let Scope::Cgroup(path) = &settings.capture.scope {
        host.cgroup = Some(Cgroup::find(path)?);
    }
    host.neighbours = neighbours::of(settings.port());
    Ok(host)
}

pub(crate) fn report(plan: &Plan, identity: &Identity, changed: bool) -> Installed {
    Installed {
        changed,
        backend: "nft",
        table: plan.capture.name.clone(),
        generation: plan.generation,
        families: plan.families.clone(),
        scope: plan.scope.clone(),
        proxy_pid: identity.pid,
        proxy_uid: plan.proxy.uid,
        notes: [plan.notes.clone(), neighbours::notes(plan, identity)].concat(),
    }
}

/// To be called once the capture is in force: what ends from then on has been captured. It works without this
/// too, which is then noted.
pub(crate) fn forget_ended(reader: &mut NetlinkSocket, families: &[Family]) -> Option<String> {
    let refusal = conntrack::forget_ended(reader, families).err()?;
    Some(format!(
        "connections from ports that were in use a moment ago may still go past the proxy ({refusal})"
    ))
}

/// Before the first rule of a first capture, even a trial, wakes connection tracking: what a former proxy has
/// left to it.
pub(crate) fn forget_redirected(reader: &mut NetlinkSocket, port: u16, tables: &[TableInfo]) {
    if !tables.iter().any(|table| is_capture(&table.name, port))
        && let Err(error) = conntrack::forget_redirected(reader, &Family::ALL, port)
    {
        tracing::warn!(%error, "what a former proxy was redirected may still be");
    }
}

/// The generation under which exactly this capture is in force, whole and alone.
fn in_force(
    reader: &mut NetlinkSocket,
    settings: &Settings,
    host: &Host,
    identity: &Identity,
) -> Result<Option<u64>, Refusal> {
    let mut captures = identity
        .tethers
        .iter()
        .filter(|tether| tether.kind == TetherKind::Capture);
    let (Some(held), None) = (captures.next(), captures.next()) else {
        return Ok(None);
    };
    let plan = Plan::new(settings, host, held.generation)?;
    let is_same = held.fingerprint == plan.fingerprint() && identity.captured_since.is_some();
    if !is_same {
        return Ok(None);
    }
    if nft::verify(reader, &plan.anchor)?.is_some() {
        return Ok(None);
    }
    // Where nothing could be counted the chains for it are not there, and only they.
    let uncounted = plan.clone().without_counting();
    if nft::verify(reader, &plan.capture)?.is_some()
        && nft::verify(reader, &uncounted.capture)?.is_some()
    {
        return Ok(None);
    }
    if !is_kept_closed(reader, identity, &plan)? {
        return Ok(None);
    }
    // Else the proxy hangs, and captures nothing: it has to prove itself anew.
    let is_leased = nft::is_leased(reader, &plan.capture, &plan.families)?;
    Ok(is_leased.then_some(held.generation))
}

/// A redirect of ours that this proxy does not hold would outlive it, or belongs to another.
pub(crate) fn refuse_strangers(
    port: u16,
    tables: &[TableInfo],
    identity: &Identity,
) -> Result<(), Refusal> {
    let strangers: Vec<_> = tables
        .iter()
        .filter(|table| is_capture(&table.name, port))
        .filter(|table| !identity.tethers.iter().any(|t| t.table == table.name))
        .map(leftover)
        .collect();
    if strangers.is_empty() {
        Ok(())
    } else {
        Err(Refusal::StillThere(strangers))
    }
}

pub(crate) fn next_generation(port: u16, tables: &[TableInfo], tethers: &[Tether]) -> u64 {
    let named = tables.iter().filter_map(|t| generation_of(&t.name, port));
    let held = tethers.iter().map(|tether| tether.generation);
    // Saturating: the number comes from names that others may have given.
    named.chain(held).max().unwrap_or(0).saturating_add(1)
}

/// Hands over before it widens: from the first redirected packet on, the kernel ends the capture
/// with the proxy. This process' copy of the capture's socket closes on return, which is last; that
/// of the anchor's is the caller's to keep.
fn capture(
    reader: &mut NetlinkSocket,
    proxy: &mut Proxy,
    (identity, predecessor): (&Identity, &[Tether]),
    plan: &Plan,
    log: Option<NetlinkSocket>,
) -> Result<Anchor, Refusal> {
    let mut anchor = NetlinkSocket::open()?;
    nft::create(&mut anchor, &plan.anchor)?;
    nft::widen(&mut anchor, &plan.anchor)?;
    let mut capture = NetlinkSocket::open()?;
    nft::create(&mut capture, &plan.capture)?;

    let mut closed = None;
    let done = proxy
        .hold(tether(plan, TetherKind::Anchor), &anchor)
        .and_then(|()| proxy.hold(tether(plan, TetherKind::Capture), &capture))
        .map(|()| watch(reader, proxy, plan, log.as_ref(), None))
        .and_then(|()| put_into_force(reader, proxy, &mut capture, plan))
        .and_then(|()| keep_closed(reader, proxy, plan, &mut closed))
        .and_then(|()| let_go_of_others(reader, proxy, identity, plan, predecessor));
    if done.is_err() {
        withdraw(proxy, &mut capture, plan);
        undo_closed(closed, plan);
    }
    done.map(|()| Anchor {
        owner: anchor,
        table: plan.anchor.name.clone(),
    })
}

/// Refuses what must not go direct. Only once it is captured, since until then it is reached directly or,
/// with an older table of the kind, not at all; and before that one goes.
pub(crate) fn keep_closed(
    reader: &mut NetlinkSocket,
    proxy: &mut Proxy,
    plan: &Plan,
    made: &mut Option<NetlinkSocket>,
) -> Result<(), Refusal> {
    let Some(table) = &plan.closed else {
        return Ok(());
    };
    let socket = made.insert(NetlinkSocket::open()?);
    nft::create(socket, table)?;
    proxy.hold(tether(plan, TetherKind::Closed), &*socket)?;
    nft::widen(socket, table)?;
    match nft::verify(reader, table)? {
        Some(difference) => Err(Refusal::ReadBack { difference }),
        None => Ok(()),
    }
}

/// Takes [`keep_closed`] back.
pub(crate) fn undo_closed(made: Option<NetlinkSocket>, plan: &Plan) {
    if let (Some(mut socket), Some(table)) = (made, &plan.closed) {
        let _ = nft::delete(&mut socket, &table.name);
    }
}

/// Whether exactly what `plan` says is refused, by a table that the proxy holds.
pub(crate) fn is_kept_closed(
    reader: &mut NetlinkSocket,
    identity: &Identity,
    plan: &Plan,
) -> Result<bool, Refusal> {
    let mut held = identity
        .tethers
        .iter()
        .filter(|held| held.kind == TetherKind::Closed);
    let Some(table) = &plan.closed else {
        return Ok(held.next().is_none());
    };
    Ok(held.any(|held| held.table == table.name) && nft::verify(reader, table)?.is_none())
}

/// The tables that refuse what must not go direct, with a proxy or without.
///
/// # Errors
/// When the kernel does not list them, for lack of privilege above all.
pub fn closed(port: u16) -> Result<Vec<String>, Refusal> {
    let mut tables = tables_if_any(&mut NetlinkSocket::open()?)?;
    tables.retain(|table| is_closed(&table.name, port));
    Ok(tables.into_iter().map(|table| table.name).collect())
}

/// Deletes those that the proxy on `port` does not hold, if there is one: for a supervisor, of which another proxy
/// has let go of them.
///
/// # Errors
/// When one is held by somebody else, or cannot be deleted.
pub fn reopen(port: u16) -> Result<(), Refusal> {
    let held = status(port)?.map_or_else(Vec::new, |status| status.proxy.tethers);
    let kept: Vec<_> = held.iter().map(|tether| tether.table.as_str()).collect();
    reopen_others(&mut NetlinkSocket::open()?, port, &kept).map(drop)
}

/// Deletes those tables, but for `kept`. To be called when no proxy holds them any more.
fn reopen_others(
    reader: &mut NetlinkSocket,
    port: u16,
    kept: &[&str],
) -> Result<Vec<String>, Refusal> {
    let mut gone = Vec::new();
    for table in tables_if_any(reader)? {
        if !is_closed(&table.name, port) || kept.contains(&table.name.as_str()) {
            continue;
        }
        match nft::delete(reader, &table.name) {
            Ok(()) => gone.push(table.name),
            Err(error) if error.cause.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.cause.raw_os_error() == Some(libc::EPERM) => {
                return Err(Refusal::StillThere(vec![leftover(&table)]));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(gone)
}

pub(crate) fn tether(plan: &Plan, kind: TetherKind) -> Tether {
    let table = match kind {
        TetherKind::Capture => &plan.capture,
        TetherKind::Anchor => &plan.anchor,
        TetherKind::Closed => plan.closed.as_ref().unwrap_or(&plan.capture),
    };
    Tether {
        kind,
        table: table.name.clone(),
        generation: plan.generation,
        fingerprint: plan.fingerprint().into(),
        lease: (kind == TetherKind::Capture).then(|| plan.lease.clone()),
        outlives: false,
        scope: plan.scope.clone(),
        cgroup_id: plan.cgroup.as_ref().map(Cgroup::id),
    }
}

/// Another program may have the group that goes with a generation; the next one has another.
pub(crate) fn bind_log(port: u16, first: u64) -> (u64, Result<NetlinkSocket, NftError>) {
    const TRIES: u64 = 8;
    let mut bound = Err(NftError::new(
        "taking an NFLOG group",
        std::io::Error::from_raw_os_error(libc::EBUSY),
    ));
    for generation in (first..).take(TRIES as usize) {
        bound = nft::log_socket(log_group(port, generation));
        let is_taken = |e: &NftError| e.cause.raw_os_error() == Some(libc::EPERM);
        if !bound.as_ref().is_err_and(is_taken) {
            return (generation, bound);
        }
    }
    (first, bound)
}

/// Capture works without it.
pub(crate) fn with_counting(
    plan: Plan,
    log: Result<NetlinkSocket, NftError>,
) -> (Plan, Option<NetlinkSocket>) {
    match log {
        Ok(socket) => (plan, Some(socket)),
        Err(error) => {
            let mut plan = plan.without_counting();
            plan.notes.push(uncounted(&error));
            (plan, None)
        }
    }
}

pub(crate) fn uncounted(error: &NftError) -> String {
    format!("connections that go past the capture are not counted: {error}")
}

/// What the proxy is given to see for itself; capture works without it too.
pub(crate) fn watch(
    reader: &mut NetlinkSocket,
    proxy: &mut Proxy,
    plan: &Plan,
    log: Option<&NetlinkSocket>,
    iptables: Option<InIptables>,
) {
    let generation = plan.generation;
    let priority = match iptables {
        Some(_) => IPTABLES_NAT_PRIORITY,
        None => NAT_PRIORITY,
    };
    let mut give = |watch: Watch, socket: &NetlinkSocket| {
        let request = Request::Watch { generation, watch };
        if let Err(error) = proxy.give("handing a watch over", &request, socket) {
            tracing::warn!("the proxy does not take a watch: {error}");
        }
    };
    if let Some(socket) = log {
        let live_before = outbound_connections(plan.proxy.excluded_uid).unwrap_or_default();
        give(Watch::Bypasses { live_before }, socket);
    }
    // Subscribed before the rules are listed, so that no change falls between.
    match nft::change_socket() {
        Ok(socket) => {
            let ahead = nft::chains_ahead(reader, priority).unwrap_or_else(|error| {
                tracing::warn!("foreign rules from before are not known: {error}");
                Vec::new()
            });
            give(Watch::Changes { ahead, iptables }, &socket);
        }
        Err(error) => tracing::warn!("changes of rules are not watched: {error}"),
    }
}

fn put_into_force(
    reader: &mut NetlinkSocket,
    proxy: &mut Proxy,
    capture: &mut NetlinkSocket,
    plan: &Plan,
) -> Result<(), Refusal> {
    nft::widen(capture, &plan.capture)?;
    for table in [&plan.capture, &plan.anchor] {
        if let Some(difference) = nft::verify(reader, table)? {
            return Err(Refusal::ReadBack { difference });
        }
    }
    proxy.tell(
        "telling the proxy that capture is on",
        &Request::Captured {
            generation: plan.generation,
        },
    )?;
    if nft::is_leased(reader, &plan.capture, &plan.families)? {
        Ok(())
    } else {
        Err(Refusal::NoLease)
    }
}

/// Only now, with the new generation in force, so that there is no gap.
pub(crate) fn let_go_of_others(
    reader: &mut NetlinkSocket,
    proxy: &mut Proxy,
    identity: &Identity,
    plan: &Plan,
    predecessor: &[Tether],
) -> Result<(), Refusal> {
    let mut others: BTreeSet<_> = identity.tethers.iter().map(|t| t.generation).collect();
    others.remove(&plan.generation);
    for generation in others {
        proxy.tell(
            "asking the proxy to let an older capture go",
            &Request::Release {
                generation: Some(generation),
            },
        )?;
    }
    // The others are gone by the proxy's word; that they cannot be listed just now is no reason to
    // give up the new one too.
    let left: Vec<_> = captures(reader, plan.port)
        .unwrap_or_default()
        .iter()
        .filter(|table| table.name != plan.capture.name)
        .filter(|table| !predecessor.iter().any(|held| held.table == table.name))
        .map(leftover)
        .collect();
    if !left.is_empty() {
        return Err(Refusal::StillThere(left));
    }
    let held = predecessor.iter().map(|held| held.table.as_str());
    let kept: Vec<_> = plan
        .closed
        .iter()
        .map(|table| table.name.as_str())
        .chain(held)
        .collect();
    reopen_others(reader, plan.port, &kept).map(drop)
}

/// Back to before. The redirect goes at once and by our own hand, whatever the proxy does; the
/// anchor is the proxy's to drop, since a connection may have been captured meanwhile.
fn withdraw(proxy: &mut Proxy, capture: &mut NetlinkSocket, plan: &Plan) {
    let _ = nft::delete(capture, &plan.capture.name);
    let _ = proxy.tell(
        "asking the proxy to let the new capture go",
        &Request::Release {
            generation: Some(plan.generation),
        },
    );
}

/// `Ok` also when there is nobody to ask.
fn ask_to_release(port: u16) -> Result<(), Refusal> {
    match Proxy::connect(port)? {
        Some(mut proxy) => proxy.tell(
            "asking the proxy to let go",
            &Request::Release { generation: None },
        ),
        None => Ok(()),
    }
}

fn captures(reader: &mut NetlinkSocket, port: u16) -> Result<Vec<TableInfo>, Refusal> {
    let mut tables = tables_if_any(reader)?;
    tables.retain(|table| is_capture(&table.name, port));
    Ok(tables)
}

/// None either where the kernel has no nftables.
pub(crate) fn tables_if_any(reader: &mut NetlinkSocket) -> Result<Vec<TableInfo>, Refusal> {
    match nft::tables(reader) {
        Err(error) if !error.is_lack_of_privilege() => Ok(Vec::new()),
        tables => Ok(tables?),
    }
}

/// Ours, and more than an anchor, which redirects nothing.
fn is_capture(table: &str, port: u16) -> bool {
    generation_of(table, port).is_some_and(|generation| table == table_name(port, generation))
}

fn leftover(table: &TableInfo) -> Leftover {
    Leftover {
        table: table.name.clone(),
        owned: table.owner.is_some(),
        holders: table.owner.map(netlink_holders).unwrap_or_default(),
    }
}
