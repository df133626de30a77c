//! Reading a list page by page although it changes between any two requests.
//!
//! Each page must contain a row that this walk has read already; what follows that row in the same answer follows it
//! in the list. So, by induction, every row that was in the list when the walk began and still is when the walk comes
//! to its place is read, whatever is inserted or deleted meanwhile: offsets are only a guess where to look, the
//! overlap is the proof. A page without such a row is not used; the walk looks nearer or further until it finds one,
//! and gives up ([`WalkError::Lost`]) after [`TRIES_MAX`] pages rather than go on with a hole.
//!
//! The guess learns: rows inserted at the head push everything down, so the next offset is moved by what the last
//! page was found to have shifted. That is what lets a walk outrun a head that grows by hundreds of rows a second.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use super::page::{ListPage, PAGE_ROWS, PageSource, Slot};
use crate::sabotage::{self, Bug};

/// Rows that two neighbouring pages share when nothing moved.
pub const OVERLAP: i64 = 4;

/// Pages read in search of one overlap before the walk is given up.
pub const TRIES_MAX: u32 = 16;

/// A page with fewer rows is not full, whatever page size upstream has made its own.
const FULL_PAGE_ROWS_MIN: u64 = 20;

/// Furthest that one look goes from the last, rows.
const STEP_MAX: i64 = 6_400;

/// Weight of the newest move in what is expected of the next.
const MOVES_WEIGHT: f64 = 0.1;
/// Mean deviations that a move may be larger than the mean and still leave an overlap.
const DEVIATIONS: f64 = 2.0;

/// Rows remembered to find an overlap by.
const REMEMBERED_MAX: usize = 2_000;

/// Which way offsets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Toward {
    /// From the first row to the last.
    End,
    /// From the last row to the first.
    Start,
}

impl Toward {
    /// Position on the walk of a place in the list: grows in the direction of walking.
    fn position(self, place: u64) -> i64 {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        match self {
            Self::End => place,
            Self::Start => -place,
        }
    }
}

/// Why a walk ended before its end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError<E> {
    /// A page could not be had.
    #[error("a page could not be read")]
    Source(E),
    /// No page overlaps what was read: the list changes faster than it can be followed, or paging is not honoured.
    #[error("the list changed so fast that no page joined the one before")]
    Lost,
}

/// A walk in progress.
#[derive(Debug)]
pub struct Walker<'s, S> {
    source: &'s S,
    toward: Toward,
    /// Rows per answer, as seen.
    page_rows: u64,
    /// Most rows that one answer held, or the least that a full one is supposed to.
    rows_seen_max: u64,
    /// Rows that the next page is made to share, fewer than half a page.
    overlap: i64,
    /// Where the furthest row read was, less `shift`, as all positions that are kept.
    edge: i64,
    /// The same of the furthest row that can be recognised.
    anchor: i64,
    /// By how much the list has moved since the walk began.
    shift: i64,
    /// Keys of rows read behind `anchor` that can't be recognised.
    trailing: Vec<u64>,
    /// The last rows read that have one time.
    group: Group,
    /// By how much it is expected to move until the next request.
    drift: i64,
    /// What it moved from page to page, of late: mean and mean deviation.
    moves: Option<(f64, f64)>,
    seen: Seen,
    ordinals: HashMap<u64, u32>,
    /// Times of the first and of the last row read, which tell the way that times run.
    times: Option<(Timestamp, Timestamp)>,
    asked_at: Timestamp,
    total: Option<u64>,
    ended: bool,
    /// `pages` when a page last joined.
    pages_joined: u64,
    /// Pages read, used or not.
    pub pages: u64,
}

/// Rows read lately, with the position at which each was.
#[derive(Debug, Default)]
struct Seen {
    at: HashMap<u64, i64>,
    order: VecDeque<u64>,
}

impl Seen {
    fn insert(&mut self, key: u64, position: i64) {
        if self.at.insert(key, position).is_none() {
            self.order.push_back(key);
            if self.order.len() > REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.at.remove(&oldest);
            }
        }
    }
}

/// Rows of one time that stand together.
#[derive(Debug, Default)]
struct Group {
    time: Option<Timestamp>,
    /// Where the first of them was, as positions are kept.
    from: i64,
    /// Whether one of them can't be recognised.
    anonymous: bool,
}

impl Group {
    fn add<R>(&mut self, slot: &Slot<R>, position: i64) {
        if self.time != slot.time || position < self.from {
            *self = Self { time: slot.time, from: position, anonymous: false };
        }
        self.anonymous |= !slot.unique;
    }
}

/// What looking at a page in search of an overlap gave.
enum Fit<R> {
    /// It joins; these rows are new, in walk order.
    Joins(Vec<Slot<R>>),
    /// It holds only rows already read; look again at the edge, which is now known better.
    Behind {
        /// By how much the list was found to have moved.
        moved: i64,
    },
    /// Nothing at all: beyond the end of the list, which may have shrunk.
    Empty,
    /// No overlap; its rows lie before the edge on the walk.
    TooNear,
    /// No overlap; its rows lie beyond the edge, or nobody can tell.
    TooFar,
}

impl<'s, S: PageSource> Walker<'s, S> {
    /// A walk that goes on from a page already read. Gives the page's rows in walk order.
    pub fn start(source: &'s S, toward: Toward, page: ListPage<S::Row>) -> (Self, Vec<Slot<S::Row>>) {
        let start = match toward {
            Toward::End => toward.position(page.offset) - 1,
            Toward::Start => toward.position(page.end()),
        };
        let mut walker = Self {
            source,
            toward,
            page_rows: PAGE_ROWS,
            rows_seen_max: FULL_PAGE_ROWS_MIN,
            overlap: OVERLAP,
            times: None,
            edge: start,
            anchor: start,
            shift: 0,
            trailing: Vec::new(),
            group: Group::default(),
            drift: 0,
            moves: None,
            seen: Seen::default(),
            ordinals: HashMap::new(),
            asked_at: page.asked_at,
            total: page.total,
            ended: false,
            pages_joined: 0,
            pages: 0,
        };
        walker.learn_page_size(&page);
        walker.ended = walker.shows_end(&page) || page.slots.is_empty();
        let rows = walker.accept(walker.placed(page), None);
        (walker, rows)
    }

    /// Lets a walk that reached the end look for rows that came since.
    pub fn reopen(&mut self) {
        self.ended = false;
        (self.drift, self.moves) = (0, None);
        if self.ordinals.len() > REMEMBERED_MAX {
            self.ordinals.clear();
        }
    }

    /// When the last page was asked.
    pub fn asked_at(&self) -> Timestamp {
        self.asked_at
    }

    /// Place in the list of the furthest row read, by what the last page showed.
    pub fn place(&self) -> u64 {
        let position = self.edge + self.shift;
        match self.toward {
            Toward::End => position.max(0) as u64,
            Toward::Start => (-position).max(0) as u64,
        }
    }

    /// `total` of the last page.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// A walk the other way, from the page that this one started from, with what this one learnt of the list.
    pub fn turned(self, page: ListPage<S::Row>) -> (Self, Vec<Slot<S::Row>>) {
        let toward = match self.toward {
            Toward::End => Toward::Start,
            Toward::Start => Toward::End,
        };
        let (mut walker, rows) = Self::start(self.source, toward, page);
        for key in self.seen.order {
            if let Some(at) = self.seen.at.get(&key) {
                walker.seen.insert(key, -at);
            }
        }
        walker.shift = -self.shift;
        (walker.page_rows, walker.overlap) = (self.page_rows, self.overlap);
        walker.rows_seen_max = self.rows_seen_max.max(walker.rows_seen_max);
        (walker, rows)
    }

    /// Rows after those read so far, in walk order; None once the end has been reached. Never empty.
    ///
    /// # Errors
    /// [`WalkError`]; the walk stays where it is and may be asked again.
    pub async fn next(&mut self) -> Result<Option<Vec<Slot<S::Row>>>, WalkError<S::Error>> {
        let mut nudge = 0_i64;
        // Against a list that moves, a page that missed is most likely off by a few rows.
        let mut step = match self.moves {
            Some(_) => (2 * self.drift.abs() + 3 * OVERLAP).min(PAGE_ROWS as i64 / 2),
            None => PAGE_ROWS as i64 / 2,
        };
        let mut end_suspected = false;
        // Not where answers are so short that they end before the edge.
        let mut wide = true;
        for _ in 0..TRIES_MAX {
            if self.ended {
                return Ok(None);
            }
            let target = if end_suspected || sabotage::on(Bug::NoOverlap) {
                self.edge + self.shift + 1
            } else {
                self.rejoin(wide) + self.shift + self.drift + nudge
            };
            let page = self.fetch(target).await?;
            let shows_end = self.shows_end(&page);
            let nothing_left = page.offset == 0;
            let short = (page.slots.len() as u64) < self.rows_seen_max;
            let counted_out = page.total.is_none_or(|total| page.end() >= total);
            match self.fit(page) {
                Fit::Joins(rows) => {
                    self.ended = shows_end;
                    return Ok(Some(rows));
                }
                Fit::Behind { .. } if shows_end => self.ended = true,
                Fit::Behind { .. } if end_suspected && short && counted_out => self.ended = true,
                // Nothing after the last row read: the end, or an answer cut short. The next look tells.
                Fit::Behind { moved } => {
                    wide = false;
                    end_suspected = (moved == 0 || short) && self.toward == Toward::End;
                    nudge = 0;
                }
                Fit::Empty if end_suspected || nothing_left => self.ended = true,
                _ if end_suspected => end_suspected = false,
                Fit::TooNear => {
                    nudge += step;
                    step = (step * 2).min(STEP_MAX);
                }
                // Walking towards the start, what is empty lies past the end: looked back too far.
                Fit::Empty if self.toward == Toward::Start && nudge < 0 => {
                    step = (step / 4).max(1);
                    nudge += step;
                }
                // The first suspect is the guess itself.
                Fit::Empty | Fit::TooFar if nudge == 0 && self.drift > 0 => self.drift = 0,
                Fit::Empty | Fit::TooFar => {
                    nudge -= step;
                    step = (step * 2).min(STEP_MAX);
                }
            }
        }
        Err(WalkError::Lost)
    }

    /// Where the next page is to begin so that it shares rows with the last. Rows that can't be recognised are told
    /// apart by counting those of their time ([`EqualRows`]), so that page should show where that time begins, as far
    /// as two thirds of a page are left for what is new.
    fn rejoin(&self, wide: bool) -> i64 {
        let near = self.anchor.min(self.edge - self.overlap + 1);
        let furthest = self.edge - PAGE_ROWS as i64 / 3 + 1;
        if wide && self.group.anonymous { near.min((self.group.from - 1).max(furthest)) } else { near }
    }

    /// The page that begins at a walk position.
    async fn fetch(&mut self, target: i64) -> Result<ListPage<S::Row>, WalkError<S::Error>> {
        let offset = match self.toward {
            Toward::End => target.max(0) as u64,
            Toward::Start => ((-target).max(0) as u64 + 1).saturating_sub(self.page_rows),
        };
        self.pages += 1;
        let page = self.source.fetch(offset).await.map_err(WalkError::Source)?;
        self.learn_page_size(&page);
        Ok(page)
    }

    /// Upstream may cut pages shorter than asked; going backwards that size decides where pages must begin.
    fn learn_page_size(&mut self, page: &ListPage<S::Row>) {
        (self.asked_at, self.total) = (page.asked_at, page.total);
        let rows = (page.slots.len() as u64).min(PAGE_ROWS);
        self.rows_seen_max = self.rows_seen_max.max(rows);
        if rows > 0 && page.total.is_some_and(|total| page.end() < total) {
            self.page_rows = rows;
            self.overlap = OVERLAP.min(rows as i64 / 2).max(1);
        }
    }

    fn shows_end(&self, page: &ListPage<S::Row>) -> bool {
        match self.toward {
            Toward::Start => page.offset == 0 && !page.slots.is_empty(),
            Toward::End if sabotage::on(Bug::TrustTotal) => {
                page.total.is_some_and(|total| page.end() >= total)
            }
            Toward::End if sabotage::on(Bug::ShortPageEnds) => (page.slots.len() as u64) < PAGE_ROWS,
            Toward::End => {
                let full = page.slots.len() as u64 >= self.page_rows;
                !full && !page.slots.is_empty() && page.total.is_some_and(|total| page.end() >= total)
            }
        }
    }

    /// Rows in walk order, each with its position.
    fn placed(&self, page: ListPage<S::Row>) -> Vec<(i64, Slot<S::Row>)> {
        let toward = self.toward;
        let place = |(i, slot)| (toward.position(page.offset + i as u64), slot);
        let mut rows: Vec<_> = page.slots.into_iter().enumerate().map(place).collect();
        if toward == Toward::Start {
            rows.reverse();
        }
        rows
    }

    fn fit(&mut self, page: ListPage<S::Row>) -> Fit<S::Row> {
        let rows = self.placed(page);
        if rows.is_empty() {
            return Fit::Empty;
        }
        let join = rows.iter().rposition(|(_, slot)| slot.unique && self.seen.at.contains_key(&slot.key));
        if join.is_none() && sabotage::on(Bug::NoOverlap) {
            return Fit::Joins(self.accept(rows, None));
        }
        let Some(join) = join else {
            return self.misfit(&rows);
        };
        let (now, slot) = &rows[join];
        let expected = self.seen.at.get(&slot.key).map_or(*now, |at| at + self.shift);
        let moved = now - expected;
        self.shift += moved;
        let each = moved / i64::try_from(self.pages - self.pages_joined).unwrap_or(1).max(1);
        self.pages_joined = self.pages;
        self.drift = self.expect(each);
        let new = self.accept(rows, Some(join));
        if new.is_empty() { Fit::Behind { moved } } else { Fit::Joins(new) }
    }

    /// By how much the list will move until the next request, after it moved by `each`.
    fn expect(&mut self, each: i64) -> i64 {
        // Moving on with the walk (inserts above, walking down) costs only overlap.
        if each > 0 {
            self.moves = None;
            return each * 3 / 4;
        }
        // Moving against it (inserts above, walking up) loses the overlap, and a page with it: as much more is
        // expected as makes that rare. Part of what it usually varies by is in the overlap itself.
        let moved = each as f64;
        let (mean, deviation) = match self.moves {
            None => (moved, -moved / 8.0),
            Some((mean, deviation)) => {
                let off = moved - mean;
                (mean + off * MOVES_WEIGHT, deviation + (off.abs() - deviation) * MOVES_WEIGHT)
            }
        };
        self.moves = Some((mean, deviation));
        (mean - deviation * DEVIATIONS + OVERLAP as f64 / 3.0).min(0.0).round() as i64
    }

    /// Takes a page that joins at `join` (None: the first page): remembers its rows, moves the edge on if it reaches
    /// further, gives the rows not read before.
    fn accept(&mut self, rows: Vec<(i64, Slot<S::Row>)>, join: Option<usize>) -> Vec<Slot<S::Row>> {
        let (mut again, mut moved) = (self.trailing.clone(), false);
        let last = self.times.map(|(_, last)| last).filter(|_| sabotage::on(Bug::LoseTies));
        let mut equal = EqualRows::on(&rows);
        let mut new = Vec::with_capacity(rows.len());
        for (i, (position, mut slot)) in rows.into_iter().enumerate() {
            let nth = if slot.unique { None } else { equal.nth(&slot) };
            let behind = join.is_some_and(|join| i <= join);
            let position = position - self.shift;
            self.group.add(&slot, position);
            if !behind && let Some(time) = slot.time {
                self.times = Some(self.times.map_or((time, time), |(first, _)| (first, time)));
            }
            if slot.unique {
                let known = self.seen.at.contains_key(&slot.key);
                self.seen.insert(slot.key, position);
                if position > self.anchor {
                    (self.anchor, self.edge) = (position, self.edge.max(position));
                    self.trailing.clear();
                    moved = true;
                }
                if !known && (last.is_none() || slot.time != last) {
                    new.push(slot);
                }
            } else if !behind && position > self.anchor {
                self.edge = self.edge.max(position);
                // What was read behind the anchor last time stands there again.
                let again = again.iter().position(|key| *key == slot.key).map(|at| again.swap_remove(at));
                if again.is_none() || moved {
                    self.trailing.push(slot.key);
                }
                let count = self.ordinals.entry(slot.key).or_insert(0);
                if nth.map_or(again.is_none(), |nth| nth >= *count) {
                    slot.ordinal = *count;
                    *count += 1;
                    new.push(slot);
                }
            }
        }
        new
    }

    /// Where a page without overlap lies, by its times. They only say where to look next; ties and late rows can
    /// mislead that, never the proof.
    fn misfit(&self, rows: &[(i64, Slot<S::Row>)]) -> Fit<S::Row> {
        let times = || rows.iter().filter_map(|(_, slot)| slot.time);
        match (self.times, times().min(), times().max()) {
            (Some((first, last)), Some(low), Some(high)) => {
                if (last > first && high < last) || (last < first && low > last) {
                    Fit::TooNear
                } else {
                    Fit::TooFar
                }
            }
            _ => Fit::TooFar,
        }
    }
}

/// Counts rows of one page that are equal and can't be recognised.
///
/// Rows of one time may change places between two answers, so that one read before the anchor stands behind it later.
/// In a list sorted by time all rows of one time stand together: where a page shows where that time begins, it shows
/// all of them up to here, and the third of them is not new to a walk that has read three.
struct EqualRows {
    sorted: bool,
    first: Option<Timestamp>,
    counts: HashMap<u64, u32>,
}

impl EqualRows {
    fn on<R>(rows: &[(i64, Slot<R>)]) -> Self {
        let times: Vec<Timestamp> = rows.iter().filter_map(|(_, slot)| slot.time).collect();
        let sorted = times.is_sorted() || times.is_sorted_by(|one, next| one >= next);
        Self { sorted, first: times.first().copied(), counts: HashMap::new() }
    }

    /// How many rows equal to this one stand before it in the list; None where that can't be told.
    fn nth<R>(&mut self, slot: &Slot<R>) -> Option<u32> {
        let count = self.counts.entry(slot.key).or_insert(0);
        *count += 1;
        (self.sorted && slot.time.is_some() && slot.time != self.first).then_some(*count - 1)
    }
}

#[cfg(test)]
mod tests;
