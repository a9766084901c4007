//! Writes the targets' seeds where cargo-fuzz looks for its corpus: `fuzz-seeds FOLDER` makes FOLDER/TARGET/SEED.

#![forbid(unsafe_code)]

use std::{env, fs, path::PathBuf};

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).context("which folder? Usually fuzz/corpus")?);
    for (target, _) in ringpost_fuzz_targets::TARGETS {
        let corpus = folder.join(target);
        fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        for (name, input) in ringpost_fuzz_targets::seeds(target)? {
            let path = corpus.join(name);
            fs::write(&path, input).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
