//! The scenarios, by the numbers of the list of ways to fail. A way that can be met in several forms has several.

use super::stage::{Act, Scenario};
use crate::globalsim::simulator::faults::{
    Content, Errors, Faults, Late, LimitOver, Lists, Order, Outage, OutageMode, Paging, RetryAfter, TieOrder,
    Total, Transport,
};

fn new(row: &'static str, what: &'static str, faults: Faults) -> Scenario {
    Scenario::new(row, what, faults)
}

fn order(order: Order) -> Faults {
    Faults { order, ..Faults::default() }
}

fn paging(paging: Paging) -> Faults {
    Faults { paging, ..Faults::default() }
}

fn lists(lists: Lists) -> Faults {
    Faults { lists, ..Faults::default() }
}

fn content(content: Content) -> Faults {
    Faults { content, ..Faults::default() }
}

fn errors(errors: Errors) -> Faults {
    Faults { errors, ..Faults::default() }
}

fn transport(transport: Transport) -> Faults {
    Faults { transport, ..Faults::default() }
}

fn outage(mode: OutageMode, seconds: u64) -> Faults {
    Faults { outage: Some(Outage { mode, for_ms: Some(seconds * 1_000) }), ..Faults::default() }
}

fn switch(faults: Faults) -> Act {
    Act::Switch(Box::new(faults))
}

/// Order of the list, and changes while it is read.
pub fn moving() -> Vec<Scenario> {
    let erased = Paging { erases: 1, erase_within: Some(300), erase_only_served: true, ..Paging::default() };
    let classic = Scenario {
        rate: 0.0,
        loop_recall: Some(0.5),
        ..new("0", "nothing; 20 events per poll of the loop, and none but these", Faults::default())
    };
    vec![
        classic.ends("ran"),
        new("0b", "nothing", Faults::default()).ends("ran"),
        new("1", "`paging.inserts` 3", paging(Paging { inserts: 3, ..Paging::default() })),
        new("2", "`paging.removes_oldest` 1", paging(Paging { removes_oldest: 1, ..Paging::default() })),
        new("2b", "`paging.erases` 1 of the newest 300, served", paging(erased.clone())),
        new("3", "`order` oldest", order(Order::Oldest)),
        new(
            "3b",
            "`order` oldest, `paging.removes_oldest` 1, `paging.inserts` 2",
            Faults {
                paging: Paging { removes_oldest: 1, inserts: 2, ..Paging::default() },
                ..order(Order::Oldest)
            },
        ),
        new("4", "`order` unsorted", order(Order::Unsorted)),
        new("4b", "`sim_order` unsorted", Faults { sim_order: Some(Order::Unsorted), ..Faults::default() }),
        new(
            "4c",
            "`order` unsorted, `lists.reshuffle`",
            Faults { lists: Lists { reshuffle: true, ..Lists::default() }, ..order(Order::Unsorted) },
        ),
        Scenario {
            tie_seconds: 60,
            ..new(
                "5",
                "times of whole minutes, `tie_order` random, bursts of 250",
                Faults { tie_order: TieOrder::Random, ..Faults::default() },
            )
        }
        .at(70, Act::Burst(250))
        .at(200, Act::Burst(250)),
        new("30", "3,000 events at once", Faults::default()).at(100, Act::Burst(3_000)),
    ]
}

/// How parameters and `total` are treated.
pub fn parameters() -> Vec<Scenario> {
    let capped = |rows| lists(Lists { page_cap: Some(rows), ..Lists::default() });
    let total = |total| lists(Lists { total, ..Lists::default() });
    let zone = |minutes| lists(Lists { day_offset_minutes: minutes, ..Lists::default() });
    vec![
        new(
            "6",
            "`lists.start_date_exclusive`",
            lists(Lists { start_date_exclusive: true, ..Lists::default() }),
        ),
        new(
            "6b",
            "`lists.end_date_exclusive`",
            lists(Lists { end_date_exclusive: true, ..Lists::default() }),
        ),
        new("6c", "`lists.day_offset_minutes` 745: a day ends in the run", zone(745)),
        new("6d", "`lists.day_offset_minutes` -695: a day begins in the run", zone(-695)),
        new("7", "`lists.limit_over` cut", lists(Lists { limit_over: LimitOver::Cut, ..Lists::default() })),
        new("7b", "`lists.page_cap` 50", capped(50)),
        new("7c", "`lists.page_cap` 10", capped(10)),
        new("8", "`lists.short_page` 0.2", lists(Lists { short_page: 0.2, ..Lists::default() })),
        new("9", "`lists.total` capped at 150", total(Total::Capped(150))),
        new("9b", "`lists.total` 7 too many", total(Total::OffBy(7))),
        new("9c", "`lists.total` 7 too few", total(Total::OffBy(-7))),
        new("9d", "`lists.total` absent", total(Total::Absent)),
        new("9e", "`lists.bare_array`", lists(Lists { bare_array: true, ..Lists::default() }))
            .ends("TypeError"),
        new(
            "13",
            "`lists.offset_slow_ms` 2,000 per 1,000 rows",
            lists(Lists { offset_slow_ms: 2_000, ..Lists::default() }),
        ),
        new("13b", "`lists.offset_cap` 300", lists(Lists { offset_cap: Some(300), ..Lists::default() })),
        new("33", "`lists.offset_ignored`", lists(Lists { offset_ignored: true, ..Lists::default() })),
    ]
}

/// What appears late, and what upstream forgets.
pub fn late() -> Vec<Scenario> {
    let late = Late { probability: 0.2, ..Late::default() };
    let retention = |seconds| paging(Paging { retention_s: Some(seconds), ..Paging::default() });
    vec![
        new("10", "`late.probability` 0.2", Faults { late: late.clone(), ..Faults::default() }),
        new(
            "10b",
            "`late.probability` 0.2, `lists.total` absent",
            Faults { late, ..lists(Lists { total: Total::Absent, ..Lists::default() }) },
        ),
        new("11", "events of 20 hours ago", Faults::default())
            .at(60, Act::Late(72_000))
            .at(120, Act::Late(72_500)),
        new("12", "`paging.retention_s` 60", retention(60)),
        new("12b", "`paging.retention_s` 60, poller away for 150 s", retention(60))
            .at(60, Act::Stop)
            .at(210, Act::Start),
        new("12c", "`paging.retention_s` 60, outage of 150 s", retention(60))
            .at(60, switch(Faults { outage: outage(OutageMode::Reset, 150).outage, ..retention(60) })),
        new(
            "12d",
            "`order` oldest, `paging.retention_s` 60, poller away for 150 s",
            Faults { order: Order::Oldest, ..retention(60) },
        )
        .at(60, Act::Stop)
        .at(210, Act::Start),
        new(
            "20",
            "`content.clock_skew_s` 3,600",
            content(Content { clock_skew_s: 3_600, ..Content::default() }),
        ),
        new(
            "20b",
            "`content.clock_skew_s` -3,600",
            content(Content { clock_skew_s: -3_600, ..Content::default() }),
        ),
        new("20c", "`content.clock_skew_s` 20", content(Content { clock_skew_s: 20, ..Content::default() })),
    ]
}

/// What rows hold.
pub fn contents() -> Vec<Scenario> {
    let ids = Content { duplicate_id: 0.1, ..Content::default() };
    let revised = Paging { revisions: 2, ..Paging::default() };
    let joined = Lists { joined_at_read: true, ..Lists::default() };
    vec![
        new("14", "`content.duplicate_id` 0.1", content(ids)),
        new("14b", "`content.missing_id` 0.1", content(Content { missing_id: 0.1, ..Content::default() })),
        new("14c", "`content.missing_id` 1", content(Content { missing_id: 1.0, ..Content::default() }))
            .ends("KeyError"),
        new(
            "14d",
            "`content.duplicate_row` 0.1",
            content(Content { duplicate_row: 0.1, ..Content::default() }),
        ),
        new("15", "`paging.revisions` 2", paging(revised)),
        new(
            "16",
            "`content.missing_iccid` 0.2",
            content(Content { missing_iccid: 0.2, ..Content::default() }),
        ),
        new("17", "`lists.account_details`", lists(Lists { account_details: true, ..Lists::default() })),
        new("18", "`lists.joined_at_read`, devices change SIMs", lists(joined))
            .at(90, Act::Relink)
            .at(180, Act::Relink),
        new("19", "`lists.open_end_absent`", lists(Lists { open_end_absent: true, ..Lists::default() })),
        new("24", "`content.unknown_type` 0.3", content(Content { unknown_type: 0.3, ..Content::default() })),
        new(
            "24b",
            "`content.extra_fields` 0.5",
            content(Content { extra_fields: 0.5, ..Content::default() }),
        ),
        new("25", "`content.nulls` 0.3", content(Content { nulls: 0.3, ..Content::default() }))
            .ends("TypeError"),
        new(
            "25b",
            "`content.numbers_as_strings` 0.5",
            content(Content { numbers_as_strings: 0.5, ..Content::default() }),
        ),
        new(
            "25c",
            "`content.odd_timestamp` 0.2",
            content(Content { odd_timestamp: 0.2, ..Content::default() }),
        ),
        new("25d", "rows that are no events", Faults::default())
            .at(40, Act::Unusable)
            .at(130, Act::Unusable)
            .at(250, Act::Unusable),
        new(
            "26",
            "`paging.revisions` 1: the month's usage moves under its id",
            paging(Paging { revisions: 1, ..Paging::default() }),
        ),
    ]
}

/// Answers that fail, and a poller that does.
pub fn failures() -> Vec<Scenario> {
    let refused = |retry_after| Errors {
        too_many: 0.02,
        too_many_burst: 3,
        too_many_retry_after_s: 3,
        retry_after,
        ..Errors::default()
    };
    let calm = Faults::default;
    vec![
        new("21", "`errors.too_many` 0.02, `Retry-After` in seconds", errors(refused(RetryAfter::Seconds))),
        new("21b", "the same as a date", errors(refused(RetryAfter::Date))),
        new("21c", "the same without `Retry-After`", errors(refused(RetryAfter::Absent))),
        new("21d", "upstream allows 120 requests a minute", calm()).at(30, Act::Limit(120)),
        new("22", "`errors.server_error` 0.2", errors(Errors { server_error: 0.2, ..Errors::default() })),
        new("22b", "`transport.reset` 0.1", transport(Transport { reset: 0.1, ..Transport::default() })),
        new("22c", "`transport.hang` 0.02", transport(Transport { hang: 0.02, ..Transport::default() })),
        new(
            "22d",
            "`transport.hang_before_headers` 0.02",
            transport(Transport { hang_before_headers: 0.02, ..Transport::default() }),
        ),
        new("22e", "outage of 120 s, 503", calm())
            .at(60, switch(outage(OutageMode::Unavailable, 120)))
            .ends("KeyError"),
        new("22f", "outage of 120 s, resets", calm())
            .at(60, switch(outage(OutageMode::Reset, 120)))
            .ends("ConnectionError"),
        new("23", "`transport.truncate` 0.1", transport(Transport { truncate: 0.1, ..Transport::default() })),
        new(
            "23b",
            "`transport.truncate_json` 0.1, `transport.html` 0.1",
            transport(Transport { truncate_json: 0.1, html: 0.1, ..Transport::default() }),
        ),
        new(
            "23c",
            "`transport.huge` 0.005, 9 MiB",
            transport(Transport { huge: 0.005, huge_bytes: 9 << 20, ..Transport::default() }),
        ),
        new("27", "key withdrawn, its file rewritten 20 s later", calm())
            .at(100, Act::Withdraw)
            .at(120, Act::Rotate)
            .ends("KeyError"),
        new("28", "a second gateway on the same bus", calm()).at(60, Act::Second),
        new("28b", "the same, and the first one crashes", calm()).at(60, Act::Second).at(150, Act::Crash),
        new("29", "five crashes", calm())
            .at(50, Act::Crash)
            .at(51, Act::Start)
            .at(91, Act::Crash)
            .at(93, Act::Start)
            .at(130, Act::Crash)
            .at(135, Act::Start)
            .at(190, Act::Crash)
            .at(190, Act::Start)
            .at(240, Act::Crash)
            .at(250, Act::Start),
        Scenario { rate: 2.0, ..new("31", "8,000 events at once", calm()) }.at(100, Act::Burst(8_000)),
        new(
            "32",
            "`transport.cache_ms` 60,000",
            transport(Transport { cache_ms: 60_000, ..Transport::default() }),
        ),
    ]
}

/// As many at once as do not exclude each other.
pub fn together() -> Vec<Scenario> {
    let everything = Faults {
        tie_order: TieOrder::Random,
        late: Late { probability: 0.1, ..Late::default() },
        paging: Paging { inserts: 1, revisions: 1, ..Paging::default() },
        lists: Lists {
            total: Total::OffBy(3),
            limit_over: LimitOver::Cut,
            page_cap: Some(60),
            short_page: 0.05,
            start_date_exclusive: true,
            end_date_exclusive: true,
            day_offset_minutes: 745,
            joined_at_read: true,
            open_end_absent: true,
            offset_slow_ms: 500,
            ..Lists::default()
        },
        content: Content {
            duplicate_id: 0.03,
            duplicate_row: 0.03,
            missing_id: 0.03,
            unknown_type: 0.05,
            extra_fields: 0.1,
            nulls: 0.05,
            numbers_as_strings: 0.1,
            odd_timestamp: 0.03,
            clock_skew_s: 5,
            ..Content::default()
        },
        errors: Errors {
            too_many: 0.005,
            too_many_burst: 2,
            too_many_retry_after_s: 2,
            server_error: 0.03,
            ..Errors::default()
        },
        transport: Transport {
            reset: 0.02,
            reset_in_body: 0.02,
            truncate: 0.02,
            truncate_json: 0.02,
            html: 0.02,
            hang: 0.003,
            slow: 0.2,
            slow_min_ms: 50,
            slow_max_ms: 400,
            cache_ms: 20_000,
            ..Transport::default()
        },
        ..Faults::default()
    };
    let away = |scenario: Scenario| {
        scenario
            .at(40, Act::Unusable)
            .at(80, Act::Crash)
            .at(90, Act::Start)
            .at(150, Act::Relink)
            .at(200, Act::Burst(250))
    };
    vec![
        away(new("all", "all of these together, newest first", everything.clone())),
        away(new("all b", "the same, oldest first", Faults { order: Order::Oldest, ..everything })),
    ]
}

/// How late half of the events, and 99 of 100, may be, where that is later than usual: what is not answered can't be
/// read, and what no count or order tells of waits for the next sweep.
pub const LATENESS_MAX_S: &[(&str, (f64, f64))] = &[
    ("4", (6.0, 40.0)),
    ("4c", (40.0, 120.0)),
    ("5", (3.0, 200.0)),
    ("13b", (20.0, 80.0)),
    ("33", (20.0, 80.0)),
    ("10", (3.0, 200.0)),
    ("10b", (3.0, 400.0)),
    ("12b", (4.0, 100.0)),
    ("12c", (4.0, 100.0)),
    ("12d", (4.0, 100.0)),
    ("20b", (3.0, 200.0)),
    ("14c", (12.0, 90.0)),
    ("21", (15.0, 120.0)),
    ("21b", (15.0, 120.0)),
    ("21c", (15.0, 120.0)),
    ("21d", (5.0, 120.0)),
    ("22", (3.0, 20.0)),
    ("22b", (3.0, 20.0)),
    ("22c", (3.0, 40.0)),
    ("22d", (3.0, 40.0)),
    ("22e", (3.0, 140.0)),
    ("22f", (3.0, 140.0)),
    ("23", (3.0, 20.0)),
    ("23b", (3.0, 20.0)),
    ("27", (3.0, 30.0)),
    ("29", (3.0, 30.0)),
    ("31", (15.0, 40.0)),
    ("30", (6.0, 20.0)),
    ("25c", (3.0, 100.0)),
    ("11", (3.0, 20.0)),
    ("8", (3.0, 30.0)),
    ("7c", (30.0, 100.0)),
    ("3", (3.0, 20.0)),
    ("all", (30.0, 400.0)),
    ("all b", (30.0, 600.0)),
];
