//! simd-json with buffers that are used again, and a reader for the flat tape that it makes.

use simd_json::{Buffers, INPUT_PADDING, Node, StaticNode, Tape};

use super::text::write_string;
use crate::limits::MAX_JSON_DEPTH;

/// Depth of an envelope, whose data may lie within `message`. The scanner has refused deeper ones already.
const MAX_ENVELOPE_DEPTH: usize = MAX_JSON_DEPTH + 1;
/// Depth of a value that is to stand as data: what a handler can give back in its `message`.
const MAX_VALUE_DEPTH: usize = MAX_JSON_DEPTH - 1;

/// Buffers grown beyond these are given back after use: one large message must not cost its memory forever.
const KEPT_BYTES: usize = 1 << 20;
const KEPT_NODES: usize = 1 << 16;

/// Parses and validates JSON text without allocating, once it has grown to its working size.
///
/// It holds nothing from one call to the next: one serves all connections of a thread.
pub struct Parser {
    envelope: Buffers,
    value: Buffers,
    /// simd-json unescapes strings where they stand: it gets a copy, with the padding that it asks for.
    scratch: Vec<u8>,
    /// Empty between calls, but for its capacity.
    tape: Tape<'static>,
}

impl Parser {
    /// A parser with small buffers.
    pub fn new() -> Self {
        Self {
            envelope: Buffers::with_max_depth(0, MAX_ENVELOPE_DEPTH),
            value: Buffers::with_max_depth(0, MAX_VALUE_DEPTH),
            scratch: Vec::new(),
            tape: Tape(Vec::new()),
        }
    }

    /// Whether this is one JSON value, in UTF-8 and not nested too deep to be forwarded as `data`.
    pub fn is_json(&mut self, text: &[u8]) -> bool {
        self.parse(Depth::Value, text, |_| ()).is_ok()
    }

    /// Whether this is a JSON object; otherwise as [`Parser::is_json`].
    pub fn is_json_object(&mut self, text: &[u8]) -> bool {
        self.parse(Depth::Value, text, |value| value.object().is_some()).unwrap_or(false)
    }

    /// Parses a whole object, and lets `read` look at it.
    pub(super) fn read<T>(
        &mut self,
        text: &[u8],
        read: impl FnOnce(Value<'_>) -> T,
    ) -> Result<T, simd_json::Error> {
        self.parse(Depth::Envelope, text, read)
    }

    fn parse<T>(
        &mut self,
        depth: Depth,
        text: &[u8],
        read: impl FnOnce(Value<'_>) -> T,
    ) -> Result<T, simd_json::Error> {
        self.scratch.clear();
        self.scratch.reserve(text.len() + INPUT_PADDING);
        self.scratch.extend_from_slice(text);
        self.scratch.extend_from_slice(&[b' '; INPUT_PADDING]);
        let buffers = match depth {
            Depth::Envelope => &mut self.envelope,
            Depth::Value => &mut self.value,
        };
        // The tape borrows the scratch copy for this call only: `reset` empties it and lets go of that lifetime.
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let outcome = simd_json::fill_tape_padded(&mut self.scratch, text.len(), buffers, &mut tape)
            .map(|()| read(Value(&tape.0)));
        self.tape = tape.reset();
        if text.len() > KEPT_BYTES || self.tape.0.capacity() > KEPT_NODES {
            *self = Self::new();
        }
        outcome
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser").field("scratch_bytes", &self.scratch.capacity()).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Depth {
    Envelope,
    Value,
}

/// A value on the tape: its node, followed by those of what is in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'t>(&'t [Node<'t>]);

impl<'t> Value<'t> {
    /// The text of a string.
    pub(super) fn string(self) -> Option<&'t str> {
        match self.0.first() {
            Some(Node::String(text)) => Some(text),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Option<bool> {
        match self.0.first() {
            Some(Node::Static(StaticNode::Bool(value))) => Some(*value),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub(super) fn number(self) -> Option<f64> {
        let number = match self.0.first() {
            Some(Node::Static(StaticNode::U64(number))) => *number as f64,
            Some(Node::Static(StaticNode::I64(number))) => *number as f64,
            Some(Node::Static(StaticNode::F64(number))) => *number,
            _ => return None,
        };
        (number >= 0.0).then_some(number)
    }

    /// Whether it is `null`.
    pub(super) fn is_null(self) -> bool {
        matches!(self.0.first(), Some(Node::Static(StaticNode::Null)))
    }

    /// Whether it is an array or an object.
    pub(super) fn is_container(self) -> bool {
        matches!(self.0.first(), Some(Node::Object { .. } | Node::Array { .. }))
    }

    /// The value as JSON text, without white space. For what is rarely needed: numbers may be written differently.
    pub(super) fn to_json(self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    /// Recursion is bounded by the parser's depth.
    fn write(self, out: &mut Vec<u8>) {
        match self.0.first() {
            None | Some(Node::Static(StaticNode::Null)) => out.extend_from_slice(b"null"),
            Some(Node::Static(StaticNode::Bool(value))) => {
                out.extend_from_slice(value.to_string().as_bytes())
            }
            Some(Node::Static(StaticNode::U64(number))) => {
                out.extend_from_slice(number.to_string().as_bytes())
            }
            Some(Node::Static(StaticNode::I64(number))) => {
                out.extend_from_slice(number.to_string().as_bytes())
            }
            Some(Node::Static(StaticNode::F64(number))) => {
                out.extend_from_slice(format!("{number:e}").as_bytes())
            }
            Some(Node::String(text)) => write_string(text.as_bytes(), out),
            Some(Node::Array { .. }) => {
                out.push(b'[');
                let mut rest = &self.0[1..];
                while !rest.is_empty() {
                    let (element, behind) = rest.split_at(nodes(rest));
                    Value(element).write(out);
                    rest = behind;
                    if !rest.is_empty() {
                        out.push(b',');
                    }
                }
                out.push(b']');
            }
            Some(Node::Object { .. }) => {
                out.push(b'{');
                for (index, (key, value)) in Members(&self.0[1..]).enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_string(key.as_bytes(), out);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }

    /// The members of an object, in their order.
    pub(super) fn object(self) -> Option<Members<'t>> {
        match self.0.split_first() {
            Some((Node::Object { .. }, rest)) => Some(Members(rest)),
            _ => None,
        }
    }
}

/// Keys and values of an object. Keys may repeat.
#[derive(Debug, Clone)]
pub(super) struct Members<'t>(&'t [Node<'t>]);

impl<'t> Iterator for Members<'t> {
    type Item = (&'t str, Value<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        let (Node::String(key), rest) = self.0.split_first()? else { return None };
        let (value, rest) = rest.split_at(nodes(rest));
        self.0 = rest;
        Some((key, Value(value)))
    }
}

/// How many nodes the first value has, itself included.
fn nodes(tape: &[Node<'_>]) -> usize {
    let nodes = match tape.first() {
        Some(Node::Object { count, .. } | Node::Array { count, .. }) => 1 + count,
        _ => 1,
    };
    nodes.min(tape.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members are walked over nested values; keys and strings come unescaped.
    #[test]
    fn walks_members() {
        let mut parser = Parser::new();
        let text = br#"{"a":[1,{"b":2}],"\u0063":"\"x\"","d":-1,"e":2.5,"f":null}"#;
        parser
            .read(text, |value| {
                let members: Vec<_> = value.object().unwrap().collect();
                let keys: Vec<_> = members.iter().map(|(key, _)| *key).collect();
                assert_eq!(keys, ["a", "c", "d", "e", "f"]);
                assert!(members[0].1.is_container());
                assert_eq!(members[1].1.string(), Some("\"x\""));
                assert_eq!((members[2].1.number(), members[3].1.number()), (None, Some(2.5)));
                assert!(members[4].1.is_null());
            })
            .unwrap();
    }

    /// What is written of a tape means the same as what was parsed.
    #[test]
    fn writes_what_it_read() {
        let text = r#"{"a":[1,-2,2.5,1e300,[],{}],"b":{"c":[null,true],"d":"\\"}}"#;
        let written = Parser::new().read(text.as_bytes(), |value| value.to_json()).unwrap();
        let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&written), value(text.as_bytes()));
    }

    /// One value and nothing else is JSON; depth is bounded; what a parse left behind does not matter to the next.
    #[test]
    fn says_what_is_json() {
        let mut parser = Parser::new();
        for text in ["1", "-0.5e-7", "\"\"", "null", "[]", " {\"a\":[1]} ", "123456789012345678901234567890"]
        {
            assert!(parser.is_json(text.as_bytes()), "{text}");
        }
        for text in
            ["", " ", "1 2", "01", "{a:1}", "[1,]", "\"\\x\"", "\"\u{1}\"", "nul", "{}}", "tru e", "1e400"]
        {
            assert!(!parser.is_json(text.as_bytes()), "{text}");
        }
        assert!(!parser.is_json(b"\"\xff\""));
        assert!(
            parser.is_json_object(b"{}") && !parser.is_json_object(b"[]") && !parser.is_json_object(b"{")
        );
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parser.is_json(nested(MAX_VALUE_DEPTH).as_bytes()));
        assert!(!parser.is_json(nested(MAX_VALUE_DEPTH + 1).as_bytes()));
    }

    /// After a large text the buffers are small again.
    #[test]
    fn gives_large_buffers_back() {
        let mut parser = Parser::new();
        assert!(parser.is_json(format!("[{}1]", "1,".repeat(KEPT_NODES)).as_bytes()));
        assert!(parser.tape.0.capacity() <= KEPT_NODES);
        assert!(parser.is_json(format!("\"{}\"", "x".repeat(KEPT_BYTES)).as_bytes()));
        assert!(parser.scratch.capacity() <= KEPT_BYTES);
    }
}
