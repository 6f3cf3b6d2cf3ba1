//! The chunk scanner against a plain reading of the grammar, and against itself on the same body in
//! pieces.
#![no_main]

use libfuzzer_sys::{arbitrary::Arbitrary, fuzz_target};
use outrigger_proxy::forward::http1::chunked::Chunked;

const MAX_TRAILERS: usize = 256;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    cuts: Vec<u8>,
    body: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut whole = Chunked::new(MAX_TRAILERS);
    let taken = whole.scan(input.body);
    assert_eq!(taken, in_pieces(&input), "pieces change the result");
    if let Ok(taken) = taken
        && whole.is_done()
    {
        assert_eq!(Some(taken), by_grammar(input.body), "the grammar disagrees");
    } else if by_grammar(input.body).is_some_and(|end| end < MAX_TRAILERS) {
        panic!("refused or unfinished, though the grammar allows it: {taken:?}");
    }
});

fn in_pieces(input: &Input<'_>) -> Result<usize, &'static str> {
    let mut scanner = Chunked::new(MAX_TRAILERS);
    let mut rest = input.body;
    let mut taken = 0;
    for cut in &input.cuts {
        let (piece, after) = rest.split_at(rest.len().min(usize::from(*cut)));
        taken += scanner.scan(piece)?;
        rest = after;
    }
    Ok(taken + scanner.scan(rest)?)
}

/// Where a body that follows RFC 9112, section 7.1, without blanks before extensions, ends.
fn by_grammar(body: &[u8]) -> Option<usize> {
    let mut rest = body;
    loop {
        let (line, after) = line(rest)?;
        let digits = line.iter().position(|b| *b == b';').unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits);
        if digits.len() > 16 || !extension.iter().all(|b| is_text(*b)) {
            return None;
        }
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        rest = after;
        if size == 0 {
            break;
        }
        rest = rest.get(usize::try_from(size).ok()?..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let (line, after) = line(rest)?;
        rest = after;
        if line.is_empty() {
            return Some(body.len() - rest.len());
        }
        let colon = line.iter().position(|b| *b == b':')?;
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let is_good = colon > 0
            && line[..colon].iter().all(is_name)
            && line[colon..].iter().all(|b| is_text(*b));
        if !is_good {
            return None;
        }
    }
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}
