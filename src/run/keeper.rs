//! Keeps a proxy running and captured for, on a thread of its own: start, gate, capture, watch, and
//! again after each death, for as long as the breaker lets it.

mod leaving;
mod replacing;

use std::{
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use outrigger_config::{Settings, control::Tether};
use outrigger_iptables::{Anchor, Backend, Installed, Refusal, repair::Pace};
use outrigger_proxy::fd_store;
use rustix::{
    event::{PollFd, PollFlags},
    process::Signal,
};

use super::{
    breaker::Breaker,
    deaths::{self, Deaths},
    proxy::{Program, Proxy, Seen, poll_within},
    report::{Capture, Report},
    sockets::Sockets,
    upgrade::{self, Outcome, Upgrade},
};

/// Between attempts to capture for a healthy proxy, and doubled with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// What a proxy may take beyond its drain before it is killed.
const GRACE: Duration = Duration::from_secs(5);

const STOP: u8 = b's';
const CUT: u8 = b'c';
const UPGRADE: u8 = b'u';

/// To stop, where nobody is left who could dial.
const DESERT: u8 = b'd';

/// A proxy that dies sooner after an upgrade has its predecessor's program put back in its place.
const ON_TRIAL: Duration = Duration::from_secs(10);

/// The main thread's hold on the keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: PipeWriter,
    news: PipeReader,
    report: Arc<Mutex<Report>>,
    asked: Asked,
}

/// The latest upgrade that was asked for and not begun.
type Asked = Arc<Mutex<Option<Upgrade>>>;

/// What the keeper works with.
pub(super) struct Job {
    pub(super) settings: Settings,
    pub(super) backend: Backend,
    pub(super) program: Program,
    pub(super) sockets: Arc<Sockets>,
    pub(super) deaths: Arc<Deaths>,
    /// Of an earlier supervisor of this service, with the names of their tables: held until a capture of this
    /// one has an anchor too.
    pub(super) former_anchors: Vec<(String, OwnedFd)>,
}

struct Keeping {
    job: Job,
    breaker: Breaker,
    /// Of the latest capture, and so of what may still be queued.
    anchor: Option<Anchor>,
    repairs: Pace,
    orders: PipeReader,
    news: PipeWriter,
    report: Arc<Mutex<Report>>,
    asked: Asked,
    /// Proxies that drain, and when they must have ended.
    leaving: Vec<(Proxy, Instant)>,
    /// What the proxy before this one held, which it lets go of when it drains.
    held_before: Vec<Tether>,
    /// What served before the latest upgrade, and when that was.
    before: Option<(Instant, Program, Settings)>,
}

/// What a look at the proxy found.
enum Look {
    Well,
    /// It must be taken for hung.
    Hangs(String),
    /// It holds less than was installed.
    Damaged(String),
}

/// How the life of one proxy went.
enum End {
    Died(String),
    Ordered,
    Replaced(Proxy),
}

impl Keeper {
    pub(super) fn start(job: Job) -> std::io::Result<Self> {
        let (orders_from, orders) = pipe()?;
        let (news, news_to) = pipe()?;
        let report = Arc::new(Mutex::new(Report::new(job.settings.port())));
        let asked = Asked::default();
        let keeping = Keeping {
            breaker: Breaker::new(job.settings.supervisor.clone()),
            job,
            anchor: None,
            repairs: Pace::new(LAST_RETRY, LAST_RETRY * 2),
            orders: orders_from,
            news: news_to,
            report: report.clone(),
            asked: asked.clone(),
            leaving: Vec::new(),
            held_before: Vec::new(),
            before: None,
        };
        thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keeping.keep())?;
        Ok(Self {
            orders,
            news,
            report,
            asked,
        })
    }

    pub(super) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Ends the capture and the proxy; news tells when that is done.
    pub(super) fn stop(&mut self) {
        let _ = self.orders.write_all(&[STOP]);
    }

    /// The same once all that were captured have ended, so that nothing can be under way.
    pub(super) fn desert(&mut self) {
        let _ = self.orders.write_all(&[DESERT]);
    }

    /// The same without waiting for live connections.
    pub(super) fn cut(&mut self) {
        let _ = self.orders.write_all(&[CUT]);
    }

    /// Puts another proxy in the place of the one that serves, if it passes.
    pub(super) fn upgrade(&mut self, upgrade: Upgrade) {
        if let Some(earlier) = lock(&self.asked).replace(upgrade) {
            refuse(
                earlier.asker,
                "another upgrade was asked for meanwhile".into(),
            );
        }
        let _ = self.orders.write_all(&[UPGRADE]);
    }

    /// Takes note that something has changed; false: the keeper has ended.
    pub(super) fn take_news(&mut self) -> bool {
        self.news.read(&mut [0; 64]).is_ok_and(|length| length > 0)
    }

    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl Keeping {
    fn keep(mut self) {
        loop {
            let why = match self.one_life() {
                End::Ordered | End::Replaced(_) => {
                    self.let_go();
                    return;
                }
                End::Died(why) => why,
            };
            self.go_back();
            let pause = self.breaker.died(Instant::now());
            self.mourn(why, pause);
            // What was redirected before the capture ended does not wait for a proxy that may never come.
            let direct = (!pause.is_zero()).then(|| {
                self.forget_redirected();
                self.job.sockets.serve_directly()
            });
            let is_to_go_on = self.rest(pause);
            drop(direct);
            if !is_to_go_on {
                self.let_go();
                return;
            }
        }
    }

    fn one_life(&mut self) -> End {
        let Job {
            program,
            sockets,
            deaths,
            ..
        } = &self.job;
        let started = thread::scope(|scope| {
            // It takes about as long as a start, and must be over when the proxy begins to dial.
            let forgetting =
                thread::Builder::new().spawn_scoped(scope, || self.forget_redirected());
            if forgetting.is_err() {
                self.forget_redirected();
            }
            let proxy = Proxy::prepare(program, sockets, deaths)?;
            let _ = forgetting.map(ScopedJoinHandle::join);
            match proxy.begin() {
                Ok(()) => Ok(proxy),
                Err(error) => {
                    proxy.signal(Signal::KILL);
                    Err((Some(proxy), error))
                }
            }
        });
        let mut proxy = match started {
            Ok(proxy) => proxy,
            Err((None, error)) => return End::Died(format!("cannot be started: {error}")),
            Err((Some(proxy), error)) => {
                let how = self.bury(&proxy);
                return End::Died(format!("{how} before it served ({error})"));
            }
        };
        self.tell(|report| report.proxy_pid = Some(proxy.pid.as_raw_nonzero().get()));
        let probation = self.breaker.probation();
        if let Some(end) = self.watch(&proxy, Some(probation), None) {
            return end;
        }
        let mut retry = FIRST_RETRY;
        loop {
            match self.install() {
                Ok((installed, anchor)) => {
                    self.hold(anchor);
                    self.tell(|report| {
                        report.capture = Capture::Captured;
                        report.has_captured = true;
                    });
                    tracing::info!(pid = installed.proxy_pid, "captured");
                    loop {
                        match self.watch(&proxy, None, Some(Instant::now())) {
                            Some(End::Replaced(next)) => {
                                let old = std::mem::replace(&mut proxy, next);
                                self.see_off(old);
                            }
                            end => return end.unwrap_or(End::Ordered),
                        }
                    }
                }
                Err(refusal) => {
                    if proxy.watch(&self.orders, Duration::ZERO) == Seen::Nothing
                        && is_a_hang(&refusal)
                    {
                        return self.kill(&proxy, &refusal.to_string());
                    }
                    self.refused(&refusal);
                }
            }
            if let Some(end) = self.watch(&proxy, Some(retry), None) {
                return end;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Watches a proxy until `limit`, its death, or an order to stop, which is then followed.
    fn watch(
        &mut self,
        proxy: &Proxy,
        limit: Option<Duration>,
        captured: Option<Instant>,
    ) -> Option<End> {
        let lease = self.job.settings.capture.lease.0;
        let began = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
            match proxy.watch(
                &self.orders,
                left.map_or(lease / 4, |left| left.min(lease / 4)),
            ) {
                Seen::Death => return Some(End::Died(self.bury(proxy))),
                Seen::Order => match self.next_order() {
                    Some(UPGRADE) => {
                        if let Some(next) = self.upgrade(proxy, captured.is_some()) {
                            return Some(End::Replaced(next));
                        }
                    }
                    order => {
                        self.leave(proxy, order);
                        return Some(End::Ordered);
                    }
                },
                Seen::Nothing => {}
            }
            self.tend_leaving();
            if left.is_some_and(|left| left <= lease / 4) {
                return None;
            }
            if let Some(since) = captured {
                self.breaker.lived(since.elapsed());
            }
            match self.look(lease * 3 / 4) {
                // One that died meanwhile did not hang.
                Look::Hangs(why) if proxy.watch(&self.orders, Duration::ZERO) == Seen::Nothing => {
                    return Some(self.kill(proxy, &why));
                }
                Look::Damaged(why) if captured.is_some() => self.mend(&why),
                Look::Well | Look::Hangs(_) | Look::Damaged(_) => {}
            }
        }
    }

    fn look(&self, patience: Duration) -> Look {
        match outrigger_iptables::status_within(self.job.settings.port(), patience) {
            Ok(Some(status)) => {
                let capture = match (&status.obstacle, status.proxy.captured_since) {
                    (_, None) => None,
                    (Some(obstacle), _) if !status.is_captured => {
                        Some(Capture::Direct(obstacle.clone()))
                    }
                    _ => Some(Capture::Captured),
                };
                if let Some(capture) = capture {
                    self.tell(|report| report.capture = capture);
                }
                match status.hung_worker.filter(|_| !status.is_captured) {
                    Some(worker) => Look::Hangs(format!("worker {worker} hangs")),
                    None if status.drift.needs_repair => {
                        Look::Damaged("a rule was taken away".into())
                    }
                    None if status.proxy.captured_since.is_none() => {
                        Look::Damaged(status.given_up.unwrap_or_else(|| "it was removed".into()))
                    }
                    None => Look::Well,
                }
            }
            Ok(None) => Look::Hangs("nobody has its control socket".into()),
            Err(refusal) => Look::Hangs(refusal.to_string()),
        }
    }

    /// Installs anew what somebody took away, but not over and over: whoever did it may do it again.
    fn mend(&mut self, why: &str) {
        if self.repairs.try_at(Instant::now()).is_err() {
            return;
        }
        match self.install() {
            Ok((_, anchor)) => {
                self.hold(anchor);
                self.tell(|report| report.capture = Capture::Captured);
                tracing::warn!("the capture was installed anew: {why}");
            }
            Err(refusal) => self.refused(&refusal),
        }
    }

    fn kill(&self, proxy: &Proxy, why: &str) -> End {
        tracing::error!("the proxy hangs and is killed: {why}");
        proxy.signal(Signal::KILL);
        self.bury(proxy);
        End::Died(format!("was killed, since it hung: {why}"))
    }

    /// What a dead proxy reset is remembered by connection tracking for a second, and what one of an earlier run
    /// held for longer. The next one's own connection from such a port would be led to itself.
    fn forget_redirected(&self) {
        let Job {
            settings, backend, ..
        } = &self.job;
        // Where the kernel has not ended the redirect by now, forgetting may meet a new connection.
        if *backend == Backend::Nft
            && let Err(error) = outrigger_iptables::forget_dead_proxy(settings.port())
        {
            tracing::warn!(%error, "what the dead proxy was redirected may still be");
        }
    }

    /// Until a death has been dealt with: false when the order to stop came meanwhile.
    fn rest(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let mut fds = [PollFd::new(&self.orders, PollFlags::IN)];
            poll_within(&mut fds, until.saturating_duration_since(Instant::now()));
            if fds[0].revents().is_empty() {
                return true;
            }
            if self.next_order() != Some(UPGRADE) {
                return false;
            }
            if let Some(upgrade) = lock(&self.asked).take() {
                refuse(upgrade.asker, "there is no proxy just now".into());
            }
        }
    }

    /// Programs of iptables, and the process that dials for the gate, are waited for by those who
    /// start them.
    fn install(&self) -> Result<(Installed, Option<Anchor>), Refusal> {
        let Job {
            settings,
            backend,
            deaths,
            ..
        } = &self.job;
        deaths.without_reaping(|| {
            // Between the death of the one before and the start of this proxy.
            let is_swept = *backend == Backend::Nft;
            outrigger_iptables::install_and_anchor(settings, *backend, is_swept)
        })
    }

    /// Keeps the anchor of the latest capture, here and in the service manager's store.
    fn hold(&mut self, anchor: Option<Anchor>) {
        let Some(anchor) = anchor else { return };
        fd_store::put(anchor.table(), &[anchor.as_fd()]);
        self.let_go();
        self.anchor = Some(anchor);
    }

    fn let_go(&mut self) {
        let former = self.job.former_anchors.drain(..).map(|(table, _)| table);
        let held = self.anchor.take();
        for table in former.chain(held.map(|anchor| anchor.table().to_owned())) {
            fd_store::forget(&table);
        }
    }

    fn next_order(&mut self) -> Option<u8> {
        let mut order = [0];
        // A main thread that is gone wants everything to end at once.
        match self.orders.read(&mut order) {
            Ok(1) => Some(order[0]),
            _ => Some(CUT),
        }
    }

    fn bury(&self, proxy: &Proxy) -> String {
        deaths::describe(self.job.deaths.of(proxy.pid))
    }

    fn refused(&self, refusal: &Refusal) {
        let text = refusal.to_string();
        tracing::error!(
            check = refusal.check(),
            "not captured, connections go direct: {text}; {}",
            refusal.advice()
        );
        self.tell(|report| {
            report.capture = Capture::Refused {
                why: text,
                check: refusal.check().into(),
                advice: refusal.advice(),
            };
        });
    }

    fn mourn(&self, why: String, pause: Duration) {
        let has_tripped = self.breaker.has_tripped();
        if has_tripped {
            tracing::error!(
                "the proxy {why}; it died too often, so that connections go direct for now; next attempt in {} s",
                pause.as_secs()
            );
        } else {
            tracing::warn!("the proxy {why}; starting another");
        }
        self.tell(|report| {
            report.deaths += 1;
            report.proxy_pid = None;
            report.has_tripped |= has_tripped;
            report.capture = if has_tripped {
                Capture::Tripped(format!("the proxy {why}"))
            } else {
                Capture::Direct(format!("the proxy {why}"))
            };
        });
    }

    fn tell(&self, change: impl FnOnce(&mut Report)) {
        change(&mut lock(&self.report));
        let _ = (&self.news).write_all(b"n");
    }
}

/// Tells why there will be no upgrade.
pub(super) fn refuse(asker: Option<UnixStream>, why: String) {
    tracing::error!("upgrade refused, the proxy goes on as before: {why}");
    if let Some(mut asker) = asker {
        upgrade::answer(&mut asker, &Outcome::Refused(why));
    }
}

/// Whether it is the proxy that is to blame, and not its surroundings.
fn is_a_hang(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::ProxySilent { .. })
        || matches!(refusal, Refusal::Canary { seen, .. } if matches!(
            seen,
            outrigger_iptables::CanaryFailure::Silent
                | outrigger_iptables::CanaryFailure::WorkersMissing { .. }
        ))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
