"""The process that measures: asked for one unit a line, it answers in lines of JSON.

`process.py` is that process. A line says whose turn it is
({"trying": peer}), brings a row or a reading, or says that the unit is done. A kernel that reads
where it may not leaves the device useless to its process; that then names its trouble and ends.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from benchmarks.gpu.errors import measure_errors
from benchmarks.gpu.peers import forget_choices
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.readings import READINGS, Reading
from benchmarks.gpu.speed import Tell, leave_behind, measure_speed, sentence
from benchmarks.rows import Row


def serve(asked: TextIO, answers: TextIO, device: torch.device) -> None:
    """Answer every line of `asked`, until there is none."""

    def say(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    def tell(peer: str) -> None:
        say(trying=peer)

    before = ""
    for line in asked:
        try:
            unit = Unit.from_json(json.loads(line))
            if before != "speed" == unit.kind:
                forget_choices()
            before = unit.kind
            for found in measure(unit, device, tell):
                kind = "row" if isinstance(found, Row) else "reading"
                say(**{kind: found.to_json()})
            leave_behind(device)
        except Exception as error:
            say(trouble=sentence(error))
            return
        say(done=True)


def measure(unit: Unit, device: torch.device, tell: Tell) -> Iterator[Row | Reading]:
    """What a unit finds, each as soon as it is found; what raises becomes a refusal."""
    if unit.case is None:
        tell(unit.reading)
        try:
            yield from READINGS[unit.reading](device)
        except Exception as refusal:
            yield Reading(unit.reading, "", refused=sentence(refusal))
            leave_behind(device)
    elif unit.kind == "speed":
        yield from measure_speed(unit.case, unit.peers, device, tell, unit.beside)
    else:
        for peer in unit.peers:
            tell(peer)
            try:
                units, floor = measure_errors(unit.case, peer, device)
            except Exception as refusal:
                yield Row(unit.case, peer, threads=0, refused=sentence(refusal))
            else:
                yield Row(unit.case, peer, threads=0, error=units, stamp={"floor": floor})
            leave_behind(device)
