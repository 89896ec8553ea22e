"""Lets PyPI's torchvision, which is built for CUDA, be imported beside a CPU build of torch.

Its library does not load there, and its Python part then asks for operators that nobody defined.
transformers and timm import it wherever it is installed, and use none of these operators in tests.
"""

import importlib.util
from pathlib import Path

import torch


def define_missing_operators() -> torch.library.Library | None:
    """Define them without an implementation; the answer has to be kept for as long as they are."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None:
        return None
    if "+cu" not in Path(found.origin).with_name("version.py").read_text():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


LIBRARY = define_missing_operators()
