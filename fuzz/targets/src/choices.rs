//! Bytes as a source of decisions, for targets that need a history rather than a stream.

/// Decisions, taken off some bytes one after the other. When they are used up, each is the first of what can be chosen.
///
/// A decision takes one byte, or two where there are more than 256 alternatives: a change of one byte changes one
/// decision, which is what a fuzzer learns from.
#[derive(Debug)]
pub(crate) struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether the bytes are used up.
    pub(crate) fn are_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is left, as it is.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// From 0 up to, not including, `bound`, which is at most 65536.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        debug_assert!((1..=1 << 16).contains(&bound));
        let mut value = self.byte();
        if bound > 256 {
            value = value << 8 | self.byte();
        }
        value % bound
    }

    /// True for one choice of `bound`, and not when the bytes are used up.
    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == bound - 1
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn byte(&mut self) -> u64 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        u64::from(first)
    }
}

/// Cuts bytes into pieces. `size` is the length of the first, and where the lengths of the others come from; 0 does not
/// cut at all.
pub(crate) fn pieces(bytes: &[u8], size: u8) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut next) = (bytes, usize::from(size));
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = if size == 0 { rest.len() } else { next.clamp(1, rest.len()) };
        next = (next * 5 + 3) % 61;
        let (piece, later) = rest.split_at(length);
        rest = later;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces are the bytes, however they are cut.
    #[test]
    fn pieces_are_the_whole() {
        let bytes: Vec<u8> = (0..=255).collect();
        for size in 0..=255 {
            assert_eq!(pieces(&bytes, size).collect::<Vec<_>>().concat(), bytes, "{size}");
        }
        assert_eq!(pieces(&bytes, 0).count(), 1);
        assert!(pieces(&bytes, 1).count() > 5);
    }

    /// Choices end with their bytes, on what comes first.
    #[test]
    fn choices_end() {
        let mut choices = Choices::new(&[7, 1, 2]);
        assert_eq!((choices.below(5), choices.below(1000)), (2, 258));
        assert!(choices.are_over());
        assert_eq!((choices.of(&['a', 'b']), choices.one_in(2)), ('a', false));
    }
}
