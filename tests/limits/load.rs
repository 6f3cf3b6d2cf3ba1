//! The figure: what a limit admits under far more than it allows, over all workers.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    client::{ask, connect, limited},
    support::{World, figure, rounds},
};

const RATE: usize = 1_000;
const BURST: usize = 100;
const CLIENTS: usize = 16;

/// In an ordinary run one second: a build without optimisation does not offer ten times the rate for
/// longer. What is admitted never exceeds the limit, however slow the machine; that it reaches it
/// takes clients that are fast enough, and is asked of the full run only.
#[test]
fn a_thousand_a_second_with_a_burst_of_a_hundred_and_no_more() {
    let seconds = rounds(1, 10);
    let world = World::new();
    let _nginx = world.nginx();
    let limit = format!(
        "{{ name: load, token_bucket: {{ max_tokens: {BURST}, tokens_per_fill: {RATE}, fill_interval: 1s }} }}"
    );
    let proxy = world.serve(&format!("workers: 2\n{}", limited(&limit)));
    world.capture(&proxy);
    let (offered, admitted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let length = Duration::from_secs(seconds as u64);
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(&world)).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for mut client in clients {
            let (offered, admitted) = (&offered, &admitted);
            scope.spawn(move || {
                while begun.elapsed() < length {
                    offered.fetch_add(1, Ordering::Relaxed);
                    if ask(&mut client, "").status == 200 {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (offered, admitted) = (offered.into_inner(), admitted.into_inner());
    let took = begun.elapsed().as_secs_f64();
    let most = BURST as f64 + RATE as f64 * took;
    assert!(admitted as f64 <= most + 1.0, "{admitted} in {took} s");
    if std::env::var_os("OUTRIGGER_SOAK").is_some() {
        let wanted = BURST + RATE * seconds;
        figure(
            &format!("admitted of {offered} in {seconds} s at 1,000/s with burst 100"),
            admitted,
            &format!("{wanted} ± 1 %"),
        );
        assert!(
            admitted.abs_diff(wanted) * 100 <= wanted,
            "{admitted} of {offered}"
        );
    }
}
