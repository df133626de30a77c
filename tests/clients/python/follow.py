"""An independent client of simcast: follows one filter through one transport and prints what it gets.

One JSON object per line: {"transport", "id", "cursor", "type", "iccid"}. Written against the public contract only
(proto/, docs), with grpcio and websockets; it shares no code with the gateway. It stops after --count events.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import urllib.parse
import urllib.request


def emit(transport, event):
    print(json.dumps({"transport": transport, **event}), flush=True)


def from_json(event):
    return {
        "id": event["id"],
        "cursor": event["cursor"],
        "type": event["type"],
        "iccid": event["data"]["iccid"],
        "observed_at": event["data"]["observed_at"],
    }


def query(args):
    pairs = [(name, value) for name, values in json.loads(args.filter).items() for value in values]
    pairs.append(("after", args.after) if args.after else ("from", args.start))
    return urllib.parse.urlencode(pairs)


async def follow_ws(args):
    import websockets

    url = args.base.replace("http", "ws", 1) + "/v1/events/ws?subscribe=none"
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    async with websockets.connect(
        url, subprotocols=["simcast.v1.json"], additional_headers=headers, max_size=None
    ) as socket:
        assert socket.subprotocol == "simcast.v1.json", socket.subprotocol
        start = {"after": args.after} if args.after else {"from": args.start}
        subscribe = {"type": "subscribe", "id": "1", "sub": "py", "filter": json.loads(args.filter), **start}
        await socket.send(json.dumps(subscribe))
        seen = 0
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "error":
                sys.exit(f"server says: {message}")
            if message["type"] != "events":
                continue
            assert message["sub"] == "py" and message["n"] == seen + 1, f"a hole in the ordinals: {message['n']}, {seen}"
            for event in message["items"]:
                seen += 1
                emit("ws", from_json(event))
                if seen == args.count:
                    return


def stubs():
    """Compiles proto/ as any client would, with grpcio-tools."""
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="simcast-stubs-")
    names = ["simcast/v1/event.proto", "simcast/v1/event_service.proto"]
    code = protoc.main(
        ["protoc", f"-I{args.proto}", f"-I{os.path.join(os.path.dirname(protoc.__file__), '_proto')}"]
        + [f"--python_out={out}", f"--grpc_python_out={out}"]
        + names
    )
    assert code == 0, "the proto files do not compile"
    sys.path.insert(0, out)
    from simcast.v1 import event_service_pb2 as messages
    from simcast.v1 import event_service_pb2_grpc as services

    return messages, services


def from_proto(event):
    time = event.observed_at.ToJsonString()
    return {
        "id": event.id,
        "cursor": event.cursor,
        "type": event.type,
        "iccid": event.iccid or None,
        "observed_at": time,
    }


def follow_grpc(args):
    import grpc

    messages, services = stubs()
    metadata = [("authorization", f"Bearer {args.token}")] if args.token else []
    request = messages.SubscribeRequest(filter=messages.Filter(**json.loads(args.filter)))
    if args.after:
        request.after = args.after
    elif args.start == "earliest":
        request.from_earliest = True
    with grpc.insecure_channel(args.grpc) as channel:
        call = services.EventServiceStub(channel).Subscribe(request, metadata=metadata)
        first = next(call)
        assert first.WhichOneof("control") == "opened", first
        seen = 0
        for response in call:
            for event in response.events:
                seen += 1
                emit("grpc", from_proto(event))
                if seen == args.count:
                    call.cancel()
                    return


def follow_sse(args):
    request = urllib.request.Request(args.base + "/v1/events/sse?" + query(args))
    if args.token:
        request.add_header("Authorization", f"Bearer {args.token}")
    seen, fields = 0, {}
    with urllib.request.urlopen(request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for raw in response:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            # Events carry no event: line; control messages do.
            if "data" in fields and "event" not in fields:
                event = from_json(json.loads(fields["data"]))
                assert event["cursor"] == fields["id"], "id: is the cursor"
                seen += 1
                emit("sse", event)
                if seen == args.count:
                    return
            fields = {}


def follow_rest(args):
    seen, after = 0, args.after
    while seen < args.count:
        pairs = [(name, value) for name, values in json.loads(args.filter).items() for value in values]
        pairs += [("limit", "97")] + ([("after", after)] if after else [])
        request = urllib.request.Request(args.base + "/v1/events?" + urllib.parse.urlencode(pairs))
        if args.token:
            request.add_header("Authorization", f"Bearer {args.token}")
        with urllib.request.urlopen(request) as response:
            page = json.load(response)
        for event in page["events"]:
            seen += 1
            emit("rest", from_json(event))
            if seen == args.count:
                return
        after = page["next_cursor"]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--transport", choices=["ws", "sse", "grpc", "rest"], required=True)
parser.add_argument("--base", required=True, help="http://host:port")
parser.add_argument("--grpc", help="host:port")
parser.add_argument("--proto", help="directory that holds simcast/v1")
parser.add_argument("--token")
parser.add_argument("--filter", default="{}", help="JSON object of lists")
parser.add_argument("--start", default="earliest", choices=["earliest", "now"])
parser.add_argument("--after", help="cursor")
parser.add_argument("--count", type=int, required=True)
args = parser.parse_args()
if args.transport == "ws":
    asyncio.run(follow_ws(args))
else:
    {"grpc": follow_grpc, "sse": follow_sse, "rest": follow_rest}[args.transport](args)
