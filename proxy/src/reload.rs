//! Takes a changed configuration file over: reads and checks it away from every event loop, and
//! publishes it with one swap. A file with any problem changes nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use outrigger_config::{Changes, Checked, Problem, Settings, Snapshot};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    aside,
    cluster::Keeper,
    file_watch::Watch,
    observe::{AccessLogs, Unopened},
    shared::Shared,
};

/// Requests that may wait for a reload to end; what one more would ask for is under way anyway.
const QUEUE: usize = 16;

/// How long to wait for a worker that does not turn to what is in force now.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Where the settings came from, and what the command line puts over them.
pub struct Source {
    pub path: PathBuf,
    /// What stood there when the process started: it may have changed before it is watched.
    pub text: Arc<str>,
    pub over: Box<dyn Fn(&mut Settings) + Send + Sync>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.path.display())
    }
}

/// What a reload came to.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "result", rename_all = "snake_case")]
pub(crate) enum Outcome {
    Applied {
        generation: u64,
        clusters_added: usize,
        clusters_removed: usize,
        clusters_changed: usize,
        /// Keys whose new values the process takes up at its next start only.
        needs_restart: Vec<&'static str>,
        warnings: Vec<Problem>,
    },
    /// What was in force stays in force.
    Rejected {
        generation: u64,
        problems: Vec<Problem>,
    },
    /// The settings came from no file.
    NoFile,
}

/// Asks for reloads, from any thread.
#[derive(Debug)]
pub(crate) struct Reloads {
    requests: mpsc::Sender<Option<oneshot::Sender<Outcome>>>,
}

pub(crate) type Requests = mpsc::Receiver<Option<oneshot::Sender<Outcome>>>;

impl Reloads {
    pub(crate) fn new() -> (Self, Requests) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        (Self { requests }, receiver)
    }

    /// Does not wait.
    pub(crate) fn ask(&self) {
        // A full queue means that the file will be read after this moment.
        let _ = self.requests.try_send(None);
    }

    /// `None` if nobody reloads any more.
    pub(crate) async fn outcome(&self) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.requests.send(Some(answer)).await.ok()?;
        outcome.await.ok()
    }
}

/// Reloads whenever the file changes or someone asks; without a source it only answers so.
pub(crate) async fn run(
    source: Option<Source>,
    shared: Arc<Shared>,
    mut requests: Requests,
    clusters: Keeper,
) {
    let Some(source) = source else {
        while let Some(request) = requests.recv().await {
            match request {
                Some(answer) => drop(answer.send(Outcome::NoFile)),
                None => tracing::info!(
                    "SIGHUP ignored: started without --config, so there is nothing to reload"
                ),
            }
        }
        return;
    };
    tokio::select! {
        () = follow(source, &shared, requests, &clusters) => {}
        () = let_go(&shared) => {}
    }
}

/// Returns when nobody can ask any more.
async fn follow(source: Source, shared: &Arc<Shared>, mut requests: Requests, clusters: &Keeper) {
    let source = Arc::new(source);
    let mut watch = watch(&source.path);
    let mut seen: Text = Ok(source.text.clone());
    let mut may_have_changed = true;
    loop {
        let (request, is_asked) = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => (request, true),
                None => return,
            },
            () = changed(&mut watch, may_have_changed) => (None, false),
        };
        may_have_changed = false;
        let read = read(&source).await;
        if !is_asked && read == seen {
            continue;
        }
        seen = read;
        let outcome = reload(&source, shared, clusters, seen.clone()).await;
        tell(&source, &outcome);
        if let Some(answer) = request {
            // Whoever asked may have gone.
            let _ = answer.send(outcome);
        }
        if let Some(watch) = &watch {
            watch_again(watch, &source.path);
        }
    }
}

fn watch(path: &Path) -> Option<Watch<()>> {
    let watch = Watch::new()
        .inspect_err(|error| tracing::warn!(%error, "the configuration file cannot be watched; SIGHUP and POST /reload still reload it"))
        .ok()?;
    watch_again(&watch, path);
    Some(watch)
}

fn watch_again(watch: &Watch<()>, path: &Path) {
    if let Err(error) = watch.follow((), path) {
        tracing::warn!(%error, "changes of the configuration file may go unseen; SIGHUP and POST /reload still reload it");
    }
}

async fn changed(watch: &mut Option<Watch<()>>, may_have_changed: bool) {
    if may_have_changed {
        return;
    }
    if let Some(watching) = watch {
        match watching.changed().await {
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "the configuration file is watched no more; SIGHUP and POST /reload still reload it");
                *watch = None;
            }
        }
    }
    std::future::pending().await
}

type Text = Result<Arc<str>, Problem>;

async fn read(source: &Arc<Source>) -> Text {
    let source = source.clone();
    let read = move || outrigger_config::text(&source.path).map(Arc::from);
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(Problem::error("reading it failed; try again".into())))
}

/// Frees what was in force before, once every worker has seen what came after; never returns.
async fn let_go(shared: &Arc<Shared>) {
    loop {
        shared.configuration.retires().await;
        while shared.configuration.is_retiring() {
            // Whoever answers has looked. One that hangs is for others to tell.
            let _ = shared.control.pulse.take(LETTING_GO).await;
            if shared.configuration.can_let_go() {
                let shared = shared.clone();
                // Without a thread now there may be one the next time.
                let _ = aside::run(move || shared.configuration.let_go()).await;
            } else {
                tokio::time::sleep(LETTING_GO).await;
            }
        }
    }
}

async fn reload(
    source: &Arc<Source>,
    shared: &Arc<Shared>,
    clusters: &Keeper,
    text: Text,
) -> Outcome {
    let before = shared.configuration.snapshot();
    let source = source.clone();
    // The control thread beats meanwhile: checking a large file takes longer than a lease allows.
    let compiled = aside::run(move || compile(&source, &before, text)).await;
    match compiled {
        Ok(Ok(Compiled {
            snapshot,
            changes,
            needs_restart,
            warnings,
        })) => {
            if let Err(unopened) = open_logs(shared, &snapshot) {
                let problem = Problem::error(format!(
                    "cannot open the access log {}: {}; it must be writable by the proxy's user",
                    unopened.path.display(),
                    unopened.source
                ));
                let problem = Problem {
                    path: "access_log".into(),
                    ..problem
                };
                return reject(shared, vec![problem]);
            }
            let generation = snapshot.generation;
            shared
                .connections
                .limit(snapshot.settings.limits.max_connections);
            if let Err(error) = take_over(shared, clusters, Arc::new(snapshot)).await {
                return reject(shared, vec![not_done("published", &error)]);
            }
            shared
                .admin_token
                .load(shared.configuration.settings().admin.as_ref());
            shared.configuration.accept();
            Outcome::Applied {
                generation,
                clusters_added: changes.added.len(),
                clusters_removed: changes.removed.len(),
                clusters_changed: changes.changed.len(),
                needs_restart,
                warnings,
            }
        }
        Ok(Err(problems)) => reject(shared, problems),
        Err(error) => reject(shared, vec![not_done("checked", &error)]),
    }
}

/// What is published next logs where `snapshot` says.
pub(crate) fn open_logs(shared: &Shared, snapshot: &Snapshot) -> Result<(), Unopened> {
    let settings = &snapshot.settings.access_log;
    let logs = AccessLogs::open(settings, &shared.log_sinks, &shared.instance)?;
    shared.configuration.log_to(logs);
    Ok(())
}

/// The clusters first, then the services in them, so that no route leads to one that is not there.
///
/// # Errors
/// When no thread can be had.
pub(crate) async fn take_over(
    shared: &Arc<Shared>,
    clusters: &Keeper,
    snapshot: Arc<Snapshot>,
) -> io::Result<()> {
    clusters.apply(&snapshot).await;
    let Shared {
        clusters,
        rate_limits,
        ..
    } = &**shared;
    shared.tracer.follow(snapshot.settings.tracing.as_ref());
    rate_limits.follow(shared, &snapshot.settings.rate_limit_services, clusters);
    let shared = shared.clone();
    let publish = move || {
        let Shared {
            clusters,
            rate_limits,
            configuration,
            ..
        } = &*shared;
        configuration.publish(snapshot, clusters, rate_limits);
    };
    aside::run(publish).await
}

fn not_done(what: &str, error: &io::Error) -> Problem {
    Problem::error(format!("it could not be {what}: {error}"))
}

fn reject(shared: &Shared, problems: Vec<Problem>) -> Outcome {
    shared.configuration.reject();
    Outcome::Rejected {
        generation: shared.configuration.snapshot().generation,
        problems,
    }
}

struct Compiled {
    snapshot: Snapshot,
    changes: Changes,
    needs_restart: Vec<&'static str>,
    warnings: Vec<Problem>,
}

fn compile(source: &Source, before: &Snapshot, text: Text) -> Result<Compiled, Vec<Problem>> {
    let Checked { settings, problems } =
        outrigger_config::check(&text.map_err(|problem| vec![problem])?);
    let Some(mut settings) = settings else {
        return Err(problems);
    };
    (source.over)(&mut settings);
    let overridden = settings.problems();
    if !overridden.is_empty() {
        let problem = |(path, message): (_, String)| Problem {
            path: format!("{path}, with the command line over it"),
            ..Problem::error(message)
        };
        return Err(overridden.into_iter().map(problem).collect());
    }
    let needs_restart = keep_what_needs_restart(&mut settings, &before.settings);
    let snapshot = Snapshot::compile(settings, Some(before));
    Ok(Compiled {
        changes: snapshot.changes_since(before),
        snapshot,
        needs_restart,
        warnings: problems,
    })
}

/// Puts back what cannot change while the process runs, and tells what that was.
fn keep_what_needs_restart(settings: &mut Settings, running: &Settings) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |name, has_changed: bool| {
        if has_changed {
            kept.push(name);
        }
    };
    keep("listen", settings.listen != running.listen);
    keep("admin", settings.admin != running.admin);
    keep("workers", settings.workers != running.workers);
    keep("capture", settings.capture != running.capture);
    keep("metrics", settings.metrics != running.metrics);
    settings.listen.clone_from(&running.listen);
    settings.admin.clone_from(&running.admin);
    settings.workers = running.workers;
    settings.capture.clone_from(&running.capture);
    settings.metrics = running.metrics;
    kept
}

fn tell(source: &Source, outcome: &Outcome) {
    let path = source.path.display();
    match outcome {
        Outcome::Applied {
            generation,
            clusters_added,
            clusters_removed,
            clusters_changed,
            needs_restart,
            warnings,
        } => {
            tracing::info!(
                generation,
                clusters_added,
                clusters_removed,
                clusters_changed,
                "configuration reloaded from {path}"
            );
            for warning in warnings {
                tracing::warn!("{path}: {warning}");
            }
            if !needs_restart.is_empty() {
                tracing::warn!(
                    "changed and not applied until a restart: {}",
                    needs_restart.join(", ")
                );
            }
        }
        Outcome::Rejected {
            generation,
            problems,
        } => {
            tracing::error!(
                generation,
                "configuration not reloaded: {path} has problems, and what was in force stays in force; `proxyctl validate {path}` tells more"
            );
            for problem in problems {
                tracing::error!("{path}: {problem}");
            }
        }
        Outcome::NoFile => {}
    }
}

#[cfg(test)]
mod tests;
