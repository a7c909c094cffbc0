//! A small disk that fills up: a tmpfs of a given size. Needs root, as mounting does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A mounted tmpfs; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of so many KiB.
    ///
    /// # Errors
    /// When mounting is not allowed here.
    pub fn mount(kib: u64) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ckpt-tests-disk")
            .tempdir()?;
        let output = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={kib}k,mode=777"),
                "ckpt-tests",
            ])
            .arg(folder.path())
            .output()
            .context("start mount")?;
        if !output.status.success() {
            bail!(
                "a tmpfs can't be mounted here: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(Self { folder })
    }

    /// Changes its size.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resize(&self, kib: u64) -> Result<()> {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,size={kib}k")])
            .arg(self.folder.path())
            .output()
            .context("start mount")?;
        if !output.status.success() {
            bail!(
                "the tmpfs can't be resized: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A place on it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}
