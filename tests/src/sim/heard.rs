//! What the model hears of what the core is told: facts, without the bytes that they came in.

use ringpost_broker::{ConnId, Input};
use ringpost_protocol::message::{ClientMessage, RequestFlags, Target};

use super::{
    model::{Asked, Heard},
    peer::number_in,
};

/// What the model wants to know of an input.
pub(crate) fn heard(input: &Input) -> Heard {
    match input {
        Input::Opened { conn, speaks, .. } => Heard::Opened { conn: *conn, speaks: *speaks },
        Input::HalfClosed { conn } => Heard::HalfClosed { conn: *conn },
        Input::Closed { conn } => Heard::Closed { conn: *conn },
        Input::Clogged { conn } => Heard::Clogged { conn: *conn, clogged: true },
        Input::Unclogged { conn } => Heard::Clogged { conn: *conn, clogged: false },
        Input::Drain { .. } => Heard::Drain,
        Input::DrainOver => Heard::DrainOver,
        Input::Message { conn, message } => heard_message(*conn, message),
        _ => Heard::Other,
    }
}

fn heard_message(conn: ConnId, message: &ClientMessage) -> Heard {
    match message {
        ClientMessage::Hello(hello) => {
            Heard::Hello { conn, session: hello.session.clone(), speaker: hello.speaker }
        }
        ClientMessage::Register(register) => Heard::Register {
            conn,
            registration: register.registration,
            action: register.action.to_vec().into(),
            credit: register.credit,
        },
        ClientMessage::Deregister(Target::Number(number)) => {
            Heard::Deregister { conn, registration: *number as u32, action: Default::default() }
        }
        ClientMessage::Deregister(Target::Name(action)) => {
            Heard::Deregister { conn, registration: 0, action: action.to_vec().into() }
        }
        ClientMessage::Credit { registration, credit } => {
            Heard::Credit { conn, registration: *registration, credit: *credit }
        }
        ClientMessage::Request(request) => Heard::Asked {
            conn,
            asked: Asked {
                number: request.number,
                token: number_in(request.content.payload()).unwrap_or_default(),
                action: request.content.name().to_vec().into(),
                send: request.flags.has(RequestFlags::SEND),
                broadcast: request.flags.has(RequestFlags::BROADCAST),
                max_attempts: u32::from(request.max_attempts),
                timeout: std::time::Duration::from_millis(u64::from(request.timeout_ms)),
                bytes: request.content.len(),
                forbidden: false,
            },
        },
        ClientMessage::Cancel(Target::Number(number)) => {
            Heard::Cancel { conn, number: Some(*number), token: None }
        }
        ClientMessage::Cancel(Target::Name(tag)) => {
            Heard::Cancel { conn, number: None, token: number_in(tag) }
        }
        ClientMessage::Answer(answer) => Heard::Answer {
            conn,
            delivery: answer.delivery,
            answered: answer.verdict,
            number: number_in(answer.content.payload()),
        },
        ClientMessage::Resume(resume) => {
            let (boot, sequence, open) = (resume.boot, resume.sequence, resume.open.clone());
            Heard::Resume { conn, boot, sequence, open }
        }
        ClientMessage::Goaway => Heard::Leaving { conn },
        _ => Heard::Other,
    }
}
