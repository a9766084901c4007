//! Strings and numbers as JSON text.

/// Appends a string with its quotes. Bytes that are not UTF-8 become U+FFFD.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    match std::str::from_utf8(text) {
        Ok(text) => escape(text.as_bytes(), out),
        Err(_) => escape(String::from_utf8_lossy(text).as_bytes(), out),
    }
    out.push(b'"');
}

/// Appends a number.
pub(super) fn write_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        let byte = rest[at];
        out.extend_from_slice(&rest[..at]);
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 15)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any string reads back as itself.
        #[test]
        fn strings_round_trip(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(text.as_bytes(), &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    /// Control characters have their escapes, other characters stay as they are, and bad UTF-8 is replaced.
    #[test]
    fn escapes() {
        let written = |text: &[u8]| {
            let mut out = Vec::new();
            write_string(text, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written("a\"\\\n\u{1f}\u{7f}ü".as_bytes()), "\"a\\\"\\\\\\n\\u001f\u{7f}ü\"");
        assert_eq!(written(b"\xff"), "\"\u{fffd}\"");
    }
}
