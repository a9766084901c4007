use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    Code, Content, Outgoing,
    message::{
        Answer, ClientMessage, Deliver, Ended, ErrorReport, Forward, Hello, Leg, OpenState, PeerMessage,
        Progress, Register, Reply, Request, RequestFlags, RequestId, Resume, Run, Runs, Scope, ServerMessage,
        Speaker, Tag, Target, Verdict, Welcome,
    },
};

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn content(named: bool) -> impl Strategy<Value = Content> {
    let name = if named { 0..=255usize } else { 0..=0usize };
    (vec(any::<u8>(), name), bytes(300), bytes(300), prop_oneof![bytes(300), bytes(40_000)]).prop_map(
        |(name, options, headers, payload)| Content::from_parts(&name, &options, &headers, &payload),
    )
}

fn code() -> impl Strategy<Value = Code> {
    (0..Code::ALL.len()).prop_map(|index| Code::ALL[index])
}

fn target() -> impl Strategy<Value = Target> {
    any::<u64>().prop_map(Target::Number)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Reply),
        Just(Verdict::Error),
        Just(Verdict::Cancelled),
        any::<u32>().prop_map(Verdict::Retry),
        Just(Verdict::Reject),
        // Those two have words of their own.
        code()
            .prop_filter("", |code| !matches!(code, Code::Remote | Code::Cancelled))
            .prop_map(Verdict::Failed),
        code().prop_map(Verdict::Declined)
    ]
}

fn run() -> impl Strategy<Value = Run> {
    (any::<[u64; 3]>(), 1u16..).prop_map(|([boot, count, tie], attempt)| Run {
        request: RequestId { boot, count },
        attempt,
        tie,
    })
}

fn peer_message() -> impl Strategy<Value = PeerMessage> {
    // A list's tie is its own.
    let runs = || {
        (any::<u64>(), any::<bool>(), vec(run(), 0..9)).prop_map(|(tie, more, runs)| Runs { tie, more, runs })
    };
    prop_oneof![
        (run(), 0u8..32, any::<u32>(), any::<u64>(), content(true)).prop_map(
            |(run, flags, time_left_ms, received_at_ms, content)| {
                let flags = RequestFlags(flags);
                PeerMessage::Forward(Forward { run, flags, time_left_ms, received_at_ms, content })
            }
        ),
        (run(), verdict(), content(false)).prop_map(|(run, verdict, content)| PeerMessage::Ended(Ended {
            run,
            verdict,
            content
        })),
        (run(), bytes(99))
            .prop_map(|(run, payload)| PeerMessage::Working { run, content: Content::from_payload(payload) }),
        run().prop_map(PeerMessage::Withdraw),
        run().prop_map(PeerMessage::Taken),
        runs().prop_map(PeerMessage::Abroad),
        runs().prop_map(PeerMessage::Unknown),
    ]
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let request = (1u64.., 0u8..16, any::<u8>(), any::<u32>(), any::<u32>(), content(true)).prop_map(
        |(number, flags, max_attempts, ttl_ms, timeout_ms, content)| {
            let flags = RequestFlags(flags);
            ClientMessage::Request(Request { number, flags, max_attempts, ttl_ms, timeout_ms, content })
        },
    );
    let answer = (any::<u64>(), any::<u64>(), verdict(), content(true)).prop_map(
        |(delivery, sequence, verdict, content)| {
            ClientMessage::Answer(Answer { delivery, sequence, verdict, content })
        },
    );
    let own_code = code().prop_filter("", |code| !matches!(code, Code::Remote | Code::Cancelled));
    let verdict = prop_oneof![
        Just(Verdict::Reply),
        Just(Verdict::Error),
        Just(Verdict::Cancelled),
        own_code.prop_map(Verdict::Failed)
    ];
    let leg = (any::<u64>(), any::<u64>(), verdict, content(true)).prop_map(
        |(delivery, sequence, verdict, content)| {
            ClientMessage::Leg(Answer { delivery, sequence, verdict, content })
        },
    );
    prop_oneof![
        request,
        answer,
        leg,
        any::<(u64, u32)>().prop_map(|(delivery, expected)| ClientMessage::Legs { delivery, expected }),
        (bytes(255), any::<(u64, u32)>(), any::<bool>(), proptest::option::of(bytes(255)), bytes(99))
            .prop_map(|(session, (instance, connection), watch_receivers, peer, headers)| {
                let speaker = Speaker { instance, connection };
                ClientMessage::Hello(Hello { session, speaker, watch_receivers, peer, headers })
            }),
        (1u32.., any::<u32>(), bytes(255)).prop_map(
            |(registration, credit, action)| ClientMessage::Register(Register {
                registration,
                credit,
                action,
                session: Bytes::new()
            })
        ),
        target().prop_map(ClientMessage::Deregister),
        (1u32.., any::<u32>())
            .prop_map(|(registration, credit)| ClientMessage::Credit { registration, credit }),
        target().prop_map(ClientMessage::Cancel),
        (any::<u64>(), bytes(99))
            .prop_map(|(number, payload)| ClientMessage::Progress(progress(number, payload))),
        target().prop_map(ClientMessage::Acknowledge),
        (
            any::<u64>(),
            any::<u64>(),
            vec(any::<u64>(), 0..9),
            any::<u64>(),
            vec(any::<u64>(), 0..9),
            any::<bool>()
        )
            .prop_map(|(boot, sequence, open, held_boot, held, unclaimed)| {
                ClientMessage::Resume(Resume { boot, sequence, open, held_boot, held, unclaimed })
            }),
        any::<bool>().prop_map(ClientMessage::WatchReceivers),
        any::<u64>().prop_map(ClientMessage::Ping),
        any::<u64>().prop_map(ClientMessage::Pong),
        Just(ClientMessage::Goaway),
        peer_message().prop_map(|message| ClientMessage::Peer(Box::new(message))),
    ]
}

fn progress(number: u64, payload: Bytes) -> Progress {
    Progress { number, tag: Tag::new(), content: Content::from_payload(payload) }
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let deliver = (any::<[u64; 4]>(), any::<[u32; 2]>(), 0u8..16, any::<u16>(), content(false)).prop_map(
        |([delivery, boot, count, received_at_ms], [registration, time_left_ms], flags, attempt, content)| {
            let (flags, request_id) = (RequestFlags(flags), RequestId { boot, count });
            ServerMessage::Deliver(Deliver {
                delivery,
                registration,
                flags,
                attempt,
                time_left_ms,
                received_at_ms,
                request_id,
                content,
            })
        },
    );
    let reply = (
        any::<[u64; 3]>(),
        any::<[u32; 2]>(),
        option::of(code()),
        option::of(any::<[u32; 2]>()),
        any::<u16>(),
        content(true),
    )
        .prop_map(
            |(
                [number, sequence, received_at_ms],
                [delivered_after_ms, handled_after_ms],
                code,
                leg,
                attempt,
                content,
            )| {
                // Only errors carry a name.
                let content = match code {
                    Some(_) => content,
                    None => Content::from_parts(b"", content.options(), content.headers(), content.payload()),
                };
                let leg = leg.map(|[index, expected]| Leg { index, expected });
                ServerMessage::Reply(Reply {
                    number,
                    tag: Tag::new(),
                    sequence,
                    code,
                    leg,
                    attempt,
                    received_at_ms,
                    delivered_after_ms,
                    handled_after_ms,
                    content,
                })
            },
        );
    let state = prop_oneof![
        Just(OpenState::Running),
        Just(OpenState::Outcome),
        Just(OpenState::NeverSeen),
        Just(OpenState::Lost)
    ];
    let scope = prop_oneof![Just(Scope::Connection), Just(Scope::Registration), Just(Scope::Delivery)];
    prop_oneof![
        deliver,
        reply,
        (any::<[u64; 4]>(), any::<[u32; 2]>(), any::<bool>(), bytes(255), bytes(99)).prop_map(
            |(
                [boot, epoch, tenure, next_number],
                [max_payload, ping_interval_ms],
                durable_all,
                server_id,
                headers,
            )| {
                ServerMessage::Welcome(Welcome {
                    server_id,
                    boot,
                    epoch,
                    tenure,
                    next_number,
                    max_payload,
                    ping_interval_ms,
                    durable_all,
                    headers,
                })
            }
        ),
        (1u32..).prop_map(|registration| ServerMessage::Registered { registration }),
        any::<u64>().prop_map(|delivery| ServerMessage::Cancel { delivery, tag: Tag::new() }),
        any::<u64>().prop_map(|upto| ServerMessage::Accepted { upto, tag: Tag::new() }),
        (any::<u64>(), any::<u32>()).prop_map(|(number, expected)| ServerMessage::Legs { number, expected }),
        (any::<u64>(), bytes(99))
            .prop_map(|(number, payload)| ServerMessage::Progress(progress(number, payload))),
        (any::<u64>(), bytes(255), bytes(99)).prop_map(|(number, action, headers)| {
            let content = Content::from_parts(&action, b"", &headers, b"");
            ServerMessage::Asked { number, tag: Tag::new(), content }
        }),
        any::<u64>().prop_map(|sequence| ServerMessage::Acknowledge { sequence }),
        (vec((any::<u64>(), state), 0..9), vec(any::<u64>(), 0..9), vec(any::<(u64, u64)>(), 0..9))
            .prop_map(|(open, forgotten, attached)| ServerMessage::Resumed { open, forgotten, attached }),
        bytes(40_000).prop_map(ServerMessage::Receivers),
        (scope, any::<u64>(), code(), ".{0,40}").prop_map(|(scope, number, code, message)| {
            ServerMessage::Error(ErrorReport { scope, number, code, message })
        }),
        any::<u64>().prop_map(ServerMessage::Ping),
        any::<u64>().prop_map(ServerMessage::Pong),
        (any::<u32>(), ".{0,40}").prop_map(|(grace_ms, reason)| ServerMessage::Goaway { grace_ms, reason }),
        peer_message().prop_map(|message| ServerMessage::Peer(Box::new(message))),
    ]
}

/// Reads all frames of a stream that arrives in pieces.
fn read_frames(stream: &[u8], mut cuts: impl Iterator<Item = usize>) -> Vec<Bytes> {
    let reader = FrameReader::new(1 << 20);
    let (mut buffer, mut frames, mut rest) = (BytesMut::new(), Vec::new(), stream);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cuts.next().unwrap_or(usize::MAX).clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        rest = later;
        while let Some(frame) = reader.next(&mut buffer).unwrap() {
            frames.push(frame);
        }
    }
    assert!(buffer.is_empty(), "all of the stream was used");
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What a client says arrives as it was said, however the stream is cut.
    #[test]
    fn client_messages_survive(messages in vec(client_message(), 1..6), cuts in vec(1usize..2000, 0..60)) {
        let mut out = Outgoing::new();
        messages.iter().for_each(|message| encode_client(message, &mut out));
        let frames = read_frames(&out.drain_to_vec(), cuts.into_iter());
        let decoded: Vec<_> = frames.into_iter().map(|frame| decode_client(frame).unwrap().unwrap()).collect();
        prop_assert_eq!(decoded, messages);
    }

    /// What a server says arrives as it was said, however the stream is cut.
    #[test]
    fn server_messages_survive(messages in vec(server_message(), 1..6), cuts in vec(1usize..2000, 0..60)) {
        let mut out = Outgoing::new();
        messages.iter().for_each(|message| encode_server(message, &mut out));
        let frames = read_frames(&out.drain_to_vec(), cuts.into_iter());
        let decoded: Vec<_> = frames.into_iter().map(|frame| decode_server(frame).unwrap().unwrap()).collect();
        prop_assert_eq!(decoded, messages);
    }

    /// No bytes at all make a decoder panic.
    #[test]
    fn any_bytes_are_survived(input in vec(any::<u8>(), 0..300), kind in any::<u8>()) {
        let mut input = input;
        let reader = FrameReader::new(100);
        while let Ok(Some(frame)) = reader.next(&mut BytesMut::from(&input[..])) {
            let _ = (decode_client(frame.clone()), decode_server(frame.clone()), Preface::decode(&frame));
            input.drain(..frame.len());
        }
        if input.len() >= HEADER_BYTES {
            input[4] = kind & 0x3f;
            let _ = (decode_client(input.clone().into()), decode_server(input.into()));
        }
    }

    /// A valid frame with one byte changed is decoded or refused, never worse.
    #[test]
    fn one_wrong_byte_is_survived(message in client_message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut out = Outgoing::new();
        encode_client(&message, &mut out);
        let mut frame = out.drain_to_vec();
        let at = at.index(frame.len());
        frame[at] = byte;
        let _ = decode_client(frame.into());
    }
}

/// A length beyond the limit is refused at the header, before anything is read or allocated for it.
#[test]
fn a_lying_length_is_refused_at_once() {
    let mut buffer =
        BytesMut::from(&[0xff, 0xff, 0xff, 0xff, kind::REQUEST, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..]);
    let capacity = buffer.capacity();
    let error = FrameReader::new(1024).next(&mut buffer).unwrap_err();
    assert_eq!(error.code, Code::TooLarge);
    assert!(error.message.contains("--max-payload"));
    assert_eq!(buffer.capacity(), capacity);
}

/// Lengths within a frame that do not add up are refused.
#[test]
fn a_frame_that_ends_early_is_refused() {
    let mut out = Outgoing::new();
    let content = Content::from_parts(b"client_1", b"{}", b"", b"1");
    encode_client(&ClientMessage::Request(Request { number: 1, content, ..Request::default() }), &mut out);
    let frame = out.drain_to_vec();
    for end in HEADER_BYTES..frame.len() - 1 {
        assert_eq!(
            decode_client(frame[..end].to_vec().into()).unwrap_err().code,
            Code::Malformed,
            "cut at {end}"
        );
    }
}

/// Kinds that may be skipped are; others are an error that names them.
#[test]
fn unknown_kinds() {
    let frame = |kind| Bytes::from(vec![0, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(decode_client(frame(0xff)), Ok(None));
    assert_eq!(decode_server(frame(0x80)), Ok(None));
    let error = decode_client(frame(0x7f)).unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("0x7f"));
}

/// A preface is told from other protocols at its first byte, and says what it cannot speak.
#[test]
fn prefaces() {
    let bytes = Preface::plain().encode();
    for end in 0..bytes.len() {
        assert_eq!(Preface::decode(&bytes[..end]), Ok(None));
    }
    assert_eq!(Preface::decode(&bytes), Ok(Some(Preface::plain())));
    assert_eq!(Preface::decode(b"G").unwrap_err().code, Code::Malformed);
    let mut other = bytes;
    other[4] = 0;
    assert_eq!(Preface::decode(&other).unwrap_err().code, Code::Unsupported);
    other[4] = 9;
    assert_eq!(Preface::decode(&other).unwrap().unwrap().version, 9);
    other[5] = 7;
    assert_eq!(Preface::decode(&other).unwrap_err().code, Code::Unsupported);
}
