"""What the last 30 days looked like, for all SIMs: python report.py [--days 30]"""

import argparse
import os
from datetime import datetime, timedelta, timezone

import requests

URL = os.environ.get('SIMCAST_URL', 'http://127.0.0.1:8080')
HEADERS = {'Authorization': f"Bearer {os.environ['SIMCAST_TOKEN']}"} if 'SIMCAST_TOKEN' in os.environ else {}


def generate_activity_report(days=30):
    """Counted by the gateway as events come: there is no limit of rows, and nothing to compute here."""
    since = datetime.now(timezone.utc) - timedelta(days=days)
    response = requests.get(
        f'{URL}/v1/report',
        headers=HEADERS,
        params={'from': since.strftime('%Y-%m-%dT%H:%M:%SZ'), 'top': 5},
        timeout=10,
    )
    response.raise_for_status()
    return response.json()


parser = argparse.ArgumentParser()
parser.add_argument('--days', type=int, default=30)
days = parser.parse_args().days
report = generate_activity_report(days)

print(f"=== Activity Report ({days} days) ===")
print(f"\nTotal events: {report['totals']['events']}")

print("\nEvents by type:")
for row in report['by_type']:
    print(f"{row['event_type']:<20} {row['events']}")

print("\nMost active SIMs:")
for row in report['most_active']:
    print(f"{row['iccid']:<20} {row['events']}")
