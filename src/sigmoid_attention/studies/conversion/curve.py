"""The evaluations of a conversion, in OUT/curve.json, which is rewritten at every evaluation."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sigmoid_attention.training.files import read_json, reading, write_json

NAME = "curve.json"


@dataclass(frozen=True)
class Point:
    """One evaluation: its stage, the steps and seconds of training before it, and its results."""

    stage: str
    step: int
    seconds: float
    found: dict[str, float]


@dataclass
class ConversionCurve:
    """The points of a run, with its setting, machine, versions and provenance.

    `model` has the SHA-256 of every file of the converted model by name, once it is written.
    """

    described: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    model: dict[str, str] = field(default_factory=dict)

    def has(self, stage: str, step: int) -> bool:
        return any((point.stage, point.step) == (stage, step) for point in self.points)

    def at(self, stage: str) -> Point:
        """The last point of a stage."""
        return next(point for point in reversed(self.points) if point.stage == stage)

    def write(self, out: Path) -> None:
        write_json(out / NAME, asdict(self))


def read_curve(out: Path) -> ConversionCurve:
    """The curve of a run's folder.

    Raises:
        ValueError: the folder has no curve, or the file is damaged.
    """
    path = out / NAME
    if not path.exists():
        raise ValueError(f"{out} holds no conversion (there is no {NAME} in it)")
    content = read_json(path)
    with reading(path):
        points = [Point(**point) for point in content.pop("points")]
        return ConversionCurve(points=points, **content)
