//! Rules made by hand, where the kernel's own behaviour is known; the experiment in
//! `tests/diagnosis` compares with the kernel.

use std::collections::HashMap;

use super::*;
use crate::ruleset::{
    Base, BaseChain, Chain, ChainKind, CmpOp, Expression as E, Extent, Rule, Table, TableFamily,
    Tool, Verdict as Does, ct, meta,
};

/// One route out; a mark or a type of service may lead elsewhere.
struct World(RoutingPolicy);

impl Surroundings for World {
    fn route(&self, to: IpAddr, _: Option<IpAddr>, _: u32, _: u32) -> Result<Route, String> {
        Ok(Route {
            device: "eth0".into(),
            device_index: 2,
            source: "10.0.0.1".parse().unwrap(),
            is_local: to.is_loopback(),
        })
    }

    fn address_type(&self, _: IpAddr) -> Option<u8> {
        Some(1)
    }

    fn routing_policy(&self) -> RoutingPolicy {
        self.0
    }
}

fn ask(tables: Vec<Table>) -> Verdict {
    ask_in(RoutingPolicy::default(), tables)
}

fn ask_in(policy: RoutingPolicy, tables: Vec<Table>) -> Verdict {
    let ruleset = Ruleset {
        tables,
        unseen: Vec::new(),
    };
    let connection = Connection {
        destination: "192.0.2.1:80".parse().unwrap(),
        source: None,
        source_port: None,
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
        mark: 0,
        cgroup: None,
    };
    judge(&ruleset, &connection, &World(policy))
}

fn table(kind: ChainKind, priority: i32, chains: &[(&str, Vec<Vec<E>>)]) -> Table {
    let mut table = Table::new(Tool::Nft, TableFamily::Inet, format!("t{priority}"));
    for (n, (name, rules)) in chains.iter().enumerate() {
        let rules = rules.iter().enumerate();
        table.add_chain(Chain {
            name: (*name).into(),
            base: (n == 0).then_some(BaseChain {
                hook: Hook::Output,
                priority,
                kind,
                drops_by_policy: false,
            }),
            rules: rules
                .map(|(n, expressions)| Rule {
                    handle: None,
                    line: n + 1,
                    expressions: expressions.clone(),
                    counters: None,
                    comment: None,
                })
                .collect(),
        });
    }
    table.sets = HashMap::new();
    table
}

fn filter(rules: Vec<Vec<E>>) -> Table {
    table(ChainKind::Filter, 0, &[("out", rules)])
}

const REGISTER: usize = 16;

fn equals(value: &[u8]) -> E {
    E::Cmp {
        op: CmpOp::Eq,
        from: REGISTER,
        value: value.into(),
    }
}

fn does(verdict: Does) -> E {
    E::Verdict(verdict)
}

fn port_is(port: u16) -> [E; 2] {
    let to = Extent {
        start: REGISTER,
        length: 2,
    };
    let load = E::Payload {
        base: Base::Transport,
        offset: 2,
        to,
    };
    [load, equals(&port.to_be_bytes())]
}

fn is_direct(verdict: &Verdict) -> bool {
    matches!(verdict.certain(), Some(End::Leaves { .. }))
}

#[test]
fn a_condition_that_fails_ends_the_rule_and_not_the_chain() {
    let drop = |port| [port_is(port).to_vec(), vec![does(Does::Drop)]].concat();
    assert!(is_direct(&ask(vec![filter(vec![drop(81)])])));
    let verdict = ask(vec![filter(vec![drop(81), drop(80)])]);
    assert_eq!(verdict.certain(), Some(&End::Dropped));
}

#[test]
fn return_goes_on_behind_the_jump_and_behind_goto_at_its_caller() {
    let chains = |verdict: Does| {
        let out = vec![vec![does(verdict)], vec![does(Does::Drop)]];
        let below = vec![vec![does(Does::Return)]];
        vec![table(
            ChainKind::Filter,
            0,
            &[("out", out), ("below", below)],
        )]
    };
    let jumped = ask(chains(Does::Jump("below".into())));
    assert_eq!(jumped.certain(), Some(&End::Dropped));
    assert!(is_direct(&ask(chains(Does::Goto("below".into())))));
}

#[test]
fn what_cannot_be_evaluated_is_told_in_both_ways() {
    let limit = || E::Unpredictable("limit".into());
    let verdict = ask(vec![filter(vec![vec![limit(), does(Does::Drop)]])]);
    assert_eq!(verdict.certain(), None);
    assert_eq!(verdict.ways.len(), 2);
    // Without a difference it is certain all the same.
    assert!(is_direct(&ask(vec![filter(vec![vec![
        limit(),
        E::Counter
    ]])])));
}

#[test]
fn what_an_unknown_expression_may_have_written_is_not_taken_for_zero() {
    let random = E::Unpredictable("numgen".into());
    let rule = vec![random, equals(&[0, 0, 0, 1]), does(Does::Drop)];
    let verdict = ask(vec![filter(vec![rule])]);
    assert_eq!(verdict.certain(), None, "{verdict:?}");
}

#[test]
fn the_order_of_two_chains_of_one_priority_counts_only_if_it_matters() {
    let drop = vec![[port_is(80).to_vec(), vec![does(Does::Drop)]].concat()];
    let reject = vec![[port_is(80).to_vec(), vec![E::Reject]].concat()];
    let verdict = ask(vec![filter(drop.clone()), filter(reject)]);
    assert_eq!(verdict.certain(), None);
    assert!(
        verdict.ways[0].assumptions[0].contains("order"),
        "{verdict:?}"
    );
    let same = ask(vec![filter(drop.clone()), filter(drop)]);
    assert_eq!(same.certain(), Some(&End::Dropped));
}

#[test]
fn more_chains_of_one_priority_than_can_be_tried_are_not_guessed_at() {
    let rule = || filter(vec![vec![does(Does::Accept)]]);
    let verdict = ask((0..8).map(|_| rule()).collect());
    assert_eq!(verdict.certain(), None);
}

#[test]
fn a_bit_of_the_status_is_known_and_the_whole_is_not() {
    let load = E::Ct {
        key: ct::STATUS,
        is_reply: false,
        to: REGISTER,
    };
    let masked = |bit: u32| E::Bitwise {
        from: Extent {
            start: REGISTER,
            length: 4,
        },
        to: REGISTER,
        mask: bit.to_ne_bytes().to_vec(),
        xor: vec![0; 4],
    };
    let rule = |middle: Vec<E>| {
        let end = vec![equals(&[0; 4]), does(Does::Drop)];
        vec![filter(vec![[vec![load.clone()], middle, end].concat()])]
    };
    let dnat = ask(rule(vec![masked(1 << 5)]));
    assert_eq!(dnat.certain(), Some(&End::Dropped));
    assert_eq!(ask(rule(vec![])).certain(), None);
    assert_eq!(ask(rule(vec![masked(1 << 9)])).certain(), None);
}

#[test]
fn conntrack_keeps_no_mark_of_what_it_has_not_seen() {
    let mark = vec![
        E::Immediate {
            to: REGISTER,
            value: vec![2, 0, 0, 0],
        },
        E::SetCt {
            key: ct::MARK,
            from: REGISTER,
        },
    ];
    let asks = vec![
        E::Ct {
            key: ct::MARK,
            is_reply: false,
            to: REGISTER,
        },
        equals(&[2, 0, 0, 0]),
        does(Does::Drop),
    ];
    let at = |priority| {
        let marks = table(ChainKind::Filter, priority, &[("out", vec![mark.clone()])]);
        ask(vec![marks, filter(vec![asks.clone()])])
    };
    assert!(is_direct(&at(-250)));
    assert_eq!(at(-150).certain(), Some(&End::Dropped));
    assert_eq!(at(-200).certain(), None);
}

#[test]
fn a_mark_that_is_not_known_decides_on_the_route_only_where_routing_asks_for_it() {
    let random = vec![
        E::Unpredictable("numgen".into()),
        E::SetMeta {
            key: meta::MARK,
            from: REGISTER,
        },
    ];
    let tables = || {
        vec![table(
            ChainKind::Route,
            -150,
            &[("out", vec![random.clone()])],
        )]
    };
    assert!(is_direct(&ask(tables())));
    let by_mark = RoutingPolicy {
        by_mark: true,
        by_tos: false,
    };
    assert_eq!(ask_in(by_mark, tables()).certain(), None);
}

#[test]
fn writing_to_the_packet_is_followed_as_far_as_it_is_known() {
    let write = |offset, value: Vec<u8>| {
        let from = Extent {
            start: REGISTER,
            length: value.len(),
        };
        let set = E::SetPayload {
            base: Base::Network,
            offset,
            from,
        };
        let hold = E::Immediate {
            to: REGISTER,
            value,
        };
        ask(vec![filter(vec![vec![hold, set]])])
    };
    assert!(is_direct(&write(8, vec![64])));
    assert_eq!(write(8, vec![1]).certain(), None);
    assert_eq!(write(16, vec![127, 0, 0, 1]).certain(), None);
}
