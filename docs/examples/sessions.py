"""Sessions of one SIM in the last seven days: python sessions.py ICCID"""

import os
import sys
from datetime import datetime, timedelta

import requests

URL = os.environ.get('SIMCAST_URL', 'http://127.0.0.1:8080')
HEADERS = {'Authorization': f"Bearer {os.environ['SIMCAST_TOKEN']}"} if 'SIMCAST_TOKEN' in os.environ else {}


def get_sim_sessions(iccid, days=7):
    end_date = datetime.now().date()
    params = {'start_date': (end_date - timedelta(days=days)).isoformat(), 'end_date': end_date.isoformat()}
    sessions = []
    while True:
        response = requests.get(
            f'{URL}/v1/sims/{iccid}/sessions',
            headers=HEADERS,
            params={**params, 'limit': 100, 'offset': len(sessions)},
            timeout=10,
        )
        response.raise_for_status()
        page = response.json()
        sessions += page['sessions']
        if not page['sessions'] or len(sessions) >= page['total']:
            return {**page, 'sessions': sessions}


sessions_data = get_sim_sessions(sys.argv[1])

print(f"Total sessions: {sessions_data['summary']['total_sessions']}")
print(f"Total data: {sessions_data['summary']['total_data_mb']:.2f} MB")

print("\nRecent sessions:")
for session in sessions_data['sessions'][:5]:
    print(f"  {session['network']['country']}: {session['data_usage']['total_mb']:.2f} MB")
