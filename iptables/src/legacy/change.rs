//! The way from the rules that there are to the rules that there shall be, and back.

use std::{fmt, net::SocketAddr};

use super::{
    IptablesError, Variant, lease,
    programs::Programs,
    rules::{self, probe_name},
    ruleset::State,
};
use crate::{
    nft::{self, NetlinkSocket},
    plan::{Family, Plan},
};

const NAT: &str = "nat";
const MANGLE: &str = "mangle";

/// Ours in the tables of one variant and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// What redirects.
    nat: State,
    /// What renews the lease.
    mangle: State,
}

/// Rolled back when dropped before [`finish`](Self::finish).
pub(super) struct Change {
    port: u16,
    sites: Vec<Site>,
    is_over: bool,
}

/// One variant and family on this host.
struct Site {
    programs: Programs,
    before: Tables,
    now: Tables,
    wanted: Tables,
    /// Built-in tables that were not there, which iptables-nft makes and never takes away.
    absent: Vec<&'static str>,
    is_chosen: bool,
    is_touched: bool,
}

impl Tables {
    pub(super) fn planned(plan: &Plan, family: Family) -> Result<Self, IptablesError> {
        Ok(Self {
            nat: rules::capture(plan, family)?,
            mangle: rules::beat(plan, family),
        })
    }

    fn read(programs: &Programs, port: u16) -> Result<Self, IptablesError> {
        Self::in_listing(&programs.save()?, programs, port)
    }

    fn in_listing(listing: &str, programs: &Programs, port: u16) -> Result<Self, IptablesError> {
        let name = programs.name();
        let read = |table| State::read(listing, table, port).check(&name, table);
        Ok(Self {
            nat: read(NAT)?,
            mangle: read(MANGLE)?,
        })
    }

    fn is_empty(&self) -> bool {
        self.nat.is_empty() && self.mangle.is_empty()
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nothing = State::default();
        for (table, state) in [(MANGLE, &self.mangle), (NAT, &self.nat)] {
            f.write_str(&nothing.script(table, state).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Change {
    /// Looks at everything and changes nothing.
    pub(super) fn begin(variant: Variant, plan: &Plan) -> Result<Self, IptablesError> {
        let mut sites = Vec::new();
        for (of, family) in everywhere() {
            let is_chosen = of == variant && plan.families.contains(&family);
            let programs = match Programs::find(of, family) {
                Ok(programs) => programs,
                Err(missing) if is_chosen => return Err(missing),
                // Nothing can have been loaded without them.
                Err(_) => continue,
            };
            let listing = match programs.save() {
                Err(error) if is_chosen => return Err(error),
                // A variant that does not work here holds nothing.
                listing => listing.unwrap_or_default(),
            };
            let before = Tables::in_listing(&listing, &programs, plan.port)?;
            let is_absent = |table: &&str| !listing.contains(&format!("*{table}\n"));
            let wanted = if is_chosen {
                Tables::planned(plan, family)?
            } else {
                Tables::default()
            };
            sites.push(Site {
                now: before.clone(),
                programs,
                before,
                wanted,
                absent: [NAT, MANGLE].into_iter().filter(is_absent).collect(),
                is_chosen,
                is_touched: false,
            });
        }
        Ok(Self {
            port: plan.port,
            sites,
            is_over: false,
        })
    }

    /// Whether everything is as wanted already.
    pub(super) fn is_done(&self) -> bool {
        self.sites.iter().all(|site| site.now == site.wanted)
    }

    /// The gate's redirect, ahead of what may be in force.
    pub(super) fn load_probe(
        &mut self,
        plan: &Plan,
        targets: &[SocketAddr],
    ) -> Result<(), IptablesError> {
        let probe = probe_name(self.port);
        for site in self.sites.iter_mut().filter(|site| site.is_chosen) {
            let family = site.programs.family;
            let Some(&target) = targets.iter().find(|t| Family::of(t.ip()) == family) else {
                continue;
            };
            let before = site.before.clone();
            let ahead = rules::probe_beat(plan.port, target);
            site.load(MANGLE, before.mangle.without(&probe).behind(&ahead))?;
            let ahead = rules::probe(plan, target);
            site.load(NAT, before.nat.without(&probe).behind(&ahead))?;
        }
        Ok(())
    }

    /// Loads the capture, which waits for its lease. Where another variant takes the beats of the same
    /// family, it must leave the next one to this: its lease runs on for a moment, so that there is no
    /// gap.
    pub(super) fn load_capture(&mut self) -> Result<(), IptablesError> {
        let mut families = Vec::new();
        for site in self.sites.iter_mut().filter(|site| site.is_chosen) {
            let wanted = site.wanted.clone();
            site.load(MANGLE, wanted.mangle)?;
            site.load(NAT, wanted.nat)?;
            site.verify(self.port)?;
            families.push(site.programs.family);
        }
        self.sites
            .iter_mut()
            .filter(|site| !site.is_chosen && families.contains(&site.programs.family))
            .try_for_each(|site| site.load(MANGLE, State::default()))
    }

    /// Takes away what else there is of ours.
    pub(super) fn finish(&mut self) -> Result<(), IptablesError> {
        for site in self.sites.iter_mut().filter(|site| !site.is_chosen) {
            site.load(NAT, State::default())?;
            site.load(MANGLE, State::default())?;
        }
        self.is_over = true;
        Ok(())
    }

    /// To what was there before; whatever fails leaves rules whose lease runs out.
    pub(super) fn roll_back(&mut self) {
        self.is_over = true;
        for site in self.sites.iter_mut().filter(|site| site.is_touched) {
            // Somebody else may have changed the places meanwhile.
            if let Ok(found) = Tables::read(&site.programs, self.port) {
                site.now = found;
            }
            for (table, state) in [
                (NAT, site.before.nat.clone()),
                (MANGLE, site.before.mangle.clone()),
            ] {
                if let Err(error) = site.load(table, state) {
                    tracing::warn!(%error, table, "a rule could not be taken back");
                }
            }
            site.drop_what_was_absent();
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.is_over {
            self.roll_back();
        }
    }
}

impl Site {
    fn load(&mut self, table: &str, wanted: State) -> Result<(), IptablesError> {
        let now = match table {
            NAT => &mut self.now.nat,
            _ => &mut self.now.mangle,
        };
        if let Some(script) = now.script(table, &wanted) {
            // A program that fails may have done its work.
            self.is_touched = true;
            self.programs.restore(&script)?;
            *now = wanted;
        }
        Ok(())
    }

    /// A legacy table stays for as long as the network namespace.
    fn drop_what_was_absent(&self) {
        if self.programs.variant != Variant::Nft || self.absent.is_empty() {
            return;
        }
        let Ok(mut socket) = NetlinkSocket::open() else {
            return;
        };
        for table in &self.absent {
            // It stays if somebody else uses it by now.
            let _ = nft::delete_empty(&mut socket, self.programs.family, table);
        }
    }

    fn verify(&self, port: u16) -> Result<(), IptablesError> {
        let found = Tables::read(&self.programs, port)?;
        let difference = self
            .wanted
            .nat
            .difference(&found.nat)
            .or_else(|| self.wanted.mangle.difference(&found.mangle));
        match difference {
            None => Ok(()),
            Some(difference) => Err(IptablesError::ReadBack {
                program: self.programs.name(),
                difference,
            }),
        }
    }
}

/// Everything of ours, in every variant and family; names what is gone.
pub(super) fn remove_all(port: u16) -> Result<Vec<String>, IptablesError> {
    let mut gone = Vec::new();
    let mut unreadable = None;
    for (variant, family) in everywhere() {
        let Ok(programs) = Programs::find(variant, family) else {
            continue;
        };
        let now = match Tables::read(&programs, port) {
            Ok(now) => now,
            Err(error @ IptablesError::Entangled { .. }) => return Err(error),
            Err(error) => {
                unreadable = unreadable.or(Some(error));
                continue;
            }
        };
        if now.is_empty() {
            continue;
        }
        let mut site = Site {
            programs,
            before: now.clone(),
            now,
            wanted: Tables::default(),
            absent: Vec::new(),
            is_chosen: false,
            is_touched: false,
        };
        // What redirects first: without a beat it would wait for its lease.
        site.load(NAT, State::default())?;
        site.load(MANGLE, State::default())?;
        gone.push(format!(
            "{} {} ({})",
            variant.name(),
            rules::capture_name(port),
            family.name()
        ));
    }
    match unreadable {
        // Such as iptables-nft on a kernel without nf_tables, which holds nothing of ours.
        Some(error) if lease::is_any_listed(port) => Err(error),
        _ => Ok(gone),
    }
}

fn everywhere() -> impl Iterator<Item = (Variant, Family)> {
    Variant::ALL
        .into_iter()
        .flat_map(|variant| Family::ALL.map(|family| (variant, family)))
}
