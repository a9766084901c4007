//! The server's side of a connection: which of the two dialects the client speaks, and the codec for it.
//!
//! The first bytes decide:
//!
//! | first bytes, white space skipped | the connection speaks |
//! |---|---|
//! | `{` | JSON |
//! | `B5 52 50 31` | the binary dialect: its preface, which is answered with ours; or a [secure](crate::secure) client's hello |
//! | an HTTP method and a blank | HTTP: it is told in HTTP what this port is |
//! | `16 03` | TLS: it gets an alert that ends its handshake |
//! | anything else | nothing known: it is told in JSON what is expected |
//!
//! A [`ServerCodec`] turns bytes into messages and messages into bytes; it holds none of either.

use bytes::{Buf, BytesMut};

use crate::{
    Code, Outgoing, WireError,
    frame::{self, FrameReader, Mode, Preface},
    json::{self, NotJson, Parser},
    message::{ClientMessage, ErrorReport, Scope, ServerMessage},
    secure::ClientHello,
};

/// A dialect of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Frames.
    Binary,
    /// JSON objects.
    Json,
}

/// What the front of a buffer holds.
#[derive(Debug)]
pub enum Decoded {
    /// The client has shown which dialect it speaks. Comes once, before the first message.
    Opened(Dialect),
    /// A message, taken off the buffer.
    Message(ClientMessage),
    /// The hello of a client that wants to speak in records, taken off the buffer. Go on with
    /// [`ServerCodec::within_records`], or [`ServerCodec::stay_plain`] and [`ServerCodec::refuse`].
    Secure(ClientHello),
    /// Nothing that is complete.
    NeedMore,
}

/// Decodes what one client sends and encodes what it is sent.
#[derive(Debug)]
pub struct ServerCodec {
    boot: u64,
    max_payload: u32,
    /// What is decoded came out of records already.
    within_records: bool,
    speaks: Speaks,
}

#[derive(Debug)]
enum Speaks {
    NotKnownYet,
    /// The binary dialect, before its first message: nothing long is expected.
    Greeting(FrameReader),
    Binary(FrameReader),
    Json(json::Decoder),
    Http,
    Tls,
    SomethingElse,
}

impl ServerCodec {
    /// A codec for a new connection. `boot` is the broker's boot id, `max_payload` bounds payloads in bytes.
    pub fn new(boot: u64, max_payload: u32) -> Self {
        Self { boot, max_payload, within_records: false, speaks: Speaks::NotKnownYet }
    }

    /// The same for what comes out of the records of a connection with a secure key.
    pub fn within_records(&self) -> Self {
        Self { within_records: true, ..Self::new(self.boot, self.max_payload) }
    }

    /// A client that has said [`Decoded::Secure`] is answered in clear: it reads the refusal that must follow.
    pub fn stay_plain(&mut self, out: &mut Outgoing) {
        self.answer(out);
    }

    /// The dialect, once it is known.
    pub fn dialect(&self) -> Option<Dialect> {
        match self.speaks {
            Speaks::Binary(_) | Speaks::Greeting(_) => Some(Dialect::Binary),
            Speaks::Json(_) => Some(Dialect::Json),
            _ => None,
        }
    }

    /// Takes what is next off the front of `buffer`. Between two calls the buffer may only grow, at its end.
    ///
    /// `out` gets our preface when the client has sent its own.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot be trusted any more. Tell the client with [`ServerCodec::refuse`], and close.
    #[inline]
    pub fn decode(
        &mut self,
        parser: &mut Parser,
        buffer: &mut BytesMut,
        out: &mut Outgoing,
    ) -> Result<Decoded, WireError> {
        match &mut self.speaks {
            Speaks::Binary(reader) => {
                while let Some(frame) = reader.next(buffer)? {
                    if let Some(message) = frame::decode_client(frame)? {
                        check_payload(&message, self.max_payload)?;
                        return Ok(Decoded::Message(message));
                    }
                }
                Ok(Decoded::NeedMore)
            }
            Speaks::Json(decoder) => {
                Ok(decoder.decode(parser, buffer)?.map_or(Decoded::NeedMore, Decoded::Message))
            }
            Speaks::Greeting(_) => self.greet(buffer),
            _ => self.open(buffer, out),
        }
    }

    /// How many more bytes will be wanted: what completes the frame at the front of `buffer`, as far as is known; of a
    /// JSON object, whose length nobody tells, as many again as there are. A hint for the size of the next read.
    pub fn missing(&self, buffer: &[u8]) -> usize {
        match &self.speaks {
            Speaks::Binary(reader) | Speaks::Greeting(reader) => reader.missing(buffer),
            Speaks::Json(_) => buffer.len(),
            _ => 0,
        }
    }

    /// Appends a message in the client's dialect; nothing if the dialect does not have it, or is not known yet.
    /// `wall_ms` is the wall clock in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`NotJson`]: the content came from a binary client and is for a JSON client, but it is not JSON. Nothing was
    /// appended; the request is to be failed.
    #[inline]
    pub fn encode(
        &self,
        message: &ServerMessage,
        wall_ms: u64,
        parser: &mut Parser,
        out: &mut Outgoing,
    ) -> Result<(), NotJson> {
        match &self.speaks {
            Speaks::Binary(_) | Speaks::Greeting(_) => frame::encode_server(message, out),
            Speaks::Json(decoder) => {
                let context = json::Context { boot: self.boot, wall_ms, lines: decoder.lines() };
                json::encode(message, &context, parser, out)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells the client why its connection is closed, in whatever language it seems to speak.
    pub fn refuse(&self, error: &WireError, parser: &mut Parser, out: &mut Outgoing) {
        let report = ErrorReport {
            scope: Scope::Connection,
            number: 0,
            code: error.code,
            message: error.message.clone().into_owned(),
        };
        match &self.speaks {
            Speaks::Binary(_) | Speaks::Greeting(_) => {
                return frame::encode_server(&ServerMessage::Error(report), out);
            }
            Speaks::Http => return out.tail().extend_from_slice(http_refusal(&report.message).as_bytes()),
            Speaks::Tls => return out.tail().extend_from_slice(&TLS_ALERT),
            Speaks::Json(_) | Speaks::SomethingElse | Speaks::NotKnownYet => {}
        }
        // With a newline for everybody: nothing follows, who reads by lines would wait for it, and to others it is white space.
        let context = json::Context { boot: self.boot, wall_ms: 0, lines: true };
        let written = json::encode(&ServerMessage::Error(report), &context, parser, out);
        debug_assert_eq!(written, Ok(()), "an error report has no content that could fail to be JSON");
    }

    /// Takes the first message. Until it is there nobody knows who sends it, so its frame is not as long as a payload may be.
    #[cold]
    fn greet(&mut self, buffer: &mut BytesMut) -> Result<Decoded, WireError> {
        let Speaks::Greeting(reader) = &self.speaks else { return Ok(Decoded::NeedMore) };
        while let Some(frame) = reader.next(buffer)? {
            if let Some(message) = frame::decode_client(frame)? {
                self.speaks = Speaks::Binary(FrameReader::new(self.max_payload));
                return Ok(Decoded::Message(message));
            }
        }
        Ok(Decoded::NeedMore)
    }

    /// Looks at the first bytes.
    fn open(&mut self, buffer: &mut BytesMut, out: &mut Outgoing) -> Result<Decoded, WireError> {
        let blanks = buffer.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        buffer.advance(blanks);
        match buffer.first() {
            None => Ok(Decoded::NeedMore),
            Some(b'{') => {
                self.speaks = Speaks::Json(json::Decoder::new(self.boot, self.max_payload));
                Ok(Decoded::Opened(Dialect::Json))
            }
            Some(&first) if first == Preface::MAGIC[0] => self.open_binary(buffer, out),
            Some(_) => self.turn_away(buffer),
        }
    }

    fn open_binary(&mut self, buffer: &mut BytesMut, out: &mut Outgoing) -> Result<Decoded, WireError> {
        let theirs = match Preface::decode(buffer) {
            Ok(None) => return Ok(Decoded::NeedMore),
            Ok(Some(preface)) => preface,
            Err(error) => {
                // With the magic whole it is a client of ours, which reads frames; without it, nobody knows what.
                if buffer.starts_with(&Preface::MAGIC) {
                    self.answer(out);
                } else {
                    self.speaks = Speaks::SomethingElse;
                }
                return Err(error);
            }
        };
        match theirs.mode {
            Mode::Plain => {
                buffer.advance(Preface::BYTES);
                self.answer(out);
                Ok(Decoded::Opened(Dialect::Binary))
            }
            Mode::Secure if self.within_records => {
                self.answer(out);
                Err(WireError::new(Code::Unsupported, "there are no records within records: say mode 0 here"))
            }
            Mode::Secure => match ClientHello::decode(buffer) {
                Ok(None) => Ok(Decoded::NeedMore),
                Ok(Some(hello)) => {
                    buffer.advance(ClientHello::BYTES);
                    Ok(Decoded::Secure(hello))
                }
                Err(error) => {
                    self.answer(out);
                    Err(error)
                }
            },
        }
    }

    /// From here on frames are spoken. Version 1 is the lowest there is, so it is what both sides have.
    fn answer(&mut self, out: &mut Outgoing) {
        out.tail().extend_from_slice(&Preface::plain().encode());
        self.speaks = Speaks::Greeting(FrameReader::greeting());
    }

    /// Finds out who has come to the wrong port, to answer in their language.
    fn turn_away(&mut self, buffer: &[u8]) -> Result<Decoded, WireError> {
        let may_become = |start: &[u8]| buffer.len() < start.len() && start.starts_with(buffer);
        if buffer.starts_with(&TLS_HELLO) {
            self.speaks = Speaks::Tls;
            return Err(WireError::new(Code::Unsupported, "this port does not speak TLS"));
        }
        if HTTP_METHODS.iter().any(|method| buffer.starts_with(method)) {
            self.speaks = Speaks::Http;
            return Err(WireError::new(Code::Unsupported, WHAT_THIS_IS));
        }
        if may_become(&TLS_HELLO) || HTTP_METHODS.iter().any(|method| may_become(method)) {
            return Ok(Decoded::NeedMore);
        }
        self.speaks = Speaks::SomethingElse;
        Err(WireError::malformed(WHAT_THIS_IS))
    }
}

/// A frame's own bound leaves room for all of its parts, so that a payload which takes the room of the others would fit:
/// but then not into the longer frame that carries it on, and whoever gets that would have to break off.
fn check_payload(message: &ClientMessage, max_payload: u32) -> Result<(), WireError> {
    let content = match message {
        ClientMessage::Request(request) => &request.content,
        ClientMessage::Answer(answer) | ClientMessage::Leg(answer) => &answer.content,
        ClientMessage::Progress(progress) => &progress.content,
        _ => return Ok(()),
    };
    let length = content.payload().len();
    if length > max_payload as usize {
        let message =
            format!("a payload has {length} bytes, {max_payload} are allowed by the server's --max-payload");
        return Err(WireError::new(Code::TooLarge, message));
    }
    Ok(())
}

const WHAT_THIS_IS: &str =
    "this port speaks Ringpost: JSON objects, or the binary dialect, which begins with B5 52 50 31";

const HTTP_METHODS: [&[u8]; 9] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    // What HTTP/2 begins with.
    b"PRI ",
];

/// A handshake record of any version of TLS.
const TLS_HELLO: [u8; 2] = [0x16, 0x03];

/// An alert record: fatal, handshake_failure (RFC 8446, section 6).
const TLS_ALERT: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28];

fn http_refusal(message: &str) -> String {
    let body = format!("{message}.\nIt is not a web server. To try it out: ringpost request ACTION JSON\n");
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Content,
        message::{Hello, Request},
        secure::{Initiator, Role, SecureKey},
    };

    struct Side {
        codec: ServerCodec,
        parser: Parser,
        buffer: BytesMut,
        out: Outgoing,
    }

    impl Side {
        fn new() -> Self {
            let codec = ServerCodec::new(7, 1 << 16);
            Self { codec, parser: Parser::new(), buffer: BytesMut::new(), out: Outgoing::new() }
        }

        /// Feeds one piece; what comes of it, in words, and whether the stream goes on.
        fn feed(&mut self, piece: &[u8], heard: &mut Vec<String>) -> bool {
            self.buffer.extend_from_slice(piece);
            loop {
                match self.codec.decode(&mut self.parser, &mut self.buffer, &mut self.out) {
                    Ok(Decoded::NeedMore) => return true,
                    Ok(decoded) => heard.push(format!("{decoded:?}")),
                    Err(error) => {
                        self.codec.refuse(&error, &mut self.parser, &mut self.out);
                        heard.push(format!("{error:?}"));
                        return false;
                    }
                }
            }
        }

        fn hear(bytes: &[u8], piece: usize) -> (Vec<String>, Vec<u8>) {
            let (mut side, mut heard) = (Self::new(), Vec::new());
            for piece in bytes.chunks(piece.max(1)) {
                if !side.feed(piece, &mut heard) {
                    break;
                }
            }
            (heard, side.out.drain_to_vec())
        }
    }

    fn binary_hello() -> Vec<u8> {
        let mut out = Outgoing::new();
        out.tail().extend_from_slice(&Preface { version: 9, ..Preface::plain() }.encode());
        frame::encode_client(&ClientMessage::Hello(Hello::default()), &mut out);
        out.drain_to_vec()
    }

    /// A binary client of a later version is answered with ours, then its frames are read.
    #[test]
    fn binary_is_recognised() {
        let (heard, answer) = Side::hear(&binary_hello(), 1);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains("Binary") && heard[1].contains("Hello"));
        assert_eq!(Preface::decode(&answer), Ok(Some(Preface::plain())));
    }

    /// JSON is recognised behind white space.
    #[test]
    fn json_is_recognised() {
        let (heard, answer) = Side::hear(b" \r\n{\"id\":\"a\",\"action\":\"init\"}\n", 3);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains("Json") && heard[1].contains("Register"));
        assert!(answer.is_empty());
    }

    /// A payload is bounded by itself: what takes the room of a frame's other parts would not fit where it goes on to.
    #[test]
    fn payloads_are_bounded() {
        let heard = |length: usize| {
            let mut out = Outgoing::new();
            out.tail().extend_from_slice(&binary_hello());
            let content = Content::from_parts(b"a", b"", b"", &vec![b'1'; length]);
            let request = Request { number: 1, content, ..Request::default() };
            frame::encode_client(&ClientMessage::Request(request), &mut out);
            Side::hear(&out.drain_to_vec(), usize::MAX).0
        };
        assert!(heard(1 << 16)[2].contains("Request"));
        let refused = heard((1 << 16) + 1);
        assert!(refused[2].contains("TooLarge") && refused[2].contains("--max-payload"), "{refused:?}");
    }

    /// The first frame is a hello, however long payloads may be: a longer one is refused by its header alone.
    #[test]
    fn the_first_frame_is_short() {
        let mut bytes = Preface::plain().encode().to_vec();
        bytes.extend_from_slice(&200_000_u32.to_le_bytes());
        bytes.extend_from_slice(&[0x05, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let mut side = Side { codec: ServerCodec::new(7, 1 << 20), ..Side::new() };
        let mut heard = Vec::new();
        assert!(!side.feed(&bytes, &mut heard));
        assert!(heard[1].contains("TooLarge") && heard[1].contains("hello"), "{heard:?}");
    }

    /// The hello of a client with a key is taken off whole, and answered by nobody yet; who does not want it says so in
    /// frames.
    #[test]
    fn secure_is_recognised() {
        let key = SecureKey::from_bytes([7; 32]);
        let hello = *Initiator::new(&key, Role::Client).unwrap().hello();
        let (heard, answer) = Side::hear(&hello, 5);
        assert!(heard.len() == 1 && heard[0].contains("Secure"), "{heard:?}");
        assert!(answer.is_empty());
        let mut side = Side::new();
        assert!(side.feed(&hello, &mut Vec::new()));
        side.codec.stay_plain(&mut side.out);
        let error = WireError::new(Code::Unauthorized, "no");
        side.codec.refuse(&error, &mut side.parser, &mut side.out);
        assert_eq!(refusal(&side.out.drain_to_vec()), Code::Unauthorized);
    }

    /// Neither records within records nor an unknown role lead anywhere: both are refused in frames.
    #[test]
    fn secure_is_refused_in_frames() {
        let key = SecureKey::from_bytes([7; 32]);
        let mut hello = *Initiator::new(&key, Role::Client).unwrap().hello();
        let mut side = Side::new();
        side.codec = side.codec.within_records();
        assert!(!side.feed(&hello, &mut Vec::new()));
        assert_eq!(refusal(&side.out.drain_to_vec()), Code::Unsupported);
        hello[6] = 9;
        assert_eq!(refusal(&Side::hear(&hello, 100).1), Code::Unsupported);
    }

    /// The code in the error frame behind our preface.
    fn refusal(answer: &[u8]) -> Code {
        assert_eq!(Preface::decode(answer), Ok(Some(Preface::plain())));
        let mut frames = BytesMut::from(&answer[Preface::BYTES..]);
        let frame = FrameReader::new(1 << 16).next(&mut frames).unwrap().unwrap();
        let Ok(Some(ServerMessage::Error(report))) = frame::decode_server(frame) else {
            panic!("no error frame")
        };
        assert_eq!(report.scope, Scope::Connection);
        report.code
    }

    /// HTTP gets a complete response, however its bytes are cut; TLS an alert; others an error in JSON.
    #[test]
    fn strangers_are_told() {
        for method in HTTP_METHODS {
            let request = [method, b"/ HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
            let answer = String::from_utf8(Side::hear(&request, 1).1).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
        }
        assert_eq!(Side::hear(&[0x16, 3, 1, 2, 0, 1], 1).1, TLS_ALERT);
        for other in [&b"hello\n"[..], b"[1]", b"GETTING", b"\xB5oops", b"\x16\x00", b"\"text\"", b"\0"] {
            let answer = String::from_utf8(Side::hear(other, 1).1).unwrap();
            let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(value["message"]["info"]["code"], "malformed", "{other:?}: {answer}");
            assert!(answer.ends_with('\n'));
        }
    }

    fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
        let starts: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"{".to_vec(),
            br#"{"id":"a","action":"init"}"#.to_vec(),
            b"GET ".to_vec(),
            vec![0x16, 3],
            Preface::MAGIC.to_vec(),
            Preface::plain().encode().to_vec(),
            Preface { mode: Mode::Secure, ..Preface::plain() }.encode().to_vec(),
            binary_hello(),
        ];
        (prop::sample::select(starts), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(start, rest)| [start, rest].concat())
    }

    proptest! {
        /// Any bytes in any cuts: no panic, and what is heard does not depend on the cuts.
        #[test]
        fn any_bytes_in_any_cuts(bytes in first_bytes(), piece in 1usize..40) {
            let (whole, in_pieces) = (Side::hear(&bytes, usize::MAX), Side::hear(&bytes, piece));
            prop_assert_eq!(whole, in_pieces);
        }
    }
}
