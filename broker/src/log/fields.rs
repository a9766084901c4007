//! Numbers and byte strings at the front of a slice, little-endian. Nothing is taken that is not there.

use bytes::{BufMut, BytesMut};

/// What is left of a body while it is decoded.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// A body ends before its fields do, or its fields before the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongLength;

impl<'a> Fields<'a> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], WrongLength> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(WrongLength)?;
        self.0 = rest;
        Ok(*chunk)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WrongLength> {
        self.chunk().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WrongLength> {
        self.chunk().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WrongLength> {
        self.chunk().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WrongLength> {
        self.chunk().map(u64::from_le_bytes)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), WrongLength> {
        self.bytes(bytes).map(drop)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], WrongLength> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(WrongLength)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A length of two bytes, and so many bytes.
    pub(super) fn text(&mut self) -> Result<&'a [u8], WrongLength> {
        let length = self.u16()?;
        self.bytes(length.into())
    }

    /// A length of four bytes, and so many bytes.
    pub(super) fn blob(&mut self) -> Result<&'a [u8], WrongLength> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn end(self) -> Result<(), WrongLength> {
        if self.0.is_empty() { Ok(()) } else { Err(WrongLength) }
    }
}

/// Writes a text. Its length has been checked by `Record::check`.
pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    debug_assert!(text.len() <= u16::MAX.into());
    out.put_u16_le(text.len() as u16);
    out.put_slice(text);
}

/// Writes a blob. Its length has been checked by `Record::check`.
pub(super) fn put_blob(out: &mut BytesMut, blob: &[u8]) {
    debug_assert!(blob.len() <= u32::MAX as usize);
    out.put_u32_le(blob.len() as u32);
    out.put_slice(blob);
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut number = [0; 2];
    number.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(number)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
