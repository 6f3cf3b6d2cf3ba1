//! `/debug/profile`: where this process spends its CPU, as pprof reads it.

mod pprof;
mod protobuf;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use hyper::{Response, StatusCode};

use super::{
    body::Body,
    routes::{plain, respond},
};
use crate::sys::{self, PROFILE_HZ};

const SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 60;

static IS_RUNNING: AtomicBool = AtomicBool::new(false);

/// There is one timer in a process, so there is one profile at a time.
struct Running;

impl Running {
    fn begin() -> Option<Self> {
        (!IS_RUNNING.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A client that went away meanwhile leaves no timer behind.
        sys::stop_profile();
        IS_RUNNING.store(false, Ordering::Release);
    }
}

pub(super) async fn answer(seconds: Option<&str>) -> Response<Body> {
    let seconds = match seconds.map(str::parse) {
        None => SECONDS,
        Some(Ok(seconds @ 1..=MAX_SECONDS)) => seconds,
        Some(_) => {
            return plain(
                StatusCode::BAD_REQUEST,
                "seconds is no number from 1 to 60\n",
            );
        }
    };
    let Some(running) = Running::begin() else {
        return plain(
            StatusCode::CONFLICT,
            "a profile is being taken; try again when it is done\n",
        );
    };
    let started = SystemTime::now();
    if let Err(error) = sys::start_profile() {
        return plain(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("cannot set the profiling timer: {error}\n"),
        );
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let samples = sys::stop_profile();
    // Finding names reads the debug information of the whole program.
    let encoding = tokio::task::spawn_blocking(move || {
        let _running = running;
        pprof::encode(&samples, started, Duration::from_secs(seconds), PROFILE_HZ)
    });
    match encoding.await {
        Ok(profile) => respond(
            StatusCode::OK,
            "application/octet-stream",
            Body::text(profile),
        ),
        Err(_) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the profile could not be made\n",
        ),
    }
}
