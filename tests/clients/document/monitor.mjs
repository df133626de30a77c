// The "Node.js Example" of "Get All SIM Activity" in the GlobalSIM API document, word for word but for key, address and
// how axios is loaded.

import axios from "axios";

const [, , API_URL, API_KEY] = process.argv;

// --- from the API document, indentation restored ---

async function monitorActivity(eventType = null) {
  const params = new URLSearchParams();

  if (eventType) {
    params.append('event_type', eventType);
  }

  const response = await axios.get(
    `${API_URL}/sims/activity?${params.toString()}`,
    {
      headers: { 'Authorization': `Bearer ${API_KEY}` }
    }
  );

  return response.data;
}

// Monitor connection events
const connections = await monitorActivity('connection');

connections.activity.forEach(event => {
  console.log(`SIM ${event.iccid} connected to ${event.network.operator}`);
});
