//! What `proxyctl status` tells.

use crate::{
    INSTALL, REMOVE, STATUS,
    proxyctl::{PROXY_UID, ctl, ctl_as, serve},
    wire::wire,
};

#[test]
fn it_tells_captured_from_direct_and_whose_the_rules_are() {
    let pair = wire();
    let nobody = ctl(&pair.app, STATUS).expect("direct");
    assert_eq!((nobody.code, nobody.json.get("proxy")), (1, None));

    let proxy = serve(&pair.app, "--workers 2");
    let idle = ctl(&pair.app, STATUS).expect("direct");
    assert_eq!(idle.code, 1);
    assert!(idle.json["proxy"]["captured_since"].is_null(), "{idle:?}");

    ctl(&pair.app, INSTALL).expect("captured");
    let on = ctl_as(&pair.app, PROXY_UID, STATUS).expect("captured");
    assert_eq!((on.code, &on.json["lapses"]), (0, &0.into()));
    assert_eq!(on.json["proxy"]["pid"], proxy.pid());
    assert!(on.json["proxy"]["captured_since"].is_u64(), "{on:?}");
    assert!(on.json["obstacle"].is_null(), "{on:?}");
    let text = ctl(&pair.app, "status").stdout;
    for word in [
        "captured",
        "table outrigger_15001_g1",
        "lease 2s",
        "2 workers",
    ] {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }

    ctl(&pair.app, REMOVE).expect("removed");
    assert_eq!(ctl(&pair.app, STATUS).expect("direct").code, 1);
}

#[test]
fn a_stopped_proxy_does_not_make_it_hang() {
    let pair = wire();
    let proxy = serve(&pair.app, "");
    proxy.signal("STOP");
    let status = ctl(&pair.app, STATUS).expect("refused");
    assert_eq!(status.code, 1);
    assert!(status.text("message").contains("stopped"), "{status:?}");
}

#[test]
fn a_stranger_is_told_who_may_ask() {
    let pair = wire();
    let _proxy = serve(&pair.app, "");
    let status = ctl_as(&pair.app, 1000, STATUS).expect("refused");
    assert!(
        status
            .text("message")
            .contains("the proxy answers root and its own user"),
        "{status:?}"
    );
}
