//! The members that an envelope may have, and the types that they must have.
//!
//! Members that are not known are passed over; a known one that is there twice is an error, since the scanner and the
//! parser, or two readers behind them, could take different ones. `null` is the same as absent.

use super::parser::Value;
use crate::WireError;

/// A member's value, if it is there.
pub(super) type Slot<'t> = Option<Value<'t>>;

/// The members of an object that a client sends.
#[derive(Debug, Default)]
pub(super) struct Envelope<'t> {
    pub(super) id: Slot<'t>,
    pub(super) action: Slot<'t>,
    pub(super) client_id: Slot<'t>,
    pub(super) data: Slot<'t>,
    pub(super) options: Slot<'t>,
    pub(super) message: Slot<'t>,
    pub(super) concurrency: Slot<'t>,
    pub(super) session: Slot<'t>,
}

impl<'t> Envelope<'t> {
    pub(super) fn read(object: Value<'t>) -> Result<Self, WireError> {
        let mut found = Self::default();
        for (key, value) in object.object().into_iter().flatten() {
            let slot = match key {
                "id" => &mut found.id,
                "action" => &mut found.action,
                "clientId" => &mut found.client_id,
                "data" => &mut found.data,
                "options" => &mut found.options,
                "message" => &mut found.message,
                "concurrency" => &mut found.concurrency,
                "session" => &mut found.session,
                _ => continue,
            };
            fill(slot, key, value)?;
        }
        Ok(found)
    }
}

/// The members of the object in `message`.
#[derive(Debug, Default)]
pub(super) struct Message<'t> {
    pub(super) server_id: Slot<'t>,
    pub(super) client_id: Slot<'t>,
    pub(super) data: Slot<'t>,
    pub(super) options: Slot<'t>,
    pub(super) info: Slot<'t>,
    pub(super) retry_after: Slot<'t>,
    pub(super) reject: Slot<'t>,
}

impl<'t> Message<'t> {
    /// Reads what `message` holds; as an object without members if there is none.
    pub(super) fn read(slot: Slot<'t>) -> Result<Self, WireError> {
        let mut found = Self::default();
        for (key, value) in object(slot, "message")?.into_iter().flatten() {
            let slot = match key {
                "serverId" => &mut found.server_id,
                "clientId" => &mut found.client_id,
                "data" => &mut found.data,
                "options" => &mut found.options,
                "info" => &mut found.info,
                "retryAfter" => &mut found.retry_after,
                "reject" => &mut found.reject,
                _ => continue,
            };
            fill(slot, key, value)?;
        }
        Ok(found)
    }
}

/// What a handler says about its failure.
#[derive(Debug, Default)]
pub(super) struct Info<'t> {
    pub(super) error: Slot<'t>,
    pub(super) code: Slot<'t>,
}

impl<'t> Info<'t> {
    /// Reads what `info` holds; as an object without members if there is none.
    pub(super) fn read(slot: Slot<'t>) -> Result<Self, WireError> {
        let mut found = Self::default();
        for (key, value) in object(slot, "info")?.into_iter().flatten() {
            let slot = match key {
                "error" => &mut found.error,
                "code" => &mut found.code,
                _ => continue,
            };
            fill(slot, key, value)?;
        }
        Ok(found)
    }
}

/// Puts a member's value in its place, which must be empty.
pub(super) fn fill<'t>(slot: &mut Slot<'t>, key: &str, value: Value<'t>) -> Result<(), WireError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(WireError::malformed(format!("the key `{key}` is there twice in one object"))),
    }
}

/// The value, unless it is absent or `null`.
pub(super) fn present(slot: Slot<'_>) -> Slot<'_> {
    slot.filter(|value| !value.is_null())
}

/// A string.
pub(super) fn string<'t>(slot: Slot<'t>, key: &str) -> Result<Option<&'t str>, WireError> {
    typed(slot, key, "a string", Value::string)
}

/// `true` or `false`.
pub(super) fn boolean(slot: Slot<'_>, key: &str) -> Result<Option<bool>, WireError> {
    typed(slot, key, "true or false", Value::boolean)
}

/// The members of an object.
pub(super) fn object<'t>(
    slot: Slot<'t>,
    key: &str,
) -> Result<Option<impl Iterator<Item = (&'t str, Value<'t>)>>, WireError> {
    typed(slot, key, "an object", Value::object)
}

/// A whole number between these bounds.
pub(super) fn whole(slot: Slot<'_>, key: &str, least: u32, most: u32) -> Result<Option<u32>, WireError> {
    let in_bounds =
        |number: &f64| number.fract() == 0.0 && (f64::from(least)..=f64::from(most)).contains(number);
    // The cast is exact: the bounds are those of a u32, and there is no fraction.
    let read = |value: Value<'_>| value.number().filter(in_bounds).map(|number| number as u32);
    match present(slot) {
        None => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| {
            WireError::malformed(format!("`{key}` must be a whole number from {least} to {most}"))
        }),
    }
}

/// A time in milliseconds: fractions are rounded up, and what does not fit in 32 bits is as long as they allow.
pub(super) fn milliseconds(slot: Slot<'_>, key: &str) -> Result<Option<u32>, WireError> {
    /// `u32::MAX` means "no end" elsewhere.
    const LONGEST: f64 = (u32::MAX - 1) as f64;
    let read = |value: Value<'_>| value.number().map(|number| number.ceil().min(LONGEST) as u32);
    typed(slot, key, "a time in milliseconds, a number that is not negative", read)
}

fn typed<'t, T>(
    slot: Slot<'t>,
    key: &str,
    expected: &str,
    read: impl FnOnce(Value<'t>) -> Option<T>,
) -> Result<Option<T>, WireError> {
    match present(slot) {
        None => Ok(None),
        Some(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(WireError::malformed(format!("`{key}` must be {expected}"))),
        },
    }
}
