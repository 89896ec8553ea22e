"""What a conversion measured so far: OUT/curve.json, rewritten whole at every point."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sigmoid_attention.training.files import write_whole

NAME = "curve.json"


@dataclass(frozen=True)
class Point:
    """One evaluation: the stage's name, steps and seconds of training before it, what was found."""

    stage: str
    step: int
    seconds: float
    found: dict[str, float]


@dataclass
class Curve:
    """The points of a run, with the setting, machine, versions and provenance they hold for."""

    described: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0

    def has(self, stage: str, step: int) -> bool:
        return any((point.stage, point.step) == (stage, step) for point in self.points)

    def at(self, stage: str) -> Point:
        """The last point of a stage."""
        return next(point for point in reversed(self.points) if point.stage == stage)

    def write(self, out: Path) -> None:
        content = {
            "described": self.described,
            "seconds": self.seconds,
            "points": [asdict(point) for point in self.points],
        }
        write_whole(out / NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_curve(out: Path) -> Curve:
    """The curve of a run's folder.

    Raises:
        ValueError: the folder holds none.
    """
    path = out / NAME
    if not path.is_file():
        raise ValueError(f"{out} holds no conversion (there is no {NAME} in it)")
    content = json.loads(path.read_text())
    points = [Point(**point) for point in content["points"]]
    return Curve(content["described"], points, content["seconds"])
