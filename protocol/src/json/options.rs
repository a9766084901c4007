//! What a request's `options` ask of the broker. The whole of them is forwarded to the handler as well.

use bytes::Bytes;

use super::{
    envelope::{Slot, boolean, fill, milliseconds, object, present, string, whole},
    parser::Value,
};
use crate::{Code, WireError, encode_headers, message::RequestFlags};

/// The header that carries the option `idempotencyKey`.
const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// The options that the broker itself understands.
#[derive(Debug, Default)]
pub(super) struct RequestOptions {
    pub(super) flags: RequestFlags,
    pub(super) max_attempts: u8,
    pub(super) ttl_ms: u32,
    pub(super) timeout_ms: u32,
    pub(super) headers: Bytes,
}

/// The value of `options` if there are any. Old clients send `""` for none.
pub(super) fn of_slot<'t>(slot: Slot<'t>) -> Result<Slot<'t>, WireError> {
    match present(slot) {
        Some(value) if value.string() == Some("") => Ok(None),
        Some(value) if value.object().is_none() => Err(WireError::malformed("`options` must be an object")),
        value => Ok(value),
    }
}

impl RequestOptions {
    /// Reads an object of options.
    pub(super) fn read(options: Value<'_>) -> Result<Self, WireError> {
        let mut found = Known::default();
        for (key, value) in options.object().into_iter().flatten() {
            if let Some(slot) = found.slot(key) {
                fill(slot, key, value)?;
            }
        }
        found.typed()
    }
}

/// The members of `options` that the broker reads.
#[derive(Default)]
struct Known<'t> {
    ttl: Slot<'t>,
    timeout: Slot<'t>,
    broadcast: Slot<'t>,
    durable: Slot<'t>,
    reply: Slot<'t>,
    progress: Slot<'t>,
    max_attempts: Slot<'t>,
    idempotency_key: Slot<'t>,
    headers: Slot<'t>,
}

impl<'t> Known<'t> {
    fn slot(&mut self, key: &str) -> Option<&mut Slot<'t>> {
        Some(match key {
            "ttl" => &mut self.ttl,
            "timeout" => &mut self.timeout,
            "broadcast" => &mut self.broadcast,
            "durable" => &mut self.durable,
            "reply" => &mut self.reply,
            "progress" => &mut self.progress,
            "maxAttempts" => &mut self.max_attempts,
            "idempotencyKey" => &mut self.idempotency_key,
            "headers" => &mut self.headers,
            _ => return None,
        })
    }

    fn typed(self) -> Result<RequestOptions, WireError> {
        let mut flags = RequestFlags::default();
        for (slot, key, meaning, flag) in [
            (self.broadcast, "options.broadcast", true, RequestFlags::BROADCAST),
            (self.durable, "options.durable", true, RequestFlags::DURABLE),
            (self.progress, "options.progress", true, RequestFlags::PROGRESS),
            (self.reply, "options.reply", false, RequestFlags::SEND),
        ] {
            if boolean(slot, key)? == Some(meaning) {
                flags = flags.with(flag);
            }
        }
        Ok(RequestOptions {
            flags,
            max_attempts: whole(self.max_attempts, "options.maxAttempts", 1, 255)?.unwrap_or(0) as u8,
            ttl_ms: milliseconds(self.ttl, "options.ttl")?.unwrap_or(0),
            timeout_ms: milliseconds(self.timeout, "options.timeout")?.unwrap_or(0),
            headers: self.headers()?,
        })
    }

    fn headers(&self) -> Result<Bytes, WireError> {
        let mut pairs = Vec::new();
        if let Some(key) = string(self.idempotency_key, "options.idempotencyKey")? {
            pairs.push((IDEMPOTENCY_KEY_HEADER, key));
        }
        for (key, value) in object(self.headers, "options.headers")?.into_iter().flatten() {
            let value = value
                .string()
                .ok_or_else(|| WireError::malformed("`options.headers` must be an object of strings"))?;
            pairs.push((key, value));
        }
        encode_headers(pairs).map_err(|error| WireError::new(Code::TooLarge, error.to_string()))
    }
}
