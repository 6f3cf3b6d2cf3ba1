use super::*;
use outrigger_config::Span;

fn compiled(text: &str, before: &Snapshot) -> Result<Compiled, Vec<Problem>> {
    let source = Source {
        path: "x".into(),
        text: "".into(),
        over: Box::new(|settings| settings.workers = std::num::NonZeroUsize::new(3)),
    };
    compile(&source, before, Ok(text.into()))
}

fn running() -> Snapshot {
    let settings = Settings {
        workers: std::num::NonZeroUsize::new(3),
        ..Settings::default()
    };
    Snapshot::compile(settings, None)
}

#[test]
fn what_cannot_change_is_kept_and_told_and_the_rest_applies() {
    let before = running();
    let text = "admin: null\nworkers: 9\ntimeouts: { drain: 1s }\ncapture: { proxy_uid: 7 }\n";
    let Ok(compiled) = compiled(text, &before) else {
        panic!("it has no problem");
    };
    assert_eq!(compiled.needs_restart, ["admin", "capture"]);
    let settings = &compiled.snapshot.settings;
    assert_eq!(settings.admin, before.settings.admin);
    assert_eq!(settings.timeouts.drain, Span::from_secs(1));
    assert_eq!(compiled.snapshot.generation, 2);
}

#[test]
fn a_problem_is_told_and_nothing_is_compiled() {
    let before = running();
    let problems = compiled("timeouts: { drain: 1 }\nworkerz: 1\n", &before)
        .err()
        .unwrap();
    assert_eq!(problems.len(), 2);
}
