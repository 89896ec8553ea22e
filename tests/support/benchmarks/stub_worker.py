"""A measuring process whose behaviour is set by the names of a unit's peers, for driver tests.

It imports nothing of the project, so it starts at once.
"""

import json
import os
import sys
import time


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def row(unit: dict, peer: str, **fields) -> str:
    nothing = {"wall": [], "cpu": [], "bytes": [], "ratio": None, "error": None, "refused": None}
    return json.dumps(unit["case"] | nothing | {"peer": peer, "threads": 0} | fields)


def measure(unit: dict) -> None:
    if unit["case"] is None:
        say(trying=unit["reading"])
        if unit["reading"] == "crash":
            os._exit(3)
        reading = {"name": unit["reading"], "unit": "x", "values": [1.0]}
        say(reading=json.dumps(reading))
    for peer in unit["beside"]:
        say(trying=peer)
        if peer == "crash":
            os.abort()
    for peer in unit["peers"]:
        if peer == "crash-at-once":
            os._exit(4)
        say(trying=peer)
        if peer == "crash":
            os.abort()
        if peer == "prints":
            print("Warning: {this is none}\n[1, 2]\n3", flush=True)
        if peer == "hang":
            time.sleep(60)
        if peer == "spoil":
            # Its own row is out; the device is not fit for the others.
            say(row=row(unit, peer, refused="it says"))
            say(trouble="the device is gone")
            sys.exit(1)
        say(row=row(unit, peer, wall=[1.0], process=os.getpid()))
    say(done=True)


if __name__ == "__main__":
    for line in sys.stdin:
        measure(json.loads(line))
