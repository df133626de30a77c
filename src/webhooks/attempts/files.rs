//! The files: lines of JSON, newest file last.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use memchr::memmem;

use super::{Attempt, Config, Page, Position, Query, Remove};

/// Bytes that one search looks at.
const LOOK_MAX: u64 = 64 << 20;
/// Endpoints that a file's summary names; with more it is looked into whatever is wanted.
const NAMES_MAX: usize = 256;

/// One file, or the same in memory.
#[derive(Debug)]
struct Segment {
    bytes: u64,
    /// Contents, where there is no directory.
    memory: Vec<u8>,
    /// When its newest line was written.
    newest: Timestamp,
    /// Endpoints in it; None where not known, or too many.
    webhooks: Option<BTreeSet<String>>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Files {
    config: Config,
    segments: BTreeMap<u64, Segment>,
    /// The file that is written.
    active: Option<File>,
    bytes: u64,
    /// The last write failed: said once.
    troubled: bool,
}

impl Files {
    pub(super) fn open(config: Config) -> io::Result<Self> {
        let mut segments = BTreeMap::new();
        if let Some(directory) = &config.directory {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(number) = name.to_str().and_then(number_of) else {
                    if name.to_str().is_some_and(|name| name.ends_with(".tmp")) {
                        fs::remove_file(entry.path())?;
                    }
                    continue;
                };
                let about = entry.metadata()?;
                let newest = about.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
                let newest = newest.unwrap_or(Timestamp::UNIX_EPOCH);
                segments.insert(
                    number,
                    Segment { bytes: about.len(), memory: Vec::new(), newest, webhooks: None },
                );
            }
        }
        let bytes = segments.values().map(|segment| segment.bytes).sum();
        // A line that a crash cut short stays at the end of its file: the next one begins another.
        Ok(Self { config, segments, active: None, bytes, troubled: false })
    }

    fn path(&self, number: u64) -> Option<PathBuf> {
        self.config.directory.as_ref().map(|directory| path_of(directory, number))
    }

    /// Writes attempts, then removes what is too old or too much.
    pub(super) fn write(&mut self, batch: &VecDeque<Attempt>, now: Timestamp) {
        if batch.is_empty() {
            return;
        }
        let mut lines = Vec::with_capacity(batch.len() * 384);
        for attempt in batch {
            // An attempt is plain data.
            if serde_json::to_writer(&mut lines, attempt).is_ok() {
                lines.push(b'\n');
            }
        }
        match self.put(&lines, batch, now) {
            Ok(()) => self.troubled = false,
            Err(error) if !std::mem::replace(&mut self.troubled, true) => {
                tracing::warn!(%error, "attempts of webhooks can't be written down");
            }
            Err(_) => {}
        }
        self.retire(now);
    }

    fn put(&mut self, lines: &[u8], batch: &VecDeque<Attempt>, now: Timestamp) -> io::Result<()> {
        let newest = self.segments.last_key_value().map(|(number, segment)| (*number, segment.bytes));
        let is_memory = self.config.directory.is_none();
        let fits = |bytes: u64| bytes + lines.len() as u64 <= self.config.segment_bytes;
        let number = match newest {
            Some((number, bytes)) if fits(bytes) && (is_memory || self.active.is_some()) => number,
            newest => {
                let number = newest.map_or(1, |(number, _)| number + 1);
                if let Some(path) = self.path(number) {
                    let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
                    self.active = Some(file);
                }
                let webhooks = Some(BTreeSet::new());
                self.segments.insert(number, Segment { bytes: 0, memory: Vec::new(), newest: now, webhooks });
                number
            }
        };
        let Some(segment) = self.segments.get_mut(&number) else { return Ok(()) };
        match &mut self.active {
            Some(file) => {
                if let Err(error) = file.write_all(lines) {
                    // What is there of it is no line; another file begins.
                    self.active = None;
                    segment.bytes = fs::metadata(path_of(
                        self.config.directory.as_deref().unwrap_or(Path::new("")),
                        number,
                    ))
                    .map_or(segment.bytes, |about| about.len());
                    return Err(error);
                }
            }
            None => segment.memory.extend_from_slice(lines),
        }
        segment.bytes += lines.len() as u64;
        self.bytes += lines.len() as u64;
        segment.newest = now;
        if let Some(webhooks) = &mut segment.webhooks {
            for attempt in batch {
                if !webhooks.contains(&attempt.webhook) {
                    webhooks.insert(attempt.webhook.clone());
                }
            }
            if webhooks.len() > NAMES_MAX {
                segment.webhooks = None;
            }
        }
        Ok(())
    }

    fn retire(&mut self, now: Timestamp) {
        let kept = SignedDuration::try_from(self.config.retention).unwrap_or(SignedDuration::MAX);
        while self.segments.len() > 1
            && let Some((number, oldest)) = self.segments.first_key_value()
        {
            if self.bytes <= self.config.retention_bytes && now.duration_since(oldest.newest) <= kept {
                break;
            }
            let (number, bytes) = (*number, oldest.bytes);
            if let Some(path) = self.path(number)
                && let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "old attempts of webhooks can't be removed; it is tried again");
                break;
            }
            self.bytes -= bytes.min(self.bytes);
            self.segments.remove(&number);
        }
    }

    fn contents(&self, number: u64) -> io::Result<Vec<u8>> {
        match self.path(number) {
            Some(path) => fs::read(path),
            None => Ok(self.segments.get(&number).map(|segment| segment.memory.clone()).unwrap_or_default()),
        }
    }

    pub(super) fn find(&mut self, query: &Query) -> io::Result<Page> {
        let mut page = Page::default();
        let mut looked = 0;
        let first = query.before.map_or(u64::MAX, |before| before.segment);
        let numbers: Vec<u64> = self.segments.range(..=first).rev().map(|(number, _)| *number).collect();
        for number in numbers {
            let Some(segment) = self.segments.get(&number) else { continue };
            let named = segment.webhooks.as_ref().zip(query.webhook.as_ref());
            if named.is_some_and(|(there, wanted)| !there.contains(wanted)) {
                continue;
            }
            if looked >= LOOK_MAX {
                page.next = Some(Position { segment: number + 1, offset: 0 });
                return Ok(page);
            }
            looked += segment.bytes;
            let contents = self.contents(number)?;
            let end = match query.before {
                Some(before) if before.segment == number => before.offset,
                _ => u64::MAX,
            };
            for (offset, line) in lines(&contents, end).rev() {
                if !may_fit(line, query) {
                    continue;
                }
                let Some(attempt) =
                    serde_json::from_slice::<Attempt>(line).ok().filter(|one| fits(one, query))
                else {
                    continue;
                };
                let position = Position { segment: number, offset };
                if page.attempts.len() >= query.limit {
                    page.next = page.attempts.last().map(|(position, _)| *position);
                    return Ok(page);
                }
                page.attempts.push((position, attempt));
            }
        }
        Ok(page)
    }

    /// Writes every file anew that holds lines which go.
    pub(super) fn remove(&mut self, which: &Remove) -> io::Result<u64> {
        let mut removed = 0;
        // What is written from now on goes into another file, so that this one can be replaced.
        self.active = None;
        let text = memmem::Finder::new(which.text());
        for number in self.segments.keys().copied().collect::<Vec<_>>() {
            let contents = self.contents(number)?;
            if text.find(&contents).is_none() {
                continue;
            }
            let mut kept = Vec::with_capacity(contents.len());
            let mut gone = 0;
            for (_, line) in lines(&contents, u64::MAX) {
                let goes = text.find(line).is_some()
                    // A line that can't be read but holds the text goes too.
                    && serde_json::from_slice::<Attempt>(line).map_or(true, |attempt| which.takes(&attempt));
                if goes {
                    gone += 1;
                } else {
                    kept.extend_from_slice(line);
                    kept.push(b'\n');
                }
            }
            self.replace(number, &kept)?;
            if let Some(segment) = self.segments.get_mut(&number) {
                self.bytes = self.bytes - segment.bytes.min(self.bytes) + kept.len() as u64;
                segment.bytes = kept.len() as u64;
                if self.config.directory.is_none() {
                    segment.memory = kept;
                }
            }
            removed += gone;
        }
        Ok(removed)
    }

    fn replace(&self, number: u64, contents: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(number) else { return Ok(()) };
        let temporary = path.with_extension("tmp");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:012}.jsonl"))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".jsonl")?.parse().ok()
}

/// Whole lines that begin before `end`, with where they begin.
fn lines(contents: &[u8], end: u64) -> std::vec::IntoIter<(u64, &[u8])> {
    let mut found = Vec::new();
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', contents) {
        if start as u64 >= end {
            break;
        }
        if let Some(line) = contents.get(start..newline) {
            found.push((start as u64, line));
        }
        start = newline + 1;
    }
    found.into_iter()
}

/// Whether a line can hold what is looked for, without reading it.
fn may_fit(line: &[u8], query: &Query) -> bool {
    let holds = |text: &Option<String>| {
        text.as_ref().is_none_or(|text| memmem::find(line, text.as_bytes()).is_some())
    };
    holds(&query.webhook) && holds(&query.event_id)
}

fn fits(attempt: &Attempt, query: &Query) -> bool {
    query.webhook.as_ref().is_none_or(|webhook| attempt.webhook == *webhook)
        && query.seq.is_none_or(|seq| attempt.seq == seq)
        && query.outcome.is_none_or(|outcome| attempt.outcome == outcome)
        && query.event_id.as_ref().is_none_or(|id| attempt.event_id == *id || attempt.member_ids.contains(id))
}
