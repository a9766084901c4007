//! Finds the end of an object in bytes that arrive piece by piece, and where the values to be forwarded lie in it.
//!
//! It owns the bounds that must hold before anything is parsed: size and depth. It does not validate: of bytes that are
//! not JSON it only says where they end, and leaves the judgement to the parser, which sees everything that ends.

use crate::{Code, Span, WireError, limits::MAX_JSON_DEPTH};

/// Members of an envelope whose values are needed as they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    Id,
    Action,
    ClientId,
    Data,
    Options,
    Message,
}

impl Member {
    const COUNT: usize = 6;

    fn of_key(key: &[u8]) -> Option<Self> {
        Some(match key {
            b"id" => Self::Id,
            b"action" => Self::Action,
            b"clientId" => Self::ClientId,
            b"data" => Self::Data,
            b"options" => Self::Options,
            b"message" => Self::Message,
            _ => return None,
        })
    }
}

/// Where the values of one object's members lie; empty where a member is absent, or its key written with escapes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Members([Span; Member::COUNT]);

impl Members {
    /// The value's span, without the white space around it.
    pub(super) fn span(&self, member: Member) -> Span {
        self.0[member as usize]
    }
}

/// What the scanner found in a whole object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The members of the object itself.
    pub(super) outer: Members,
    /// The members of the object in its member `message`.
    pub(super) message: Members,
}

/// Where the scan stands. All offsets count from the object's `{`.
#[derive(Debug)]
pub(super) struct Scanner {
    max_bytes: usize,
    position: usize,
    depth: usize,
    quoted: Quoted,
    /// Between the quotes of the last string.
    string: Span,
    /// Whether this is within the object in `message`, whose members are noted then.
    in_message: bool,
    /// The member whose value is being passed, and where that begins.
    member: Option<Member>,
    value: usize,
    layout: Layout,
    /// How often a byte was looked at, for the test that this is linear.
    #[cfg(test)]
    pub(super) looked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoted {
    /// Outside of strings.
    No,
    /// Inside of one.
    Yes,
    /// Inside, directly behind a backslash.
    Escape,
}

/// What a byte means outside of strings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Other,
    Quote,
    Open,
    Close,
    Colon,
    Comma,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    classes[b'"' as usize] = Class::Quote;
    classes[b'{' as usize] = Class::Open;
    classes[b'[' as usize] = Class::Open;
    classes[b'}' as usize] = Class::Close;
    classes[b']' as usize] = Class::Close;
    classes[b':' as usize] = Class::Colon;
    classes[b',' as usize] = Class::Comma;
    classes
};

impl Scanner {
    /// A scanner for objects of at most `max_bytes`.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            position: 0,
            depth: 0,
            quoted: Quoted::No,
            string: Span::default(),
            in_message: false,
            member: None,
            value: 0,
            layout: Layout::default(),
            #[cfg(test)]
            looked: 0,
        }
    }

    /// Looks at the bytes that came since the last call. `bytes` begins with the object's `{` and has grown at its end.
    ///
    /// `Some` with the object's length when it is whole. The scanner then stands before the next object, and
    /// [`Scanner::layout`] tells what lies where in this one.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, WireError> {
        if self.position == 0 {
            // Nothing of the object before this one may be taken for a part of it.
            (self.layout, self.string, self.member) = (Layout::default(), Span::default(), None);
        }
        // Never beyond the bound: the answer must not depend on how much of a too long object is here already.
        let bounded = &bytes[..bytes.len().min(self.max_bytes)];
        if self.pass(bounded)? {
            return Ok(Some(std::mem::take(&mut self.position)));
        }
        if bytes.len() > self.max_bytes {
            let message = format!(
                "a JSON object must not be longer than {} bytes: its data is bounded by the server's --max-payload",
                self.max_bytes
            );
            return Err(WireError::new(Code::TooLarge, message));
        }
        Ok(None)
    }

    /// What lies where in the object that was found last.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Goes on until the object's end (`true`) or that of the bytes.
    fn pass(&mut self, bytes: &[u8]) -> Result<bool, WireError> {
        let mut at = self.position;
        if self.quoted != Quoted::No {
            at = self.pass_string(bytes, at);
        }
        while let Some(&byte) = bytes.get(at) {
            self.look(1);
            match CLASSES[usize::from(byte)] {
                Class::Other => {}
                Class::Quote => {
                    self.string.start = at as u32 + 1;
                    at = self.pass_string(bytes, at + 1);
                    continue;
                }
                Class::Open => self.open(byte)?,
                Class::Close => {
                    if self.close(bytes, at) {
                        self.position = at + 1;
                        return Ok(true);
                    }
                }
                Class::Colon => {
                    if self.at_members() {
                        self.member = Member::of_key(self.string.of(bytes));
                        self.value = at + 1;
                    }
                }
                Class::Comma => {
                    if self.at_members() {
                        self.end_value(bytes, at);
                    }
                }
            }
            at += 1;
        }
        self.position = at;
        Ok(false)
    }

    /// Goes on from `at` to behind the string's closing quote, or to the end of the bytes if that is not here yet.
    #[inline(always)]
    fn pass_string(&mut self, bytes: &[u8], mut at: usize) -> usize {
        if self.quoted == Quoted::Escape {
            if at == bytes.len() {
                return at;
            }
            self.look(1);
            at += 1;
        }
        loop {
            let rest = &bytes[at..];
            if let Some(word) = rest.first_chunk::<8>() {
                self.look(8);
                let hits = quotes_and_backslashes(u64::from_le_bytes(*word));
                if hits == 0 {
                    // Not a short string, then: on in strides, which the compiler makes vector instructions of.
                    at += 8 + self.pass_strides(&rest[8..]);
                    continue;
                }
                at += hits.trailing_zeros() as usize / 8;
            } else {
                let ordinary = rest.iter().take_while(|&&byte| byte != b'"' && byte != b'\\').count();
                self.look(ordinary);
                at += ordinary;
            }
            let Some(&byte) = bytes.get(at) else {
                self.quoted = Quoted::Yes;
                return at;
            };
            self.look(1);
            if byte == b'"' {
                self.string.end = at as u32;
                self.quoted = Quoted::No;
                return at + 1;
            }
            if at + 1 == bytes.len() {
                self.quoted = Quoted::Escape;
                return at + 1;
            }
            at += 2;
        }
    }

    /// How many bytes of a string may be passed because no quote and no backslash is near them.
    #[inline(always)]
    fn pass_strides(&mut self, bytes: &[u8]) -> usize {
        const STRIDE: usize = 32;
        let mut passed = 0;
        for stride in bytes.as_chunks::<STRIDE>().0 {
            self.look(STRIDE);
            // Without a way out of the loop in it, so that it becomes vector instructions.
            let found = stride
                .iter()
                .fold(0, |found, &byte| found | u8::from(byte == b'"') | u8::from(byte == b'\\'));
            if found != 0 {
                break;
            }
            passed += STRIDE;
        }
        passed
    }

    /// Whether a `:` or `,` here belongs to the members that are noted.
    fn at_members(&self) -> bool {
        self.depth == 1 + usize::from(self.in_message)
    }

    fn open(&mut self, byte: u8) -> Result<(), WireError> {
        // A message's data lies one level deeper than a request's. It may itself be as deep as that, so that a handler
        // can always give back what it got.
        if self.depth == MAX_JSON_DEPTH + usize::from(self.in_message) {
            let message = format!("JSON must not be nested deeper than {MAX_JSON_DEPTH} objects and arrays");
            return Err(WireError::new(Code::TooDeep, message));
        }
        if self.depth == 1 && byte == b'{' && self.member == Some(Member::Message) {
            self.in_message = true;
            self.member = None;
        }
        self.depth += 1;
        Ok(())
    }

    /// A bracket closes; `true` if it was the last.
    fn close(&mut self, bytes: &[u8], at: usize) -> bool {
        if self.at_members() {
            self.end_value(bytes, at);
            self.in_message = false;
        }
        self.depth = self.depth.saturating_sub(1);
        self.depth == 0
    }

    /// The value of `member` ended before `at`.
    fn end_value(&mut self, bytes: &[u8], at: usize) {
        let Some(member) = self.member.take() else { return };
        let (mut start, mut end) = (self.value, at);
        while start < end && is_blank(bytes[start]) {
            start += 1;
        }
        while end > start && is_blank(bytes[end - 1]) {
            end -= 1;
        }
        let members = if self.in_message { &mut self.layout.message } else { &mut self.layout.outer };
        members.0[member as usize] = Span::new(start, end);
    }

    #[inline(always)]
    fn look(&mut self, _bytes: usize) {
        #[cfg(test)]
        {
            self.looked += _bytes;
        }
    }
}

/// JSON's white space.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The high bit of each byte that is `"` or `\`, exact up to the lowest one (Hacker's Delight, 6-1).
#[inline(always)]
fn quotes_and_backslashes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    zero_bytes(word ^ (ONES * b'"' as u64)) | zero_bytes(word ^ (ONES * b'\\' as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (usize, Layout) {
        let mut scanner = Scanner::new(1 << 20);
        let end = scanner.scan(text.as_bytes()).unwrap().unwrap();
        (end, *scanner.layout())
    }

    fn outer(text: &str, member: Member) -> &str {
        let span = scan(text).1.outer.span(member);
        &text[span.start as usize..span.end as usize]
    }

    fn inner(text: &str, member: Member) -> &str {
        let span = scan(text).1.message.span(member);
        &text[span.start as usize..span.end as usize]
    }

    /// Ends are found behind braces and quotes in strings, and only the object itself is taken.
    #[test]
    fn finds_the_end() {
        assert_eq!(scan("{}{}").0, 2);
        assert_eq!(scan(r#"{"a}\"}":"\\"}  "#).0, 14);
        assert_eq!(scan(r#"{"a":[{"b":"]}"}]}{"#).0, 18);
    }

    /// Values are noted as they were written, without the white space around them, at their own level only.
    #[test]
    fn notes_values() {
        let text =
            "{ \"data\" : [ {\"data\":1} , 2 ] , \"clientId\":\t7\r\n, \"id\":\"\" ,\"x\":{\"options\":1}}";
        assert_eq!(outer(text, Member::Data), "[ {\"data\":1} , 2 ]");
        assert_eq!(outer(text, Member::ClientId), "7");
        assert_eq!(outer(text, Member::Id), "\"\"");
        assert_eq!(outer(text, Member::Options), "");
    }

    /// Members of `message` are apart from those of the object around it; arrays have no members.
    #[test]
    fn notes_the_members_of_message() {
        let text = r#"{"message":{"data":"in","message":{"data":0}},"data":"out"}"#;
        assert_eq!(inner(text, Member::Data), r#""in""#);
        assert_eq!(outer(text, Member::Data), r#""out""#);
        assert_eq!(inner(r#"{"message":[{"data":1}]}"#, Member::Data), "");
        assert_eq!(inner(r#"{"x":"message","y":{"data":1}}"#, Member::Data), "");
    }

    /// The object's end is the same when it comes in single bytes, and each of them is looked at once.
    #[test]
    fn one_look_per_byte() {
        let mut text = Vec::from(&br#"{"id":"a","data":["#[..]);
        while text.len() < (16 << 20) {
            text.extend_from_slice(br#""some text \" with \\ escapes",{"a":[1,2.5,true]},"#);
        }
        text.extend_from_slice(b"0]}");
        let mut scanner = Scanner::new(32 << 20);
        for end in 1..text.len() {
            assert_eq!(scanner.scan(&text[..end]).unwrap(), None);
        }
        let end = scanner.scan(&text).unwrap().unwrap();
        assert_eq!(end, text.len());
        assert_eq!(scanner.layout().outer.span(Member::Data).end as usize, text.len() - 1);
        assert_eq!(scanner.looked, text.len());
    }

    /// In one piece a byte is looked at more than once only where a string ends within 8 bytes.
    #[test]
    fn few_looks_in_one_piece() {
        let text = format!(r#"{{"id":"a","data":"{}"}}"#, "x".repeat(1 << 20));
        let mut scanner = Scanner::new(2 << 20);
        assert!(scanner.scan(text.as_bytes()).unwrap().is_some());
        assert!(scanner.looked < text.len() + 64);
    }

    /// A colon that no key comes before does not reach back into the object before.
    #[test]
    fn objects_are_apart() {
        let mut scanner = Scanner::new(1000);
        assert_eq!(scanner.scan(br#"{"some longer key":1}"#).unwrap(), Some(21));
        assert_eq!(scanner.scan(b"{:").unwrap(), None);
        assert_eq!(scanner.scan(b"{:}").unwrap(), Some(3));
        assert_eq!(scanner.layout(), &Layout::default());
    }

    /// Bounds are exact: one level or byte more is refused, whether the rest is here or not.
    #[test]
    fn bounds() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Scanner::new(1000).scan(nested(MAX_JSON_DEPTH).as_bytes()).is_ok());
        let error = Scanner::new(1000).scan(nested(MAX_JSON_DEPTH + 1).as_bytes()).unwrap_err();
        assert_eq!(error.code, Code::TooDeep);
        assert!(Scanner::new(9).scan(br#"{"a":"b"}"#).unwrap().is_some());
        assert!(Scanner::new(8).scan(br#"{"a":"b""#).unwrap().is_none());
        for text in [&br#"{"a":"b"}"#[..], br#"{"a":"bc"#] {
            let bound = text.len() - 1;
            assert_eq!(Scanner::new(bound).scan(text).unwrap_err().code, Code::TooLarge);
        }
    }
}
