"""The "Real-time Monitoring Example" of the GlobalSIM API document, word for word: what people run today.

Only time.sleep is another: instead of waiting it lets events happen in the simulator, then the loop polls again.
Prints one JSON object: events shown, how many of them the loop printed, how many lines it printed for them, whether
it died and of what.
"""

import argparse
import contextlib
import datetime
import io
import json
import sys
import urllib.request

import requests
import time

parser = argparse.ArgumentParser()
parser.add_argument("--origin", required=True, help="of the simulator")
parser.add_argument("--key", required=True)
parser.add_argument("--iccid", required=True)
parser.add_argument("--polls", type=int, required=True)
parser.add_argument("--first", type=int, required=True, help="events before the first poll")
parser.add_argument("--per-poll", type=int, required=True, help="events between two polls")
parser.add_argument("--network", choices=["as-is", "null"], default="as-is")
args = parser.parse_args()

API_KEY = args.key
API_URL = f"{args.origin}/v1/globalsim"


# --- from the API document, indentation restored ---


def monitor_sim_activity(iccid, interval_seconds=60):
    """Monitor SIM activity in real-time"""
    headers = {'Authorization': f'Bearer {API_KEY}'}

    last_event_id = None

    while True:
        response = requests.get(
            f'{API_URL}/sims/{iccid}/activity',
            headers=headers,
            params={'limit': 10}
        )

        activity = response.json()

        for event in activity['activity']:
            if event['event_id'] != last_event_id:
                print(f"{event['timestamp']}: {event['event_type']}")
                if 'network' in event:
                    print(f"  Network: {event['network']['operator']}")
                last_event_id = event['event_id']

        time.sleep(interval_seconds)


# --- end of the document's text ---


class Enough(Exception):
    """The run is over; the document's loop has no end of its own."""


shown = []
# In the near past, so that no event is stamped in the future however fast the polls follow each other.
began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)


def happen(count):
    for _ in range(count):
        # A time of its own, by which the printed line is recognised.
        at = (began + datetime.timedelta(seconds=len(shown))).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {"iccid": args.iccid, "event_type": "connection", "timestamp": at}
        if args.network == "null":
            event["overlay"] = {"network": None}
        request = urllib.request.Request(
            f"{args.origin}/_sim/inject", json.dumps(event).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request).read()
        shown.append(at)


polls = 1


def let_events_happen(_seconds):
    global polls
    if polls == args.polls:
        raise Enough
    polls += 1
    happen(args.per_poll)


time.sleep = let_events_happen
happen(args.first)
printed = io.StringIO()
died = None
try:
    with contextlib.redirect_stdout(printed):
        monitor_sim_activity(args.iccid, interval_seconds=30)
except Enough:
    pass
except Exception as error:  # whatever ends the loop is the finding
    died = type(error).__name__
lines = [line.rsplit(": ", 1)[0] for line in printed.getvalue().splitlines() if not line.startswith("  ")]
json.dump({"shown": len(shown), "printed": len(set(lines) & set(shown)), "lines": len(lines), "died": died}, sys.stdout)
