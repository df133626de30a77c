"""The "Activity Report Example" of the GlobalSIM API document, word for word but for key and address."""

import sys

API_KEY = sys.argv[2]
API_URL = sys.argv[1]

import requests

# --- from the API document, indentation restored ---

import pandas as pd
from datetime import datetime, timedelta

def generate_activity_report(days=30):
    """Generate activity report for all SIMs"""
    headers = {'Authorization': f'Bearer {API_KEY}'}

    end_date = datetime.now().date()
    start_date = end_date - timedelta(days=days)

    response = requests.get(
        f'{API_URL}/sims/activity',
        headers=headers,
        params={
            'start_date': start_date.isoformat(),
            'end_date': end_date.isoformat(),
            'limit': 1000
        }
    )

    activity = response.json()['activity']

    # Convert to DataFrame
    df = pd.DataFrame(activity)

    print(f"=== Activity Report ({days} days) ===")
    print(f"\nTotal events: {len(df)}")

    # Count by event type
    print("\nEvents by type:")
    print(df['event_type'].value_counts())

    # Most active SIMs
    print("\nMost active SIMs:")
    print(df['iccid'].value_counts().head(5))

    return df

# Generate report
report = generate_activity_report(30)
