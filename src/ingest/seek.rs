//! Finding a depth in a sorted list, and reading down to it or up from it.
//!
//! Two ways lead to the same rows. *Down* starts at the newest row and keeps what it reads until the depth is
//! reached, so that rows can be handed on oldest first; it costs the fewest requests and is bounded by memory. *Up*
//! first looks for the depth by bisection and then reads towards the newest row, handing rows on as they come: for
//! backlogs of any size, and a head that grows meanwhile is simply read at the end.

use jiff::Timestamp;

use super::{
    page::{ListPage, Order, PAGE_ROWS, PageSource, ROWS_MAX, Slot},
    walk::{OVERLAP, Toward, WalkError, Walker},
};

/// Looks that one search may take; bisection of a list of 10^12 rows takes 80.
const LOOKS_MAX: u32 = 96;

/// Pages that may lie between where a search landed and the depth.
const BESIDE_PAGES_MAX: u64 = 64;

/// What reading down gave.
#[derive(Debug)]
pub enum Down<R> {
    /// All rows from the newest to the depth or the end of the list, oldest first.
    Reached(Vec<Slot<R>>),
    /// More rows than may be kept: those read, oldest first; below them the list goes on.
    TooLong(Vec<Slot<R>>),
}

/// Whether rows in walk order, going down, have passed a depth: the last few all lie below it. One alone may be a
/// late row of a list by arrival.
pub fn passed<R>(rows: &[Slot<R>], depth: Timestamp) -> bool {
    let mut timed = rows.iter().rev().filter_map(|slot| slot.time).take(OVERLAP as usize).peekable();
    timed.peek().is_some() && timed.all(|time| time < depth)
}

/// Reads from the newest row down until `deep` says of the rows just read, newest first, that it is enough.
/// `head` is a page at or near the newest rows.
///
/// # Errors
/// [`WalkError`].
pub async fn down<S: PageSource>(
    source: &S,
    order: Order,
    head: ListPage<S::Row>,
    rows_max: usize,
    mut deep: impl FnMut(&[Slot<S::Row>]) -> bool + Send,
) -> Result<Down<S::Row>, WalkError<S::Error>>
where
    S::Row: Clone,
{
    let newer = match order {
        Order::OldestFirst => Some(beside(source, Toward::End, head.clone(), |_| false).await?),
        _ => None,
    };
    let ((mut walker, mut rows), newer) = match newer {
        Some((walker, newer)) => (walker.turned(head), newer),
        None => (Walker::start(source, Toward::End, head), Vec::new()),
    };
    let mut reached = deep(&rows);
    while !reached && rows.len() <= rows_max {
        let Some(more) = walker.next().await? else {
            reached = true;
            break;
        };
        reached = deep(&more);
        rows.extend(more);
    }
    rows.reverse();
    rows.extend(newer);
    sort_ascending(&mut rows);
    Ok(if reached { Down::Reached(rows) } else { Down::TooLong(rows) })
}

/// Rows beside a page, walking away from it, until `enough` says so of the rows just read or the list ends.
async fn beside<S: PageSource>(
    source: &S,
    toward: Toward,
    page: ListPage<S::Row>,
    mut enough: impl FnMut(&[Slot<S::Row>]) -> bool + Send,
) -> Result<(Walker<'_, S>, Vec<Slot<S::Row>>), WalkError<S::Error>> {
    let (mut walker, first) = Walker::start(source, toward, page);
    let mut reached = enough(&first);
    let mut rows = Vec::new();
    while !reached {
        if walker.pages > BESIDE_PAGES_MAX {
            return Err(WalkError::Lost);
        }
        let Some(more) = walker.next().await? else { break };
        reached = enough(&more);
        rows.extend(more);
    }
    Ok((walker, rows))
}

/// Sorts rows that stand in list order, oldest first: by time; rows of one time and rows without keep their places.
pub fn sort_ascending<R>(rows: &mut Vec<Slot<R>>) {
    let mut before = Timestamp::MIN;
    let mut keyed: Vec<_> = rows
        .drain(..)
        .map(|slot| {
            before = slot.time.unwrap_or(before);
            (before, slot)
        })
        .collect();
    keyed.sort_by_key(|(time, _)| *time);
    rows.extend(keyed.into_iter().map(|(_, slot)| slot));
}

/// Finds a depth (None: the oldest row), and starts reading up from there: gives the rows at the depth, oldest first,
/// and the walk that goes on from them. The search only has to come near: from where it lands the list is read down
/// to the depth with overlaps as everywhere.
///
/// # Errors
/// [`WalkError::Lost`] where the list never settles enough to be searched.
pub async fn up<S: PageSource>(
    source: &S,
    order: Order,
    depth: Option<Timestamp>,
) -> Result<(Walker<'_, S>, Vec<Slot<S::Row>>), WalkError<S::Error>>
where
    S::Row: Clone,
{
    let oldest_first = order == Order::OldestFirst;
    let back = if oldest_first { Toward::Start } else { Toward::End };
    let page = match depth {
        None if oldest_first => source.fetch(0).await.map_err(WalkError::Source)?,
        _ => near(source, oldest_first, depth).await?,
    };
    let deep = |rows: &[Slot<S::Row>]| depth.is_some_and(|depth| passed(rows, depth));
    let (walker, mut rows) = beside(source, back, page.clone(), deep).await?;
    rows.reverse();
    let (walker, first) = walker.turned(page);
    rows.extend(first);
    Ok((walker, rows))
}

/// A page near a depth of a list sorted by time: gallops away from the start, then halves.
async fn near<S: PageSource>(
    source: &S,
    oldest_first: bool,
    depth: Option<Timestamp>,
) -> Result<ListPage<S::Row>, WalkError<S::Error>> {
    let mut best = source.fetch(0).await.map_err(WalkError::Source)?;
    let mut stride = PAGE_ROWS - OVERLAP as u64;
    let mut past: Option<u64> = None;
    let mut look = match (depth, best.total) {
        (None, Some(total)) => total.saturating_sub(PAGE_ROWS / 2),
        _ => stride,
    };
    if best.slots.is_empty() || (!oldest_first && depth.is_some_and(|depth| passed(&best.slots, depth))) {
        return Ok(best);
    }
    for _ in 0..LOOKS_MAX {
        if look > ROWS_MAX {
            break;
        }
        if look <= best.offset || past.is_some_and(|past| past <= best.offset + PAGE_ROWS / 2) {
            return Ok(best);
        }
        let page = source.fetch(look).await.map_err(WalkError::Source)?;
        let below = |time: Timestamp| depth.is_some_and(|depth| time < depth);
        // In walk direction: the first timed row tells on which side of the depth the page begins.
        let begins_past = match page.slots.iter().find_map(|slot| slot.time) {
            _ if page.slots.is_empty() => true,
            Some(time) => depth.is_some() && below(time) != oldest_first,
            None => false,
        };
        if begins_past {
            past = Some(look);
        } else {
            best = page;
        }
        look = match past {
            Some(past) => best.offset + past.saturating_sub(best.offset) / 2,
            None => {
                stride *= 2;
                best.offset + stride
            }
        };
    }
    Err(WalkError::Lost)
}
