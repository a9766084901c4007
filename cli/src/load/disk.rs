//! A temporary folder for a server that logs what is durable: on a disk, since a sync costs nothing anywhere else.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// File systems that keep nothing anywhere but in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// A temporary folder, and what it lies on. It is removed when this is dropped.
#[derive(Debug)]
pub struct Disk {
    folder: TempDir,
    file_system: String,
}

impl Disk {
    /// A folder in the first of `$TMPDIR` (or /tmp), /var/tmp and the working directory that is not only memory.
    ///
    /// # Errors
    /// When none of them is, or a folder cannot be made there.
    pub fn temporary() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        for parent in [env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")] {
            // What is not there is none of the choices.
            let Ok(parent) = parent.canonicalize() else { continue };
            let Some(file_system) = file_system_of(&parent, &mounts) else { continue };
            if !IN_MEMORY.contains(&file_system) {
                let folder = tempfile::Builder::new()
                    .prefix("ringpost-bench-")
                    .tempdir_in(&parent)
                    .with_context(|| format!("a temporary folder in {}", parent.display()))?;
                return Ok(Self { folder, file_system: file_system.to_owned() });
            }
        }
        bail!(
            "$TMPDIR, /var/tmp and the working directory are in memory only: set TMPDIR to a folder on a disk"
        )
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The name of its file system, as the kernel calls it: `ext4`, `xfs`.
    pub fn file_system(&self) -> &str {
        &self.file_system
    }
}

/// The file system that a path without symbolic links lies on, by the text of /proc/self/mountinfo, see
/// proc_pid_mountinfo(5).
fn file_system_of<'a>(path: &Path, mounts: &'a str) -> Option<&'a str> {
    let parse = |line: &'a str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        path.starts_with(point).then_some((point.len(), file_system.split(' ').next()?))
    };
    // Of mounts at the same point the last one is seen, and that is the one that `max_by_key` takes.
    mounts.lines().filter_map(parse).max_by_key(|(length, _)| *length).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The innermost mount counts, and of several at one point the last; names that only begin alike do not.
    #[test]
    fn innermost_mount() {
        let mounts = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      30 27 0:25 / /tmp rw shared:1 - xfs /dev/vdb rw\n\
                      31 27 0:26 / /tmp rw shared:2 master:3 - tmpfs tmpfs rw\n";
        let on = |path: &str| file_system_of(Path::new(path), mounts);
        assert_eq!((on("/"), on("/var/tmp"), on("/tmpfiles")), (Some("ext4"), Some("ext4"), Some("ext4")));
        assert_eq!((on("/tmp"), on("/tmp/a")), (Some("tmpfs"), Some("tmpfs")));
        assert_eq!(file_system_of(Path::new("/a"), ""), None);
    }

    /// The folder is there as long as it is owned, and lies on something with a name.
    #[test]
    fn is_removed() {
        let disk = Disk::temporary().unwrap();
        let path = disk.path().to_owned();
        assert!(path.is_dir() && !disk.file_system().is_empty());
        drop(disk);
        assert!(!path.exists());
    }
}
