//! Learning at start what the API document leaves open. At most ten requests; every answer is only a belief that
//! later pages may overturn.

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};

use super::{
    findings::Findings,
    page::{ListPage, PAGE_ROWS},
    upstream::{Item, Upstream, Window},
};
use crate::globalsim::{budget::Class, error::Error};

/// The UTC day of a time.
pub fn day_of(time: Timestamp) -> Date {
    time.to_zoned_datetime(TimeZone::UTC).date()
}

/// A day some days before or after.
pub fn day_plus(day: Date, days: i64) -> Date {
    day.checked_add(days.days()).unwrap_or(day)
}

/// Asks; `class` pays. `first` is the answer to a request for the first page of `window`.
///
/// # Errors
/// The first failure; what was found until then is kept.
pub async fn probe(
    upstream: &Upstream,
    class: Class,
    findings: &mut Findings,
    window: &Window,
    first: &ListPage<Item>,
) -> Result<(), Error> {
    findings.observe(first, findings.offset_refused);
    let mut all = None;
    if findings.order.is_none() || first.slots.is_empty() {
        let page = upstream.page(class, &Window::default(), 0).await?;
        findings.observe(&page, findings.offset_refused);
        all = Some(page);
    }
    let (window, page) = match &all {
        Some(page) => (Window::default(), page),
        None => (window.clone(), first),
    };
    offsets(upstream, class, findings, &window, page).await?;
    dates(upstream, class, findings, page).await?;
    findings.probed(page.asked_at);
    Ok(())
}

/// Whether `offset` works, and whether `total` says where the list ends.
async fn offsets(
    upstream: &Upstream,
    class: Class,
    findings: &mut Findings,
    window: &Window,
    page: &ListPage<Item>,
) -> Result<(), Error> {
    let rows = page.slots.len() as u64;
    if rows < 2 {
        return Ok(());
    }
    let second = upstream.page(class, window, rows / 2).await?;
    let same = second.slots.iter().zip(&page.slots).filter(|(a, b)| a.key == b.key).count() as u64;
    findings.offset_honoured = Some(same < rows / 2 || same < second.slots.len() as u64);
    if findings.offset_honoured == Some(false) {
        tracing::warn!("upstream ignores offset: the list is read in windows that fit one page");
    }
    let Some(total) = second.total else {
        findings.total_exact = Some(false);
        return Ok(());
    };
    // Rows may come in between the requests; a few more than counted is not inexact.
    let near = |counted: u64, found: u64| counted <= found && found - counted <= PAGE_ROWS / 2;
    if rows < PAGE_ROWS && page.total.is_some() && page.total == Some(rows) {
        findings.total_exact = Some(true);
    } else {
        let at = total.saturating_sub(PAGE_ROWS / 4);
        let last = upstream.page(class, window, at).await?;
        let counted = last.total.unwrap_or(total);
        let exact = !last.slots.is_empty()
            && near(total.min(counted), last.end())
            && (last.slots.len() as u64) < findings.page_rows.unwrap_or(PAGE_ROWS).max(PAGE_ROWS / 2);
        findings.total_exact = Some(exact);
    }
    Ok(())
}

/// Whether the days of `start_date` and `end_date` are included.
async fn dates(
    upstream: &Upstream,
    class: Class,
    findings: &mut Findings,
    page: &ListPage<Item>,
) -> Result<(), Error> {
    // A row in the middle of its day, so that the zone of upstream's days matters least.
    let noon_distance = |time: Timestamp| (time.to_zoned_datetime(TimeZone::UTC).hour() - 12).abs();
    let Some(time) = page.slots.iter().filter_map(|slot| slot.time).min_by_key(|time| noon_distance(*time))
    else {
        return Ok(());
    };
    let day = day_of(time);
    let shows = |page: &ListPage<Item>| page.slots.iter().any(|slot| slot.time.map(day_of) == Some(day));
    let mut window = Window { start: Some(day_plus(day, -1)), end: Some(day), ..Window::default() };
    // Newest first, the day itself heads its window; oldest first, it may lie beyond the first page.
    let ending = upstream.page(class, &window, 0).await?;
    let whole = (ending.slots.len() as u64) < PAGE_ROWS;
    findings.end_inclusive = (shows(&ending) || whole).then(|| shows(&ending));
    (window.start, window.end) = (Some(day), Some(day_plus(day, 1)));
    let starting = upstream.page(class, &window, 0).await?;
    let whole = (starting.slots.len() as u64) < PAGE_ROWS;
    findings.start_inclusive = (shows(&starting) || whole).then(|| shows(&starting));
    Ok(())
}
