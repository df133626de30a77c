"""The "Python Example" of "Get SIM Sessions" in the GlobalSIM API document, word for word but for key, address and SIM."""

import sys

API_KEY = sys.argv[2]
API_URL = sys.argv[1]

# --- from the API document, indentation restored ---

import requests
from datetime import datetime, timedelta

def get_sim_sessions(iccid, days=7):
    headers = {'Authorization': f'Bearer {API_KEY}'}

    end_date = datetime.now().date()
    start_date = end_date - timedelta(days=days)

    params = {
        'start_date': start_date.isoformat(),
        'end_date': end_date.isoformat()
    }

    response = requests.get(
        f'{API_URL}/sims/{iccid}/sessions',
        headers=headers,
        params=params
    )

    return response.json()

# Get sessions for last 7 days
iccid = sys.argv[3]
sessions_data = get_sim_sessions(iccid, days=7)

print(f"Total sessions: {sessions_data['summary']['total_sessions']}")
print(f"Total data: {sessions_data['summary']['total_data_mb']:.2f} MB")

print("\nRecent sessions:")
for session in sessions_data['sessions'][:5]:
    print(f"  {session['network']['country']}: {session['data_usage']['total_mb']:.2f} MB")
