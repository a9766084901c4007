//! A virtual environment with the SDK's wheel, and its peers where pip can get them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, ensure};
use tempfile::TempDir;

/// What is installed beside the wheel, where it can be had.
const PEERS: [&str; 2] = ["uvloop", "nats-py"];

/// The environment. Its folder is removed when this is dropped.
pub(super) struct Environment {
    /// Its interpreter.
    pub(super) python: PathBuf,
    pub(super) has_uvloop: bool,
    pub(super) has_nats: bool,
    /// Of interpreter and packages.
    pub(super) versions: String,
    _folder: TempDir,
}

impl Environment {
    pub(super) fn make(python: &Path, wheel: &Path, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a folder for Python's environment")?;
        let output = Command::new(python).args(["-m", "venv"]).arg(folder.path()).output();
        succeeded(
            output.with_context(|| format!("starting {}", python.display()))?,
            "making an environment",
        )?;
        let python = folder.path().join("bin").join("python");
        let install = |what: &Path| {
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            let output = Command::new(&python).args(pip).arg(what).output().context("starting pip")?;
            succeeded(output, &format!("installing {}", what.display()))
        };
        install(wheel)?;
        let [has_uvloop, has_nats] = PEERS.map(|peer| match install(Path::new(peer)) {
            Ok(()) => true,
            Err(error) => {
                tell(&format!("{peer} is not measured: {error:#}"));
                false
            }
        });
        let script = "import platform, importlib.metadata as m\n\
                      names = {d.name for d in m.distributions()} & {'ringpost', 'orjson', 'uvloop', 'nats-py'}\n\
                      print('Python', platform.python_version(), *(f', {n} {m.version(n)}' for n in sorted(names)), sep=' ')";
        let output = Command::new(&python).args(["-c", script]).output().context("asking for versions")?;
        let versions = String::from_utf8_lossy(&output.stdout).trim().replace(" ,", ",");
        succeeded(output, "asking for versions")?;
        Ok(Self { python, has_uvloop, has_nats, versions, _folder: folder })
    }
}

fn succeeded(output: Output, what: &str) -> anyhow::Result<()> {
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
