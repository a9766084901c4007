//! `serverId`, the opaque name of a delivery: `<boot as 16 hex digits>-<number in hex>`, unique across restarts.

const BOOT_DIGITS: usize = 16;

/// Appends the `serverId` of a delivery, without quotes.
pub(super) fn write(boot: u64, delivery: u64, out: &mut Vec<u8>) {
    write_hex(boot, BOOT_DIGITS, out);
    out.push(b'-');
    let digits = (64 - (delivery | 1).leading_zeros()).div_ceil(4);
    write_hex(delivery, digits as usize, out);
}

/// The boot and the delivery's number, if the text has the form of a `serverId`.
pub(super) fn read(text: &str) -> Option<(u64, u64)> {
    let (boot, rest) = text.as_bytes().split_at_checked(BOOT_DIGITS)?;
    let (dash, delivery) = rest.split_first()?;
    if *dash != b'-' || !(1..=16).contains(&delivery.len()) {
        return None;
    }
    Some((read_hex(boot)?, read_hex(delivery)?))
}

fn write_hex(number: u64, digits: usize, out: &mut Vec<u8>) {
    let mut text = [0; 16];
    for (index, digit) in text[..digits].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * index)) as usize & 15];
    }
    out.extend_from_slice(&text[..digits]);
}

/// At most 16 lower-case digits, as they are written above.
fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read back; everything else is refused.
    #[test]
    fn round_trip() {
        for (boot, delivery) in [(0, 0), (1, 15), (0xfeed, 16), (u64::MAX, u64::MAX)] {
            let mut out = Vec::new();
            write(boot, delivery, &mut out);
            assert_eq!(read(std::str::from_utf8(&out).unwrap()), Some((boot, delivery)));
        }
        let mut out = Vec::new();
        write(0xab, 0x1c, &mut out);
        assert_eq!(out, b"00000000000000ab-1c");
        for text in [
            "",
            "00000000000000ab",
            "00000000000000ab-",
            "00000000000000ab-+1",
            "00000000000000AB-1",
            "00000000000000ab_1",
            "00000000000000ab-12345678901234567",
            "0000000000000äb-1",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
