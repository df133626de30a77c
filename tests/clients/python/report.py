"""Recomputes /v1/report with pandas from nothing but the pages of /v1/events, and compares number by number.

Written against the public contract only; it shares no code with the gateway. It asks for each period and filter that
the arguments name, compares a report that has counted just what the pages show, and prints one JSON object:
{"events", "compared"}. A difference ends it with status 1 and both sides.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from decimal import Decimal

import pandas as pd


def get(base, path, **query):
    url = f"{base}{path}?{urllib.parse.urlencode(query, doseq=True)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read(), parse_float=Decimal)


def pages(base):
    events, query = [], {"limit": 1000}
    while True:
        page = get(base, "/v1/events", **query)
        events += page["events"]
        if page["caught_up"]:
            return events, page["next_cursor"]
        query["after"] = page["next_cursor"]


def place(network):
    """A country by its name, or by its code where that is all there is: account-wide rows lack the code."""
    return network.get("country") or network.get("country_code")


def row(event, whole):
    data, network, session = event["data"], whole["data"]["network"] or {}, event["data"]["session"] or {}
    before = data["previous_network"]
    amounts = [session.get(name) for name in ("upload_mb", "download_mb", "total_mb")]
    has_data = bool(session.get("session_id")) and any(amount is not None for amount in amounts)
    up, down = (Decimal(amount or 0) for amount in amounts[:2])
    total = up + down if amounts[2] is None else Decimal(amounts[2])
    return {
        "time": pd.Timestamp(event["time"]),
        "type": data["event_type"],
        "iccid": data["iccid"],
        "country": place(network),
        "code": network.get("country_code"),
        "operator": network.get("operator"),
        "network_type": network.get("network_type"),
        "late": "late" in data["flags"],
        "repaired": "repaired" in data["flags"],
        "session": session["session_id"] if has_data else None,
        "sums": (up, down, total),
        "seconds": session.get("duration_seconds") if data["event_type"] == "session_ended" else None,
        "from": (place(before),) if before and data["event_type"] == "network_change" else None,
    }


def frame(events):
    """One row an event: a completed copy replaces the network of the event that it completes."""
    whole = {event["id"]: event for event in events if "enriched" in event["data"]["flags"]}
    rows = [
        row(event, whole.get(event["id"] + "~details", event))
        for event in events
        if "enriched" not in event["data"]["flags"] and not event["type"].startswith("simcast.")
    ]
    return pd.DataFrame(rows)


def with_data(df):
    """What each reading of a session shows beyond the one before it, in the order of the stream."""
    seen, moved = {}, []
    for session, sums in zip(df["session"], df["sums"]):
        if not isinstance(session, str):
            moved.append((Decimal(0),) * 3)
            continue
        before = seen.get(session, (Decimal(0),) * 3)
        moved.append(tuple(now - then for now, then in zip(sums, before)))
        seen[session] = sums
    df = df.copy()
    for index, name in enumerate(("upload_mb", "download_mb", "total_mb")):
        df[name] = pd.Series([one[index] for one in moved], index=df.index, dtype=object)
    return df


def none(value):
    return None if pd.isna(value) else value


def counts(column):
    return dict(Counter(map(none, column)))


def amounts(df):
    return {name: sum(df[name], Decimal(0)) for name in ("upload_mb", "download_mb", "total_mb")}


def by_amount(df, column):
    groups = {}
    for key, group in df.groupby(column, dropna=False):
        if any(amounts(group).values()):
            groups[none(key)] = amounts(group)
    return groups


def naive(df, report, top):
    """The report's numbers for the bounds that it states."""
    begins, ends = (pd.Timestamp(report[name]) for name in ("from", "to"))
    day_begins, day_ends = (pd.Timestamp(report["days"][name]) for name in ("from", "to"))
    hours = df[(df["time"] >= begins) & (df["time"] < ends)]
    days = df[(df["time"] >= day_begins) & (df["time"] < day_ends)]
    networks = report["computed_from"] != "sim_rollup"
    unit = "h" if report["interval"] == "hour" else "D"
    points = hours["time"].dt.floor(unit).clip(lower=begins) if len(hours) else hours["time"]
    active = days[days["iccid"].notna()].groupby("iccid").size()
    active = sorted(active.items(), key=lambda item: (-item[1], item[0]))
    data = sorted(by_amount(days[days["iccid"].notna()], "iccid").items(), key=lambda i: (-i[1]["total_mb"], i[0]))
    changes = days[days["from"].notna()]
    changes = [(a, b) for (a,), b in zip(changes["from"], map(none, changes["country"])) if a != b]
    seconds = hours["seconds"].dropna()
    return {
        "totals": {
            "events": len(hours), "sims": len(active),
            "late": int(hours["late"].sum()), "repaired": int(hours["repaired"].sum()),
        },
        "by_type": counts(hours["type"]),
        "by_country": counts(hours["country"]) if networks else None,
        "by_operator": counts(hours["operator"]) if networks else None,
        "by_network_type": counts(hours["network_type"]) if networks else None,
        "series": {
            str(at.strftime("%Y-%m-%dT%H:%M:%SZ")): {
                "events": len(group), "late": int(group["late"].sum()),
                "repaired": int(group["repaired"].sum()), "total_mb": amounts(group)["total_mb"],
            }
            for at, group in hours.groupby(points)
        },
        "most_active": active[:top],
        "data": amounts(hours),
        "data_by_sim": data[:top],
        "data_by_country": by_amount(hours, "country"),
        "sessions": {
            "started": int((hours["type"] == "session_started").sum()),
            "ended": int((hours["type"] == "session_ended").sum()),
            "total_mb": amounts(hours)["total_mb"],
            "mean_duration_seconds": float(seconds.sum()) / len(seconds) if len(seconds) else None,
        },
        "roaming": dict(Counter(changes)),
    }


def shown(report):
    """The same numbers, as the gateway gives them."""
    def by(rows, name):
        if rows is None:
            return None
        order = [row["events"] for row in rows]
        assert order == sorted(order, reverse=True), "the most come first"
        keys = [place(row) if name == "country" else row[name] for row in rows]
        assert len(set(keys)) == len(keys), f"{name} is there twice"
        return dict(zip(keys, order))

    def amounts_of(row):
        return {name: Decimal(row[name]) for name in ("upload_mb", "download_mb", "total_mb")}

    data, sessions = report["data"], dict(report["sessions"])
    mean = sessions["mean_duration_seconds"]
    sessions["mean_duration_seconds"] = None if mean is None else float(mean)
    return {
        "totals": report["totals"],
        "by_type": by(report["by_type"], "event_type"),
        "by_country": by(report["by_country"], "country"),
        "by_operator": by(report["by_operator"], "operator"),
        "by_network_type": by(report["by_network_type"], "network_type"),
        "series": {
            point["time"]: {name: point[name] for name in ("events", "late", "repaired", "total_mb")}
            for point in report["series"]
        },
        "most_active": [(row["iccid"], row["events"]) for row in report["most_active"]],
        "data": amounts_of(data),
        "data_by_sim": [(row["iccid"], amounts_of(row)) for row in data["by_sim"]],
        "data_by_country": {place(row): amounts_of(row) for row in data["by_country"]},
        "sessions": sessions,
        "roaming": {
            (place(row["from"]), place(row["to"])): row["changes"]
            for row in report["roaming"]
        },
    }


def select(df, query):
    for field, values in query.items():
        if field == "iccid":
            df = df[df["iccid"].isin(values)]
        elif field == "event_type":
            df = df[df["type"].isin(values)]
        elif field == "country":
            df = df[df["country"].isin(values) | df["code"].isin(values)]
    return df


def asked(base, query):
    """A report, or None while the gateway has not counted so far."""
    try:
        return get(base, "/v1/report", **query)
    except urllib.error.HTTPError as error:
        assert error.code == 503, error
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--queries", required=True, help="a JSON list of queries of /v1/report")
    args = parser.parse_args()
    events, cursor = pages(args.base)
    df, compared = frame(events), 0
    for query in json.loads(args.queries):
        for _ in range(600):
            report = asked(args.base, query)
            if report and report["as_of"] == cursor:
                break
            time.sleep(0.1)
            # Details of events may still follow.
            events, cursor = pages(args.base)
            df = frame(events)
        else:
            sys.exit("the report does not get as far as the events")
        top = int(query.get("top", 10))
        expected, got = naive(with_data(select(df, query)), report, top), shown(report)
        for name, value in expected.items():
            if got[name] != value:
                sys.exit(f"{query}: {name} is\n{got[name]}\nbut counted\n{value}")
            compared += 1
    print(json.dumps({"events": len(df), "compared": compared}))


main()
