//! A small disk that fills up: a tmpfs of a given size, or an ext4 file system in a file. Needs root, as mounting does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
    /// What an ext4 lies in.
    _image: Option<tempfile::NamedTempFile>,
}

impl SmallDisk {
    /// Mounts a tmpfs of so many KiB.
    ///
    /// # Errors
    /// When mounting is not allowed here.
    pub fn mount(kib: u64) -> Result<Self> {
        let folder = folder()?;
        let size = format!("size={kib}k,mode=777");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "ckpt-tests"])
            .arg(folder.path()))?;
        Ok(Self {
            folder,
            _image: None,
        })
    }

    /// Mounts an ext4 of so many KiB, which can be written past the page cache.
    ///
    /// # Errors
    /// When it can't be made, or mounting is not allowed here.
    pub fn mount_ext4(kib: u64) -> Result<Self> {
        let folder = folder()?;
        // Not in /tmp, which may be memory.
        let image = tempfile::NamedTempFile::new_in("/var/tmp")?;
        image.as_file().set_len(kib << 10)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "root_owner=0:0"])
            .arg(image.path()))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image.path())
            .arg(folder.path()))?;
        Ok(Self {
            folder,
            _image: Some(image),
        })
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

fn folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("ckpt-tests-disk")
        .tempdir()
        .context("make a folder")
}

/// Runs a command that makes or mounts a file system.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "a small disk can't be had here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}
