//! Starting a role, and what roles have in common.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use libckpt_rank::capture::{CaptureError, Capturer, Options, Saved};
use libckpt_rank::restore::RestoringSlot;
use libckpt_rank::{PAGE_BYTES, Slot, startup};
use protocol::control::{CaptureMode, Tracking};
use protocol::ids::{Epoch, Rank};
use protocol::slots::SlotLayout;

/// A command that plays a role.
pub fn role(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["role", name]).args(arguments);
    command
}

/// Plays a role to its end.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    role(name, arguments).output().unwrap()
}

/// Plays a role that has to succeed; what it printed, without the last newline.
pub fn print(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    assert!(
        output.status.success(),
        "{name} {arguments:?} ended with {}: {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout).trim_end().to_owned()
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value on a command line: postcard in hexadecimal digits.
pub fn to_digits(value: &impl serde::Serialize) -> String {
    let bytes = postcard::to_stdvec(value).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value that [`to_digits`] made digits of, if it may be.
pub fn from_digits<T: serde::de::DeserializeOwned>(digits: &str) -> postcard::Result<T> {
    let bytes: Vec<u8> = digits
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect();
    postcard::from_bytes(&bytes)
}

/// Small slots.
pub fn layout(ranks: u32) -> SlotLayout {
    SlotLayout::new(ranks, 1 << 30, 1 << 20).unwrap()
}

/// Makes the process ready for ranks.
pub fn prepare() {
    startup::prepare().unwrap();
}

/// Prepares, and makes the slot of rank 0 of a job of one rank.
pub fn sole_slot() -> Slot {
    prepare();
    Slot::create(layout(1), Rank(0)).unwrap()
}

/// The pages of an image that are not all zero, by number.
pub type Image = BTreeMap<u64, Vec<u8>>;

/// Copies images whole, whatever else is done to find out what has changed.
pub struct FullCopy {
    capturer: Capturer,
    epoch: Epoch,
}

impl FullCopy {
    pub fn new() -> Self {
        Self {
            capturer: Capturer::new(&Options {
                tracking: Tracking::Off,
                mode: CaptureMode::CopyAside,
                memory_bytes: 0,
            }),
            epoch: Epoch(0),
        }
    }

    pub fn take(&mut self, slot: &Slot) -> Result<Image, CaptureError> {
        self.epoch.0 += 1;
        let image = Arc::new(Mutex::new(Image::new()));
        let into = image.clone();
        let sink = move |saved| match saved {
            Saved::Block { block, .. } => {
                let pages = block.pages().iter().copied();
                let bytes = block.bytes().chunks_exact(PAGE_BYTES).map(<[u8]>::to_vec);
                into.lock().unwrap().extend(pages.zip(bytes));
            }
            Saved::Failed(reason) => panic!("{reason}"),
            Saved::All(_) => {}
        };
        let slots = std::slice::from_ref(slot);
        self.capturer
            .cut(self.epoch, slots, &(Arc::new(sink) as _))?;
        let mut image = image.lock().unwrap();
        Ok(std::mem::take(&mut image))
    }
}

/// Captures a slot and writes the image to a file: number of pages, page numbers, bytes.
pub fn store(slot: &Slot, file: &Path) {
    let image = FullCopy::new().take(slot).unwrap();
    let mut bytes = (image.len() as u64).to_le_bytes().to_vec();
    bytes.extend(image.keys().flat_map(|page| page.to_le_bytes()));
    bytes.extend(image.values().flatten());
    fs::write(file, bytes).unwrap();
}

/// An image that [`store`] wrote: page numbers with their bytes.
pub fn load(file: &Path) -> Vec<(u64, Vec<u8>)> {
    let bytes = fs::read(file).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let count = number(0) as usize;
    let (_, pages) = bytes.split_at(8 + 8 * count);
    (0..count)
        .map(|index| {
            (
                number(8 + 8 * index),
                pages[index * PAGE_BYTES..][..PAGE_BYTES].to_vec(),
            )
        })
        .collect()
}

/// Restores a slot from a file that [`store`] wrote.
pub fn restore(layout: SlotLayout, rank: Rank, file: &Path) -> Slot {
    let slot = RestoringSlot::create(layout, rank).unwrap();
    for (page, bytes) in load(file) {
        slot.place(page, &bytes).unwrap();
    }
    slot.finish(|_| ()).unwrap()
}

/// A directory for the files of one test, removed at its end.
pub struct Directory(std::path::PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ckpt-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
