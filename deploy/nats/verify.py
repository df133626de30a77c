"""Starts NATS servers with the configuration of this directory and shows that it does what it says.

Usage: verify.py NATS_SERVER...; needs nats-py. Ports and store directories are replaced, all else is as deployed.
"""

import asyncio
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

HERE = pathlib.Path(__file__).resolve().parent
PASSWORDS = {
    "SIMCAST_NATS_PASSWORD": "p1of-simcast",
    "SIMCAST_NATS_READER_PASSWORD": "p2of-reader",
    "SIMCAST_NATS_ROUTE_PASSWORD": "p3of-routes",
}
BUCKETS = ["state", "endpoints", "cursors", "lease"]
GIB = 1 << 30


def free_ports(count):
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """One server with a configuration file of this directory."""

    def __init__(self, binary, source, directory, name, clusters=()):
        self.port, self.monitor = free_ports(2)
        text = (HERE / source).read_text()
        swaps = {"0.0.0.0:4222": f"127.0.0.1:{self.port}", "0.0.0.0:8222": f"127.0.0.1:{self.monitor}"}
        swaps |= {"store_dir: /data": f'store_dir: "{directory}/{name}/data"'}
        if clusters:
            index = int(name[-1])
            swaps |= {"listen: 0.0.0.0:6222": f"listen: 127.0.0.1:{clusters[index]}"}
            swaps |= {"/run/nats/nats.pid": f"{directory}/{name}/pid"}
        for old, new in swaps.items():
            assert text.count(old) == 1, f"{source} holds {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        # A directory for each: a server that reads accounts.conf while it is written again would let everybody in.
        home = pathlib.Path(directory) / name
        home.mkdir()
        file = home / source
        file.write_text(text)
        shutil.copy(HERE / "accounts.conf", home)
        self.log = home / "log"
        user = f"route:{PASSWORDS['SIMCAST_NATS_ROUTE_PASSWORD']}"
        routes = ", ".join(f'"nats-route://{user}@127.0.0.1:{port}"' for port in clusters)
        environment = PASSWORDS | {"POD_NAME": name, "SIMCAST_NATS_ROUTES": f"[{routes}]"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen([binary, "-c", file], env=environment, stderr=log)

    def ask(self, path):
        """JSON of the monitoring port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}{path}", timeout=2) as answer:
            return json.load(answer)

    async def ready(self):
        """Waits for what the startup probe waits for."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                if self.ask("/healthz")["status"] == "ok":
                    return
            assert self.process.poll() is None, self.log.read_text()
            await asyncio.sleep(0.1)
        raise AssertionError(f"not ready:\n{self.log.read_text()}")

    def stop(self):
        self.process.kill()
        self.process.wait()


async def connect(server, user, **options):
    password = PASSWORDS["SIMCAST_NATS_PASSWORD" if user == "simcast" else "SIMCAST_NATS_READER_PASSWORD"]

    async def refusals(error):
        errors.append(str(error))

    errors = []
    client = await nats.connect(
        f"nats://127.0.0.1:{server.port}", user=user, password=password, error_cb=refusals, **options
    )
    return client, errors


async def refused(client, errors, subject, payload=b"", reply=""):
    """Whether the server refuses a publication."""
    errors.clear()
    await client.publish(subject, payload, reply=reply)
    await client.flush()
    await asyncio.sleep(0.05)
    return any("permissions violation" in error.lower() for error in errors)


async def provision(client, replicas):
    """Stream and buckets as large as the gateway makes them."""
    js = client.jetstream()
    await js.add_stream(
        StreamConfig(
            name="SIMCAST",
            subjects=["simcast.events.>", "simcast.ctl.>"],
            max_bytes=10 * GIB,
            num_replicas=replicas,
            deny_delete=True,
            allow_direct=True,
        )
    )
    for bucket in BUCKETS:
        name = f"SIMCAST_{bucket}"
        await js.add_stream(
            StreamConfig(name=f"KV_{name}", subjects=[f"$KV.{name}.>"], max_msgs_per_subject=1, num_replicas=replicas)
        )
    return js


async def persistently(attempt, complaint):
    """Tries until the servers have agreed on leaders."""
    for _ in range(60):
        try:
            return await attempt()
        except (nats.errors.Error, nats.js.errors.Error) as error:
            last = error
            await asyncio.sleep(0.5)
    raise AssertionError(f"{complaint}: {last}")


async def permissions(server):
    """What the gateway and readers may, and what they may not."""
    gateway, gateway_errors = await connect(server, "simcast")
    js = await provision(gateway, 1)
    await js.publish("simcast.events.connection.8947080012345678900.-", b"{}")
    await js.publish("simcast.ctl.lease.poller", b"{}")
    for bucket in BUCKETS:
        await js.publish(f"$KV.SIMCAST_{bucket}.key", b"1")
        await js.get_last_msg(f"KV_SIMCAST_{bucket}", f"$KV.SIMCAST_{bucket}.key")
    config = ConsumerConfig(name="mirror_x", ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=30)
    await js.add_consumer("SIMCAST", config)
    mirror = await js.pull_subscribe_bind("mirror_x", "SIMCAST")
    assert len(await mirror.fetch(2, timeout=2)) == 2
    await js.delete_consumer("SIMCAST", "mirror_x")
    for action in ["UPDATE", "PURGE", "DELETE", "MSG.DELETE", "SNAPSHOT"]:
        assert await refused(gateway, gateway_errors, f"$JS.API.STREAM.{action}.SIMCAST"), action
    for subject in ["other", "$JS.API.STREAM.RESTORE.X", "$SYS.REQ.SERVER.PING"]:
        assert await refused(gateway, gateway_errors, subject), subject

    config = ConsumerConfig(
        name="reader", durable_name="reader", ack_policy=AckPolicy.EXPLICIT, filter_subject="simcast.events.>"
    )
    await js.add_consumer("SIMCAST", config)
    reader, reader_errors = await connect(server, "reader")
    pull = await reader.jetstream().pull_subscribe_bind("reader", "SIMCAST")
    [message] = await pull.fetch(1, timeout=2)
    assert message.subject == "simcast.events.connection.8947080012345678900.-", message
    await message.ack()
    for _ in range(50):
        if (await js.consumer_info("SIMCAST", "reader")).num_ack_pending == 0:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the reader's acknowledgement did not arrive")

    # No way to write: not directly, not by another consumer, not by having an answer sent to the stream's subjects.
    messages = (await js.stream_info("SIMCAST")).state.messages
    for subject in [
        "simcast.events.x",
        "$KV.SIMCAST_lease.poller",
        "$JS.API.CONSUMER.CREATE.SIMCAST.mine",
        "$JS.API.CONSUMER.DELETE.SIMCAST.reader",
        "$JS.API.STREAM.INFO.SIMCAST",
    ]:
        assert await refused(reader, reader_errors, subject), subject
    for verb, body in [("INFO", b""), ("MSG.NEXT", b'{"batch":1,"no_wait":true}')]:
        subject = f"$JS.API.CONSUMER.{verb}.SIMCAST.reader"
        assert not await refused(reader, reader_errors, subject, body, reply="simcast.events.x"), subject
    await asyncio.sleep(0.3)
    assert (await js.stream_info("SIMCAST")).state.messages == messages, "a reader wrote to the stream"
    await gateway.close()
    await reader.close()

    # Nobody without a password.
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", server.port)
    await incoming.readline()
    outgoing.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    answer = await asyncio.wait_for(incoming.readline(), 5)
    outgoing.close()
    assert b"Authorization Violation" in answer, answer


def syncs_always(server):
    """The setting is in force, and not merely accepted."""
    config = server.ask("/varz")["jetstream"]["config"]
    assert config["sync_always"] is True, config


async def single(binary, directory):
    server = Server(binary, "single.conf", directory, "single")
    try:
        await server.ready()
        syncs_always(server)
        await permissions(server)
    finally:
        server.stop()


async def cluster(binary, directory):
    """Three servers find each other, hold three copies, and go on without any one of them."""
    ports = free_ports(3)
    servers = [Server(binary, "cluster.conf", directory, f"nats-{i}", ports) for i in range(3)]
    try:
        for server in servers:
            await server.ready()
            syncs_always(server)
        client, _ = await connect(servers[0], "simcast")
        js = await persistently(lambda: provision(client, 3), "no stream with three replicas can be made")
        # Made is not yet led: the stream's leader answers later, and the server asked learns of it later still.
        await persistently(lambda: js.publish("simcast.events.x", b"1", timeout=1), "three of three take no event")
        await client.close()
        servers[0].stop()
        client, _ = await connect(servers[1], "simcast")
        js = client.jetstream()
        await persistently(lambda: js.publish("simcast.events.x", b"2", timeout=1), "two of three take no event")
        await client.close()
    finally:
        for server in servers:
            server.stop()


async def main():
    for binary in sys.argv[1:]:
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        for check in [single, cluster]:
            with tempfile.TemporaryDirectory() as directory:
                await check(binary, directory)
            print(f"{version}, {check.__name__}.conf: as it says")


asyncio.run(main())
