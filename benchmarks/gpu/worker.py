"""The worker process (`process.py`): it reads one unit a line and writes messages, lines of JSON.

A message names the peer that is measured next ({"trying": peer}), holds a row or a reading, or says
that the unit is done. After an illegal memory access the device is unusable in this process; the
worker then writes the error ({"trouble": sentence}) and exits.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from benchmarks.gpu.errors import measure_errors
from benchmarks.gpu.peers import clear_tuning
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.readings import READINGS, Reading
from benchmarks.gpu.speed import Announce, free_memory, measure_speed, sentence
from benchmarks.rows import Row


def serve(requests: TextIO, messages: TextIO, device: torch.device) -> None:
    """Measure the unit in each line of `requests`, until there is none."""

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    def announce(peer: str) -> None:
        send(trying=peer)

    before = ""
    for line in requests:
        try:
            unit = Unit.from_json(json.loads(line))
            if before != "speed" == unit.kind:
                clear_tuning()
            before = unit.kind
            for result in measure(unit, device, announce):
                kind = "row" if isinstance(result, Row) else "reading"
                send(**{kind: result.to_json()})
            free_memory(device)
        except Exception as error:
            send(trouble=sentence(error))
            return
        send(done=True)


def measure(unit: Unit, device: torch.device, announce: Announce) -> Iterator[Row | Reading]:
    """The results of a unit, each as soon as it is measured; an exception becomes a refusal."""
    if unit.case is None:
        announce(unit.reading)
        try:
            yield from READINGS[unit.reading](device)
        except Exception as refusal:
            yield Reading(unit.reading, "", refused=sentence(refusal))
            free_memory(device)
    elif unit.kind == "speed":
        yield from measure_speed(unit.case, unit.peers, device, announce, unit.beside)
    else:
        for peer in unit.peers:
            announce(peer)
            try:
                units, floor = measure_errors(unit.case, peer, device)
            except Exception as refusal:
                yield Row(unit.case, peer, threads=0, refused=sentence(refusal))
            else:
                yield Row(unit.case, peer, threads=0, error=units, stamp={"floor": floor})
            free_memory(device)
