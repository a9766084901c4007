//! The path of a request through the pure crates, piece by piece, always the same: for criterion, which measures its
//! time, and for callgrind, which counts its instructions.
//!
//! [`core`]: the broker. [`client`]: the client's core. [`frames`], [`json`]: the codecs. [`all`]: every piece by name.

pub mod client;
pub mod core;
pub mod frames;
pub mod json;

/// A piece of work that can be repeated.
pub struct Work {
    /// Which.
    pub name: String,
    /// Does it once.
    pub run: Box<dyn FnMut()>,
    /// How many requests or messages that are.
    pub operations: u32,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Work {
    pub(crate) fn new(name: impl Into<String>, operations: u32, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run), operations }
    }
}

/// Every piece whose instructions are counted.
pub fn all() -> Vec<Work> {
    [core::all(), client::all(), frames::all(), json::all()].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    /// Each piece can be done again and again, and has a name of its own.
    #[test]
    fn repeatable() {
        let mut names = std::collections::BTreeSet::new();
        for mut work in super::all() {
            (0..100).for_each(|_| (work.run)());
            assert!(names.insert(work.name.clone()), "{} is there twice", work.name);
            assert!(work.operations >= 1);
        }
        assert!(names.len() >= 15, "{names:?}");
    }
}
