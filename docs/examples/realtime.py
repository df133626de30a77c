"""Activity of one SIM as it happens: python realtime.py ICCID"""

import json
import os
import sys
import time

import requests

URL = os.environ.get('SIMCAST_URL', 'http://127.0.0.1:8080')
HEADERS = {'Authorization': f"Bearer {os.environ['SIMCAST_TOKEN']}"} if 'SIMCAST_TOKEN' in os.environ else {}


def monitor_sim_activity(iccid):
    """Each event once, also over lost connections: the cursor of the last one says where to go on."""
    cursor = None
    while True:
        headers = {**HEADERS, **({'Last-Event-ID': cursor} if cursor else {})}
        try:
            # A quiet stream says every 20 s that it lives.
            with requests.get(
                f'{URL}/v1/events/sse',
                params={'iccid': iccid, 'last': 10, 'exclude_flags': 'derived,enriched'},
                headers=headers,
                stream=True,
                timeout=(5, 40),
            ) as response:
                response.raise_for_status()
                event = None
                for line in response.iter_lines(decode_unicode=True):
                    name, _, value = line.partition(': ')
                    if name == 'id':
                        cursor = value
                    elif name == 'event':
                        event = value
                    elif name == 'data' and event is None:
                        yield json.loads(value)['data']
                    elif line == '':
                        event = None
        except requests.ConnectionError:
            time.sleep(1)


for event in monitor_sim_activity(sys.argv[1]):
    print(f"{event['timestamp']}: {event['event_type']}", flush=True)
    if event['network']:
        print(f"  Network: {event['network']['operator']}", flush=True)
