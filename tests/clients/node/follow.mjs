// An independent client of simcast: follows one filter through one transport and prints what it gets.
//
// One JSON object per line: {transport, id, cursor, type, iccid, observed_at}. Written against the public contract
// only, with @grpc/grpc-js, ws and eventsource; it shares no code with the gateway. It stops after --count events.

import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const { values: args } = parseArgs({
  options: {
    transport: { type: "string" },
    base: { type: "string" },
    grpc: { type: "string" },
    proto: { type: "string" },
    token: { type: "string" },
    filter: { type: "string", default: "{}" },
    start: { type: "string", default: "earliest" },
    after: { type: "string" },
    count: { type: "string" },
  },
});
const count = Number(args.count);
const filter = JSON.parse(args.filter);
let seen = 0;

function fail(message) {
  console.error(message);
  process.exit(1);
}

function emit(event) {
  seen += 1;
  console.log(JSON.stringify({ transport: args.transport, ...event }));
  return seen === count;
}

function fromJson(event) {
  const { id, cursor, type, data } = event;
  return { id, cursor, type, iccid: data.iccid, observed_at: data.observed_at };
}

function query() {
  const pairs = Object.entries(filter).flatMap(([name, list]) => list.map((value) => [name, value]));
  pairs.push(args.after ? ["after", args.after] : ["from", args.start]);
  return new URLSearchParams(pairs).toString();
}

function authorization() {
  return args.token ? { Authorization: `Bearer ${args.token}` } : {};
}

function followWs() {
  const url = `${args.base.replace("http", "ws")}/v1/events/ws?subscribe=none`;
  const socket = new WebSocket(url, ["simcast.v1.json"], { headers: authorization() });
  socket.on("open", () => {
    const start = args.after ? { after: args.after } : { from: args.start };
    socket.send(JSON.stringify({ type: "subscribe", id: "1", sub: "node", filter, ...start }));
  });
  socket.on("error", (error) => fail(String(error)));
  socket.on("close", (code) => seen < count && fail(`closed with ${code}`));
  socket.on("message", (text) => {
    const message = JSON.parse(text);
    if (message.type === "error") fail(JSON.stringify(message));
    if (message.type !== "events" || seen >= count) return;
    if (message.n !== seen + 1) fail(`a hole in the ordinals: ${message.n} after ${seen}`);
    for (const event of message.items) {
      if (emit(fromJson(event))) return socket.close();
    }
  });
}

function followSse() {
  const source = new EventSource(`${args.base}/v1/events/sse?${query()}`, {
    fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, ...authorization() } }),
  });
  source.onerror = (error) => fail(`SSE: ${error.code ?? ""} ${error.message ?? ""}`);
  source.onmessage = (message) => {
    const event = fromJson(JSON.parse(message.data));
    if (event.cursor !== message.lastEventId) fail("id: is not the cursor");
    if (seen < count && emit(event)) source.close();
  };
}

function followGrpc() {
  const definition = loader.loadSync("simcast/v1/event_service.proto", {
    includeDirs: [args.proto],
    keepCase: true,
    longs: Number,
    oneofs: true,
  });
  const { EventService } = grpc.loadPackageDefinition(definition).simcast.v1;
  const client = new EventService(args.grpc, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  if (args.token) metadata.set("authorization", `Bearer ${args.token}`);
  const start = args.after ? { after: args.after } : args.start === "earliest" ? { from_earliest: true } : {};
  const call = client.Subscribe({ filter, ...start }, metadata);
  call.on("error", (error) => seen < count && fail(String(error)));
  call.on("data", (response) => {
    for (const event of response.events ?? []) {
      if (seen >= count) return;
      const at = new Date(event.observed_at.seconds * 1000 + event.observed_at.nanos / 1e6).toISOString();
      const { id, cursor, type } = event;
      if (emit({ id, cursor, type, iccid: event.iccid || null, observed_at: at })) {
        call.cancel();
        client.close();
        return;
      }
    }
  });
}

async function followRest() {
  let after = args.after;
  while (seen < count) {
    const pairs = Object.entries(filter).flatMap(([name, list]) => list.map((value) => [name, value]));
    pairs.push(["limit", "89"]);
    if (after) pairs.push(["after", after]);
    const response = await fetch(`${args.base}/v1/events?${new URLSearchParams(pairs)}`, { headers: authorization() });
    const page = await response.json();
    if (!response.ok) fail(JSON.stringify(page));
    for (const event of page.events) {
      if (emit(fromJson(event))) return;
    }
    after = page.next_cursor;
  }
}

({ ws: followWs, sse: followSse, grpc: followGrpc, rest: followRest })[args.transport]();
