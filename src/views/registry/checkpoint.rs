//! The registry on the disk: made from the log, so that it may be lost at any time, and must never be half of one.
//!
//! A file of lines: a head with the cursor up to which the log is in it, one SIM each, and the checksum of all before.
//! It is written beside the old one and takes its name when it is durable. What can't be read, or is of another
//! version, is as good as none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{entry::Entry, state::State};
use crate::event::{Cursor, Iccid};

/// Name of the file.
pub(super) const NAME: &str = "registry.jsonl";
const TEMPORARY: &str = "registry.jsonl.new";
/// Rises with every change of what the lines mean.
const VERSION: u32 = 1;
/// Of one line; one that is longer is damage.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    registry: u32,
    cursor: String,
    observed_us: Option<i64>,
    sims: usize,
}

#[derive(Serialize)]
struct Line<'a> {
    iccid: &'a Iccid,
    entry: &'a Entry,
}

#[derive(Deserialize)]
struct OwnedLine {
    iccid: Iccid,
    entry: Entry,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    crc32c: u32,
}

/// Writes lines and sums them up.
struct Summed<W> {
    inner: W,
    crc32c: u32,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes `state` durable, with `cursor` as its position. Blocks on the disk.
///
/// # Errors
/// What the disk refuses; the old checkpoint stays then.
pub(super) fn write(directory: &Path, state: &State, cursor: Cursor) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let temporary = directory.join(TEMPORARY);
    // Phone numbers are in it: for the gateway's own user only.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let mut out = Summed { inner: BufWriter::with_capacity(1 << 16, file), crc32c: 0 };
    // One that only the configuration names comes back with it.
    let sims = || state.sims.iter().filter(|(_, entry)| !entry.is_blank());
    let head = Head {
        registry: VERSION,
        cursor: cursor.to_string(),
        observed_us: state.observed_us,
        sims: sims().count(),
    };
    line(&mut out, &head)?;
    for (iccid, entry) in sims() {
        line(&mut out, &Line { iccid, entry })?;
    }
    let tail = Tail { crc32c: out.crc32c };
    line(&mut out, &tail)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(NAME))?;
    File::open(directory)?.sync_all()
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Reads what was written into `state`, which must be new, and gives its position. None where there is nothing.
///
/// # Errors
/// What the disk refuses, or [`io::ErrorKind::InvalidData`] where it is damaged or of another version; `state` must not
/// be used then.
pub(super) fn read(directory: &Path, state: &mut State) -> io::Result<Option<Cursor>> {
    let file = match File::open(directory.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut lines = Lines { inner: BufReader::with_capacity(1 << 16, file), crc32c: 0, held: Vec::new() };
    let head: Head = lines.next()?;
    if head.registry != VERSION {
        return Err(damaged("it is of another version"));
    }
    let cursor = Cursor::parse(&head.cursor).map_err(damaged)?;
    for _ in 0..head.sims {
        let line: OwnedLine = lines.next()?;
        state.restore(line.iccid, line.entry);
    }
    let crc32c = lines.crc32c;
    let tail: Tail = lines.next()?;
    if tail.crc32c != crc32c {
        return Err(damaged("its checksum is wrong"));
    }
    state.observed_us = head.observed_us;
    Ok(Some(cursor))
}

struct Lines<R> {
    inner: R,
    crc32c: u32,
    held: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<T> {
        self.held.clear();
        io::Read::take(&mut self.inner, LINE_BYTES_MAX).read_until(b'\n', &mut self.held)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &self.held);
        serde_json::from_slice(&self.held).map_err(damaged)
    }
}

fn damaged(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
