//! Writing a sidecar: see [`super`] for the layout.

use super::{
    ERASED_BIT, HEADER_BYTES, IDS_PER_BUCKET, Layout, LiveIndex, MAGIC, MAGIC_ERASED, Sidecar, Summary,
    bucket_of,
};
use crate::log::KnownId;

/// The file of an index.
pub(crate) fn encode(index: &LiveIndex, incarnation: u64, summary: &Summary) -> Vec<u8> {
    let mut terms: Vec<_> = index.postings.iter().collect();
    terms.sort_unstable_by_key(|(term, _)| **term);
    let mut ids: Vec<_> = index.ids.iter().map(|(id, known)| (*id, *known)).collect();
    ids.sort_unstable_by_key(|(id, _)| *id);
    let mut body = Vec::with_capacity(index.records.len() * 110);
    for record in &index.records {
        put_u64(&mut body, record.seq);
        put_u64(&mut body, record.observed_us as u64);
        put_u32(&mut body, record.offset | if record.erased { ERASED_BIT } else { 0 });
        put_u32(&mut body, record.tag);
        put_u64(&mut body, record.time_us as u64);
    }
    for (first, last) in &index.holes {
        put_u64(&mut body, *first);
        put_u64(&mut body, *last);
    }
    let directory_bits = put_ids(&ids, &mut body);
    let mut start = 0;
    for (term, list) in &terms {
        put_u64(&mut body, **term);
        put_u32(&mut body, start);
        put_u32(&mut body, list.len() as u32);
        start += list.len() as u32;
    }
    for ordinal in terms.iter().flat_map(|(_, list)| list.iter()) {
        put_u32(&mut body, *ordinal);
    }
    for (key, count) in &index.days {
        put_u32(&mut body, key.quarter as u32);
        put_u32(&mut body, *count);
        put_u64(&mut body, key.event_type);
    }
    for lost in &index.lost {
        put_u64(&mut body, lost.seq);
        put_u64(&mut body, lost.time_us as u64);
        body.extend_from_slice(&lost.id.to_le_bytes());
    }
    let layout = Layout {
        records: index.records.len(),
        holes: index.holes.len(),
        directory_bits,
        ids: ids.len(),
        terms: terms.len(),
        ordinals: start as usize,
        days: index.days.len(),
        lost: index.lost.len(),
    };
    let magic = if index.erased == 0 { MAGIC } else { MAGIC_ERASED };
    with_header(magic, layout, incarnation, summary, &body)
}

/// The file that remembers the ids and counts of a sidecar and nothing else.
pub(crate) fn encode_ids(sidecar: &Sidecar, incarnation: u64) -> Vec<u8> {
    let Layout { ids, directory_bits, days, .. } = sidecar.layout;
    let layout = Layout { records: 0, holes: 0, directory_bits, ids, terms: 0, ordinals: 0, days, lost: 0 };
    let (all, from) = (sidecar.bytes(), sidecar.layout);
    let body = [&all[from.directory_at()..from.terms_at()], &all[from.days_at()..from.lost_at()]].concat();
    with_header(MAGIC, layout, incarnation, &sidecar.summary, &body)
}

fn put_ids(ids: &[(u128, KnownId)], body: &mut Vec<u8>) -> u32 {
    let bits = (ids.len() / IDS_PER_BUCKET).max(1).ilog2();
    let mut next = 0;
    for bucket in 0..=1u64 << bits {
        while next < ids.len() && bucket_of(ids[next].0, bits) < bucket {
            next += 1;
        }
        put_u32(body, next as u32);
    }
    for (id, _) in ids {
        body.extend_from_slice(&id.to_le_bytes());
    }
    for (_, known) in ids {
        put_u64(body, known.seq);
        put_u64(body, known.identity);
        put_u32(body, known.content);
        put_u32(body, 0);
    }
    bits
}

fn with_header(magic: [u8; 8], layout: Layout, incarnation: u64, summary: &Summary, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&magic);
    let (observed, times) = (summary.observed.unwrap_or((1, 0)), summary.times.unwrap_or((1, 0)));
    for word in [
        incarnation,
        summary.base_seq,
        summary.last_seq,
        summary.bytes,
        summary.records,
        summary.first_seq.unwrap_or(u64::MAX),
        observed.0 as u64,
        observed.1 as u64,
        times.0 as u64,
        times.1 as u64,
    ] {
        put_u64(&mut out, word);
    }
    for count in [layout.records, layout.holes, layout.ids, layout.terms, layout.ordinals] {
        put_u32(&mut out, count as u32);
    }
    put_u32(&mut out, layout.directory_bits);
    put_u32(&mut out, layout.days as u32);
    put_u32(&mut out, layout.lost as u32);
    put_u32(&mut out, crc32c::crc32c(body));
    let crc = crc32c::crc32c(&out);
    put_u32(&mut out, crc);
    out.extend_from_slice(body);
    out
}

fn put_u32(out: &mut Vec<u8>, word: u32) {
    out.extend_from_slice(&word.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}
