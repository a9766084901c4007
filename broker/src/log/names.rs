//! The names of a log's files. A segment's number is 16 hexadecimal digits, so that names sort as numbers do.

use super::SegmentNumber;

/// The manifest.
pub const MANIFEST: &str = "manifest";
/// What becomes the manifest when it is complete.
pub const NEW_MANIFEST: &str = "manifest.new";
/// Locked while somebody uses the directory.
pub const LOCK: &str = "lock";

/// What a file of a log is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileName {
    /// [`MANIFEST`].
    Manifest,
    /// [`NEW_MANIFEST`].
    NewManifest,
    /// [`LOCK`].
    Lock,
    /// A segment.
    Segment(SegmentNumber),
    /// The index at the end of a segment.
    Snapshot(SegmentNumber),
    /// Something that was put aside, for people.
    Aside,
    /// Somebody else's.
    Foreign,
}

/// What the file with this name is.
pub fn parse(name: &str) -> FileName {
    match name {
        MANIFEST => return FileName::Manifest,
        NEW_MANIFEST => return FileName::NewManifest,
        LOCK => return FileName::Lock,
        _ => {}
    }
    let Some((digits, kind)) = name.split_once('.') else { return FileName::Foreign };
    if digits == MANIFEST && kind.starts_with("damaged") {
        return FileName::Aside;
    }
    let number = match u64::from_str_radix(digits, 16) {
        Ok(number) if digits == format!("{number:016x}") => SegmentNumber(number),
        _ => return FileName::Foreign,
    };
    match kind {
        "segment" => FileName::Segment(number),
        "snapshot" => FileName::Snapshot(number),
        _ if kind.starts_with("torn-") || kind.starts_with("lost-") => FileName::Aside,
        _ => FileName::Foreign,
    }
}

/// The file of a segment.
pub fn segment(number: SegmentNumber) -> String {
    format!("{:016x}.segment", number.0)
}

/// Where bytes go that were cut off a segment at an offset.
pub fn torn(number: SegmentNumber, offset: u64) -> String {
    format!("{:016x}.torn-{offset}", number.0)
}

/// Where bytes go that a repair gives up, from an offset of a segment on.
pub fn lost(number: SegmentNumber, offset: u64) -> String {
    format!("{:016x}.lost-{offset}", number.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names come back as what they were made for, and what looks nearly like one is somebody else's.
    #[test]
    fn names() {
        let number = SegmentNumber(0xab);
        assert_eq!(segment(number), "00000000000000ab.segment");
        assert_eq!(parse(&segment(number)), FileName::Segment(number));
        assert_eq!(parse("00000000000000ab.snapshot"), FileName::Snapshot(number));
        assert_eq!(parse(&torn(number, 96)), FileName::Aside);
        assert_eq!(parse(&lost(number, 96)), FileName::Aside);
        for foreign in
            ["ab.segment", "00000000000000AB.segment", "+0000000000000ab.segment", "x", "a.b", ".segment"]
        {
            assert_eq!(parse(foreign), FileName::Foreign, "{foreign}");
        }
    }
}
