//! AES-256-GCM under one key: how a record's bytes are encrypted, and verified.

use std::{fmt, hint::black_box};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

pub(super) const KEY_BYTES: usize = 32;
pub(super) const NONCE_BYTES: usize = 12;
pub(super) const TAG_BYTES: usize = 16;

/// A key, ready for use: its schedule is made once. It is overwritten when it is dropped.
///
/// It knows nothing of nonces: whoever has it uses each once for sealing. (That is what its library calls less safe.)
pub(super) struct Cipher(LessSafeKey);

impl Cipher {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        match UnboundKey::new(&AES_256_GCM, key) {
            Ok(key) => Self(LessSafeKey::new(key)),
            Err(_) => unreachable!("32 bytes are a key of AES-256"),
        }
    }

    /// Encrypts `text` where it is, and gives the tag over it and `header`.
    #[inline]
    pub(super) fn seal(&self, nonce: [u8; NONCE_BYTES], header: &[u8], text: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.0.seal_in_place_separate_tag(nonce, Aad::from(header), text);
        match sealed.as_ref().map(|tag| tag.as_ref().first_chunk()) {
            Ok(Some(tag)) => *tag,
            _ => unreachable!("64 KiB are far below AES-GCM's 64 GiB"),
        }
    }

    /// Decrypts `text` where it is, if it and `header` are what `tag` was made over; if not, what is in `text` is worth
    /// nothing any more. Whether they are.
    #[inline]
    #[must_use]
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_BYTES],
        header: &[u8],
        text: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(header), Tag::from(tag), text, 0..).is_ok()
    }
}

/// The library leaves a key's memory as it is. Another key written over it is no dead store, as it is looked at.
impl Drop for Cipher {
    fn drop(&mut self) {
        if let Ok(zeros) = UnboundKey::new(&AES_256_GCM, &[0; KEY_BYTES]) {
            self.0 = LessSafeKey::new(zeros);
            black_box(&self.0);
        }
    }
}

/// Without the key.
impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits: Vec<u8> =
            hex.bytes().map(|digit| char::from(digit).to_digit(16).unwrap() as u8).collect();
        let pairs: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        pairs.try_into().unwrap()
    }

    /// Test case 16 of the paper that GCM is from (McGrew and Viega, "The Galois/Counter Mode of Operation"), both ways; and
    /// nothing opens with another header, text, tag or nonce.
    #[test]
    fn known_answer() {
        let cipher = Cipher::new(&bytes("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"));
        let (nonce, header) =
            (bytes("cafebabefacedbaddecaf888"), bytes::<20>("feedfacedeadbeeffeedfacedeadbeefabaddad2"));
        let plain: [u8; 60] = bytes(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657\
             ba637b39",
        );
        let sealed: [u8; 60] = bytes(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a\
             bcc9f662",
        );
        let tag = bytes("76fc6ece0f4e1768cddf8853bb2d551b");
        let mut text = plain;
        assert_eq!((cipher.seal(nonce, &header, &mut text), text), (tag, sealed));
        assert!(cipher.open(nonce, &header, &mut text, tag));
        assert_eq!(text, plain);
        let flipped = |mut bytes: Vec<u8>| {
            bytes[7] ^= 1;
            bytes
        };
        assert!(!cipher.open(nonce, &flipped(header.to_vec()), &mut sealed.clone(), tag));
        assert!(!cipher.open(nonce, &header, &mut flipped(sealed.to_vec()), tag));
        assert!(!cipher.open(nonce, &header, &mut sealed.clone(), flipped(tag.to_vec()).try_into().unwrap()));
        assert!(!cipher.open(flipped(nonce.to_vec()).try_into().unwrap(), &header, &mut sealed.clone(), tag));
    }
}
