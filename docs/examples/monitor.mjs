// Events of one type as they happen, after the last 50: node monitor.mjs connection

const url = (process.env.SIMCAST_URL ?? "http://127.0.0.1:8080").replace(/^http/, "ws");
const type = process.argv[2] ?? "connection";
let cursor;

function connect() {
  const start = cursor ? `after=${cursor}` : "last=50";
  const protocols = ["simcast.v1.json"];
  if (process.env.SIMCAST_TOKEN) {
    protocols.push(`bearer.${Buffer.from(process.env.SIMCAST_TOKEN).toString("base64url")}`);
  }
  const socket = new WebSocket(`${url}/v1/events/ws?event_type=${type}&exclude_flags=enriched&${start}`, protocols);
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    for (const event of message.items ?? []) {
      console.log(`SIM ${event.data.iccid} connected to ${event.data.network?.operator}`);
    }
    if (message.type === "gap") console.error("missed:", message);
    cursor = message.cursor ?? cursor;
  };
  // Where it was lost, it goes on: nothing is printed twice, nothing is left out.
  socket.onclose = ({ code }) => (code >= 4400 && code < 4500 ? process.exit(1) : setTimeout(connect, 1000));
}

connect();
