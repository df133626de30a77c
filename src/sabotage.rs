//! Deliberate bugs, to show that the tests can fail.
//!
//! Each is the kind of mistake that a promise of the gateway excludes, planted where it would be made, by a condition
//! on [`on`]. Outside of tests that is a constant `false`, and the compiler leaves no trace of the bug. In a test
//! build the environment variable `SIMCAST_SABOTAGE` names the one that is on; `tests` runs for each the test that
//! must catch it, and `docs/GUARANTEES.md` lists them.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident = $name:literal,)+) => {
        /// A mistake that can be switched on in a test build.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        #[cfg(test)]
        impl Bug {
            /// Every bug.
            const ALL: &[Self] = &[$(Self::$bug,)+];

            /// As `SIMCAST_SABOTAGE` and the documents name it.
            fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)+
                }
            }
        }
    };
}

bugs! {
    /// An append is shown and answered without a sync of the file.
    SkipSync = "skip_sync",
    /// An append is shown before it is written, and synced before.
    ShowBeforeWrite = "show_before_write",
    /// The floor moves before the rows above it are durable.
    FloorBeforeSettle = "floor_before_settle",
    /// A sweep moves the floor to when it ended.
    FloorAtEnd = "floor_at_end",
    /// Pages of a walk are joined by their offsets, not by a row that both show.
    NoOverlap = "no_overlap",
    /// A sweep does not look at rows older than one that is known already.
    StopAtKnown = "stop_at_known",
    /// At the edge of a page, rows of the time of the last one count as read.
    LoseTies = "lose_ties",
    /// A walk ends where upstream's total says that the list ends.
    TrustTotal = "trust_total",
    /// A page with fewer rows than asked for is the last.
    ShortPageEnds = "short_page_ends",
    /// A sweep reads down to the floor and no further.
    SweepWithoutLateness = "sweep_without_lateness",
    /// A total that rises without rows is ignored.
    IgnoreAlarm = "ignore_alarm",
    /// Another event under a known event_id is a repeat.
    DedupeByEventId = "dedupe_by_event_id",
    /// Time decides what is backfill, whatever was visible at the start.
    BackfillEdge = "backfill_edge",
    /// The tail asks for rows up to today.
    TailNamesEnd = "tail_names_end",
    /// An event that can't be stored takes its batch along.
    BadEventTakesBatch = "bad_event_takes_batch",
    /// What upstream forgot is not announced.
    ForgetGap = "forget_gap",
    /// A slot of the budget is free as soon as its answer is there.
    FreeAtAnswer = "free_at_answer",
    /// A request is in the journal only when its answer is there.
    JournalAfterAnswer = "journal_after_answer",
    /// A refusal for the rate slows nothing down.
    IgnoreRefusal = "ignore_refusal",
    /// A body that ends early is taken as it is.
    CutBodyIsWhole = "cut_body_is_whole",
    /// A record is delivered whatever its checksum.
    SkipChecksum = "skip_checksum",
    /// A log that was not closed loses its last whole record.
    CutOneTooMany = "cut_one_too_many",
    /// The stamp of an event follows a clock that steps back.
    StampBackwards = "stamp_backwards",
    /// A reader joins the live ring one event too early.
    SpliceOffByOne = "splice_off_by_one",
    /// A reader that retention has overtaken goes on without being told.
    SilentExpiry = "silent_expiry",
    /// A history read asks by its own filter only.
    HistoryIgnoresScope = "history_ignores_scope",
    /// Pages on their way to slow clients are not counted.
    UnboundedPages = "unbounded_pages",
    /// Of an erased event nothing stays.
    ForgetErased = "forget_erased",
    /// An erasure leaves the old index beside the new segment until it has written another.
    KeepOldSidecar = "keep_old_sidecar",
    /// A list of sessions is whole once as many rows were read as upstream says it has.
    CountRows = "count_rows",
    /// The roll-up of a day is written over the one before it.
    RollUpInPlace = "roll_up_in_place",
    /// The copy of a webhook's position leaves out what is on its way.
    ForgetOnItsWay = "forget_on_its_way",
    /// A gateway that was taken for dead goes on with the webhooks that it had.
    OutliveTerm = "outlive_term",
    /// A name with one address that is allowed is allowed with all of them.
    CheckOneAddress = "check_one_address",
}

/// Whether a bug is on: never, outside of tests.
#[cfg(not(test))]
pub(crate) const fn on(_: Bug) -> bool {
    false
}

/// Whether a bug is on.
#[cfg(test)]
pub(crate) fn on(bug: Bug) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var(tests::VARIABLE).ok());
    CHOSEN.as_deref() == Some(bug.name())
}

#[cfg(test)]
mod tests;
