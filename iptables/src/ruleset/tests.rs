//! What comes from the kernel is decoded without trust: random bytes never make anything panic.

use proptest::{collection::vec, prelude::*};

use super::digest;

/// Every name that is decoded, so that random attributes come to more than a refusal.
const NAMES: [&str; 23] = [
    "payload",
    "meta",
    "ct",
    "socket",
    "fib",
    "cmp",
    "range",
    "bitwise",
    "byteorder",
    "lookup",
    "immediate",
    "nat",
    "redir",
    "masq",
    "tproxy",
    "reject",
    "counter",
    "match",
    "target",
    "numgen",
    "queue",
    "limit",
    "objref",
];

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A number as registers, keys, lengths and flags are, or bytes of any kind.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0_u32..26).prop_map(|n| n.to_be_bytes().to_vec()),
        1 => any::<u32>().prop_map(|n| n.to_be_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..70).prop_map(|bytes| attribute(1, &bytes)),
        1 => (-6_i32..6).prop_map(|code| attribute(2, &attribute(1, &code.to_be_bytes()))),
        1 => prop::sample::select(vec!["conntrack\0", "t\0", "REDIRECT\0", "tcp\0"])
            .prop_map(|name| name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..200),
    ]
}

fn expression() -> impl Strategy<Value = Vec<u8>> {
    let data = vec((1_u16..9, value()), 0..8);
    (prop::sample::select(NAMES.to_vec()), data).prop_map(|(name, data)| {
        let data: Vec<u8> = data
            .iter()
            .flat_map(|(kind, v)| attribute(*kind, v))
            .collect();
        let name = attribute(1, format!("{name}\0").as_bytes());
        attribute(1, &[name, attribute(2, &data)].concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..1000)) {
        digest(&bytes);
    }

    #[test]
    fn random_expressions_never_panic(expressions in vec(expression(), 0..6)) {
        let rule = attribute(4, &expressions.concat());
        digest(&[vec![0], rule].concat());
    }

    #[test]
    fn random_sets_never_panic(
        head in vec((1_u16..12, value()), 0..8),
        elements in vec(vec((1_u16..12, value()), 0..5), 0..5),
    ) {
        let all = |list: &[(u16, Vec<u8>)]| -> Vec<u8> {
            list.iter().flat_map(|(kind, v)| attribute(*kind, v)).collect()
        };
        let elements: Vec<u8> = elements.iter().flat_map(|e| attribute(1, &all(e))).collect();
        let set = [vec![1], attribute(2, b"t\0"), attribute(5, &[0, 0, 0, 4])];
        digest(&[set.concat(), all(&head), attribute(3, &elements)].concat());
    }
}
