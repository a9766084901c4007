//! Every bound of the wire, in one place.

/// The port that Ringpost listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 8888;

/// The longest action name in bytes.
pub const MAX_ACTION_BYTES: usize = 255;

/// The longest session name in bytes.
pub const MAX_SESSION_BYTES: usize = 255;

/// The longest idempotency key of a durable request in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// The longest `options` of a message in bytes of JSON text.
pub const MAX_OPTIONS_BYTES: usize = u16::MAX as usize;

/// The longest header section of a message in bytes.
pub const MAX_HEADERS_BYTES: usize = u16::MAX as usize;

/// The longest code of a handler's own for its error, in bytes.
pub const MAX_OWN_CODE_BYTES: usize = 255;

/// The longest JSON `clientId`, as it was written, in bytes.
pub const MAX_TAG_BYTES: usize = 1024;

/// The longest payload unless the server is told otherwise: 16 MiB.
pub const DEFAULT_MAX_PAYLOAD_BYTES: u32 = 16 << 20;

/// The largest `--max-payload`: lengths and spans are 32 bits wide and must leave room for the rest of a frame.
pub const MAX_MAX_PAYLOAD_BYTES: u32 = 1 << 30;

/// What a frame may hold beside its payload: fixed part, action, options, headers.
pub const FRAME_OVERHEAD_BYTES: u32 = 64 + 256 + 2 * (u16::MAX as u32);

/// What a JSON object may hold beside its `data`.
pub const JSON_OVERHEAD_BYTES: u32 = 64 << 10;

/// The deepest JSON that is accepted: objects and arrays within each other.
pub const MAX_JSON_DEPTH: usize = 64;

/// Payloads at least this long are not copied into the send buffer but sent from where they were received.
/// Below it one copy (about 1 µs for 16 KiB) is cheaper than a further segment in the send.
pub const MIN_SHARED_BYTES: usize = 16 << 10;

/// A message at least this long is read into a buffer of its own, which is shared by all who keep the message, and counted
/// once. What is kept of a smaller one is copied out of the read buffer, which is shared with others.
pub const MIN_COUNTED_BYTES: usize = 64 << 10;

/// Handlers that one broadcast can ask, over all servers.
pub const MAX_LEGS: u32 = 1 << 20;

/// Open numbers and held deliveries that one `resume` may list.
pub const MAX_RESUME_NUMBERS: usize = 1 << 20;

/// What the broker decides to be a name, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("an action's name must have at least one byte")]
    Empty,
    /// More than [`MAX_ACTION_BYTES`].
    #[error("an action's name must not be longer than 255 bytes")]
    TooLong,
    /// Not UTF-8, or a control character in it.
    #[error("an action's name must be UTF-8 without control characters")]
    BadCharacter,
    /// One of the broker's own names.
    #[error(
        "this name is reserved: choose one that is not init, deinit, request, response, acknowledge, receivers, error, cancel or ping, and does not begin with `$`"
    )]
    Reserved,
}

/// Names that nobody may register: they are the JSON dialect's own verbs.
pub const RESERVED_NAMES: [&str; 9] =
    ["init", "deinit", "request", "response", "acknowledge", "receivers", "error", "cancel", "ping"];

/// Checks the form of an action's name: 1 to 255 bytes of UTF-8 without control characters.
///
/// # Errors
/// [`NameError`], but never [`NameError::Reserved`]: requests may name the server's own `$sys.…` actions.
pub fn check_name(name: &[u8]) -> Result<&str, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_ACTION_BYTES {
        return Err(NameError::TooLong);
    }
    let text = std::str::from_utf8(name).map_err(|_| NameError::BadCharacter)?;
    if text.chars().any(char::is_control) {
        return Err(NameError::BadCharacter);
    }
    Ok(text)
}

/// Checks that a name may be registered: well formed and not reserved.
///
/// # Errors
/// [`NameError`] by what is wrong with it.
pub fn check_own_name(name: &[u8]) -> Result<&str, NameError> {
    let text = check_name(name)?;
    if text.starts_with('$') || RESERVED_NAMES.contains(&text) {
        return Err(NameError::Reserved);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are bounded, textual, and the broker's own are kept back.
    #[test]
    fn names() {
        assert_eq!(check_own_name(b""), Err(NameError::Empty));
        assert_eq!(check_own_name(&[b'a'; 256]), Err(NameError::TooLong));
        assert_eq!(check_own_name(b"a\nb"), Err(NameError::BadCharacter));
        assert_eq!(check_own_name("a\u{85}b".as_bytes()), Err(NameError::BadCharacter));
        assert_eq!(check_own_name(&[0xff]), Err(NameError::BadCharacter));
        assert_eq!(check_own_name(b"$sys.stats"), Err(NameError::Reserved));
        assert_eq!(check_own_name(b"ping"), Err(NameError::Reserved));
        assert_eq!(check_name(b"$sys.stats"), Ok("$sys.stats"));
        assert_eq!(check_own_name("grüße 1".as_bytes()), Ok("grüße 1"));
    }
}
