"""An independent reader of simcast's stream on NATS: no gateway is asked. Written against docs/NATS.md only, with nats-py.

Prints one JSON object per message: {"seq", "subject", "id", "content_type", "body"} for an event, {"seq", "skipped"}
(the subject) for a message that is none. It stops after --count events.
"""

import argparse
import asyncio
import hashlib
import json
import re

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy


def token(text):
    """One token of a subject: the escape of docs/NATS.md."""
    if text is None:
        return "-"
    escaped = re.sub(rb"[^A-Za-z0-9_-]", lambda byte: b"=%02X" % byte[0][0], text.encode()).decode()
    escaped = {"": "=", "-": "=2D"}.get(escaped, escaped)
    return escaped if len(escaped) <= 96 else "=H" + hashlib.sha256(text.encode()).hexdigest()[:32]


def subjects(args):
    """What to filter by: each given value is a subject of its own, none at all is the whole stream."""
    events = f"{args.prefix}.events"
    chosen = [f"{events}.{token(one)}.*.*" for one in args.event_type]
    chosen += [f"{events}.*.{token(one)}.*" for one in args.iccid]
    chosen += [f"{events}.*.*.{token(one)}" for one in args.device]
    return chosen


async def main(args):
    client = await nats.connect(args.server)
    jetstream = client.jetstream(timeout=10)
    if args.consumer:
        # One that an operator has made: a reader with few permissions can't make its own.
        name = args.consumer
    else:
        config = ConsumerConfig(
            filter_subjects=subjects(args) or None,
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=args.after + 1,
            inactive_threshold=60,
        )
        name = (await jetstream.add_consumer(args.stream, config)).name
    subscription = await jetstream.pull_subscribe_bind(consumer=name, stream=args.stream)
    seen = 0
    while seen < args.count:
        try:
            messages = await subscription.fetch(min(100, args.count - seen), timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            seq = message.metadata.sequence.stream
            if args.consumer:
                await message.ack()
            if not message.subject.startswith(f"{args.prefix}.events."):
                print(json.dumps({"seq": seq, "skipped": message.subject}), flush=True)
                continue
            seen += 1
            line = {
                "seq": seq,
                "subject": message.subject,
                "id": message.headers["Nats-Msg-Id"],
                "content_type": message.headers["content-type"],
                "body": message.data.decode(),
            }
            print(json.dumps(line), flush=True)
    await client.close()


parser = argparse.ArgumentParser()
parser.add_argument("--server", required=True)
parser.add_argument("--stream", default="SIMCAST")
parser.add_argument("--prefix", default="simcast")
parser.add_argument("--consumer", help="one that exists; else one is made for this run")
parser.add_argument("--event-type", action="append", default=[])
parser.add_argument("--iccid", action="append", default=[])
parser.add_argument("--device", action="append", default=[])
parser.add_argument("--after", type=int, default=0, help="sequence behind which to begin")
parser.add_argument("--count", type=int, required=True)
asyncio.run(main(parser.parse_args()))
