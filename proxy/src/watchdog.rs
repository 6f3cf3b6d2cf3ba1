//! The service manager's watchdog (`WatchdogSec=` of a systemd unit), fed only on fresh evidence that
//! every worker turns and accepts.

use std::{sync::Arc, time::Instant};

use sd_notify::NotifyState;
use tokio::time;

use crate::{app::notify, shared::Shared};

/// Meals in the time that the manager waits: it takes four in a row to be missed before it ends us.
const MEALS: u32 = 4;

/// Feeds it for as long as this process serves or drains; returns at once where there is none.
pub(crate) async fn feed(shared: Arc<Shared>) {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let pause = patience / MEALS;
    loop {
        let next = Instant::now() + pause;
        match shared.control.pulse.take(pause).await {
            Ok(()) => notify(NotifyState::Watchdog),
            // Workers that no longer accept do not answer; the drain has a deadline of its own.
            Err(_) if shared.readiness.is_draining() => notify(NotifyState::Watchdog),
            Err(worker) => {
                tracing::error!(
                    "worker {worker} hangs, or no longer accepts: the service manager's watchdog is not fed"
                );
            }
        }
        time::sleep_until(next.into()).await;
    }
}
