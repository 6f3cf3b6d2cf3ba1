//! What only one of two proxies on the same sockets may serve, and so is left to the other one and
//! taken back: the control socket, whose name is a lock, and the admin listener.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::control::{Reply, Request};
use tokio::{
    sync::watch,
    task::{self, JoinHandle},
    time,
};

use crate::{
    admin::{self, AdminListener},
    control::{Control, Hooks},
    explain, observe,
    shared::Shared,
    upstream,
    worker::Phase,
};

/// How long a successor that has been refused may take to give the control socket's name back.
const NAME_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Front {
    shared: Arc<Shared>,
    admin: Option<AdminListener>,
    tasks: Vec<JoinHandle<()>>,
}

impl Front {
    /// # Errors
    /// When the runtime cannot watch a socket.
    pub(crate) fn open(
        shared: Arc<Shared>,
        admin: Option<AdminListener>,
        control: Control,
    ) -> io::Result<Self> {
        let mut front = Self {
            shared,
            admin,
            tasks: Vec::new(),
        };
        front.serve(control)?;
        Ok(front)
    }

    /// What is queued stays queued: the listeners are the supervisor's too. The capture stays as well.
    pub(crate) async fn give_way(&mut self, phase: &watch::Sender<Phase>) {
        phase.send_replace(Phase::Yielding);
        while self.shared.readiness.accepting() > 0 {
            time::sleep(PAUSE).await;
        }
        for task in self.tasks.drain(..) {
            task.abort();
            // Only then are its sockets closed.
            let _ = task.await;
        }
    }

    /// Ends the capture; an anchor stays for live connections.
    pub(crate) fn release(&self) {
        self.shared.control.release_capture();
    }

    /// # Errors
    /// When it cannot be done; this proxy is then of no more use.
    pub(crate) async fn resume(&mut self, phase: &watch::Sender<Phase>) -> io::Result<()> {
        let port = self.shared.listeners.first().map_or(0, |l| l.0.port());
        let deadline = Instant::now() + NAME_LIMIT;
        let control = loop {
            match Control::bind_again(port) {
                Ok(control) => break control,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => time::sleep(PAUSE).await,
            }
        };
        self.serve(control)?;
        phase.send_replace(Phase::Serving);
        Ok(())
    }

    fn serve(&mut self, control: Control) -> io::Result<()> {
        if let Some(admin) = &self.admin {
            let serving = admin::serve(admin.watch()?, self.shared.clone());
            self.tasks.push(task::spawn_local(serving));
        }
        let serving = serve_control(control, self.shared.clone());
        self.tasks.push(task::spawn_local(serving));
        Ok(())
    }
}

async fn serve_control(control: Control, shared: Arc<Shared>) {
    let state = shared.control.clone();
    let (counted, told) = (shared.clone(), shared.clone());
    let hooks = Hooks {
        dial: Box::new(move |peer| {
            let shared = shared.clone();
            Box::pin(async move { upstream::connect(&shared, peer).await.map(drop) })
        }),
        live_connections: Box::new(move || counted.connections.live()),
        tell: Box::new(move |request| tell(&told, request)),
    };
    if let Err(error) = control.run(state, hooks).await {
        tracing::error!(%error, "the control socket cannot be served; nothing can be captured");
    }
}

/// What is asked of the data plane itself.
fn tell(shared: &Shared, request: &Request) -> Option<Reply> {
    match request {
        Request::Explain(question) => Some(Reply::Explanation(Box::new(explain::explain(
            shared,
            question,
            Instant::now(),
        )))),
        Request::Traffic { after } => {
            Some(Reply::Traffic(Box::new(observe::traffic(shared, *after))))
        }
        Request::Hello
        | Request::Status
        | Request::ExpectCanary { .. }
        | Request::LoopProbe { .. }
        | Request::Hold { .. }
        | Request::Watch { .. }
        | Request::Captured { .. }
        | Request::Release { .. } => None,
    }
}
