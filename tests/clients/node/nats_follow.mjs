// An independent reader of simcast's stream on NATS: no gateway is asked. Written against docs/NATS.md only, with
// @nats-io/transport-node and @nats-io/jetstream.
//
// Prints one JSON object per message: {seq, subject, id, content_type, body} for an event, {seq, skipped} (the subject)
// for a message that is none. It stops after --count events.

import { createHash } from "node:crypto";
import { parseArgs } from "node:util";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const list = { type: "string", multiple: true, default: [] };
const { values: args } = parseArgs({
  options: {
    server: { type: "string" },
    stream: { type: "string", default: "SIMCAST" },
    prefix: { type: "string", default: "simcast" },
    "event-type": list,
    iccid: list,
    device: list,
    after: { type: "string", default: "0" },
    count: { type: "string" },
  },
});

// One token of a subject: the escape of docs/NATS.md.
function token(text) {
  const plain = /[A-Za-z0-9_-]/;
  const escaped = [...Buffer.from(text)]
    .map((byte) => {
      const char = String.fromCharCode(byte);
      return plain.test(char) ? char : `=${byte.toString(16).toUpperCase().padStart(2, "0")}`;
    })
    .join("");
  if (escaped === "") return "=";
  if (escaped === "-") return "=2D";
  if (escaped.length <= 96) return escaped;
  return `=H${createHash("sha256").update(text).digest("hex").slice(0, 32)}`;
}

const events = `${args.prefix}.events`;
const subjects = [
  ...args["event-type"].map((one) => `${events}.${token(one)}.*.*`),
  ...args.iccid.map((one) => `${events}.*.${token(one)}.*`),
  ...args.device.map((one) => `${events}.*.*.${token(one)}`),
];
const { hostname, port, username, password } = new URL(args.server.replace("nats:", "http:"));
const login = username ? { user: username, pass: password } : {};
const connection = await connect({ servers: `${hostname}:${port}`, ...login });
// An ordered consumer: it is made anew behind the last message where the connection or a server was lost.
const consumer = await jetstream(connection).consumers.get(args.stream, {
  opt_start_seq: Number(args.after) + 1,
  ...(subjects.length > 0 ? { filter_subjects: subjects } : {}),
});
const count = Number(args.count);
let seen = 0;
const messages = await consumer.consume();
for await (const message of messages) {
  const { seq, subject, headers } = message;
  if (!subject.startsWith(`${events}.`)) {
    console.log(JSON.stringify({ seq, skipped: subject }));
    continue;
  }
  seen += 1;
  const id = headers.get("Nats-Msg-Id");
  console.log(JSON.stringify({ seq, subject, id, content_type: headers.get("content-type"), body: message.string() }));
  if (seen === count) break;
}
await connection.close();
