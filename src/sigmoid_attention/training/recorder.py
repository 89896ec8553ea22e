"""Records norms and extremes inside a model during training, step by step, as Parquet.

Each number is one row, with the columns of `SCHEMA`. `module` is the name of a module or parameter;
`layer` is the index of its block, -1 outside the blocks.

    quantity              of                              statistics
    attention_weights     blocks.{i}.attention            sizes, frobenius,
                                                          row_mass_mean, row_mass_max
    attention_output      blocks.{i}.attention            sizes
    mlp_output            blocks.{i}.feed_forward         sizes
    residual_stream       blocks.{i}, after the block     sizes
    gradient              every parameter, unclipped      sizes
    parameter             every parameter, updated        sizes
    adam_m, adam_v        every parameter, updated        sizes
    loss, gradient_norm, learning_rate    the run         value

"Sizes" stands for three statistics: norm (the Euclidean norm of the whole tensor), rms (norm over
the root of the number of entries) and max_abs. frobenius is the norm of one attention matrix,
averaged over sequences and heads. The row mass is the sum of one query's weights (1 for a softmax).
Source: the quantities that the ablation trainer of arXiv 2409.04431 logged at every step.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.recording import recomputing
from sigmoid_attention.nn.sizes import whole_between
from sigmoid_attention.training.files import Damaged, reading, write_whole
from sigmoid_attention.training.tables import parquet_bytes, read_table

with lab_imports("sigmoid_attention.training"):
    import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("layer", pa.int64()),
        ("module", pa.string()),
        ("quantity", pa.string()),
        ("statistic", pa.string()),
        ("value", pa.float64()),
    ]
)
OUTPUTS = {
    r"blocks\.\d+": "residual_stream",
    r"blocks\.\d+\.attention": "attention_output",
    r"blocks\.\d+\.feed_forward": "mlp_output",
}
ROWS_IN_A_PART = 200_000


class Recorder:
    """Records every `every`-th step of a training run into the folder `path`.

    Rows are written in part files, each whole and never changed, so a killed run loses at most the
    current part. A resumed run deletes the parts of the steps that it repeats. It starts from the
    beginning if a part of an earlier step is damaged or, with `whole`, missing. Recording does not
    change the training: parameters are bit-identical with and without it. Values that activation
    checkpointing recomputes are recorded once.

    Raises:
        TypeError: `every` is no whole number.
        ValueError: `every` is not positive; or, when training starts anew, `path` already holds
            another run's records.

    Example:
        >>> import tempfile
        >>> from sigmoid_attention.nn import PRESETS, DecoderLM
        >>> from sigmoid_attention.training.tasks import Copying
        >>> from sigmoid_attention.training.trainer import TrainConfig, train
        >>> recorder = Recorder(Path(tempfile.mkdtemp()))
        >>> data = Copying(8, 2, vocab_size=9, seed=0)
        >>> _ = train(DecoderLM(PRESETS["tiny"]), data, TrainConfig(steps=2),
        ...           recorder=recorder, progress=False)
        >>> sorted(set(read_records(recorder.path)["step"].to_pylist()))
        [0, 1]
    """

    def __init__(self, path: Path, every: int = 1, *, whole: bool = False) -> None:
        whole_between("every", every, 1, 2**63 - 1, "at least 1")
        self.path = Path(path)
        self.every = every
        self._whole = whole
        self._step: int | None = None
        self._keys: list[tuple[str, str, str]] = []
        self._values: list[Tensor] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    @contextmanager
    def watch(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, first: int, resume: bool
    ) -> Iterator[None]:
        """Attach to a run that begins at step `first`; write the remaining rows at the end."""
        self._make_room(first, resume)
        handles = [
            *self._watch_outputs(model),
            *(
                parameter.register_post_accumulate_grad_hook(self._gradient_hook(name))
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            ),
            optimizer.register_step_post_hook(self._update_hook(model, optimizer)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.flush()

    def fault(self, first: int) -> str | None:
        """A message on damaged or missing records before step `first`; None if there are none."""
        recorded = set()
        for part in _parts(self.path):
            if _first_step(part) < first:
                try:
                    recorded |= set(read_table(part, SCHEMA)["step"].to_pylist())
                except Damaged as error:
                    return str(error)
        missing = sorted(set(range(0, first, self.every)) - recorded)
        if self._whole and missing:
            return f"{self.path} holds no records of step {missing[0]}"
        return None

    def begin(self, step: int) -> None:
        """Begin a step."""
        self._close_step()
        if len(self._columns["step"]) >= ROWS_IN_A_PART:
            self.flush()
        self._step = step if step % self.every == 0 else None

    def scalars(self, **values: float) -> None:
        """Record numbers of the run as a whole, by name."""
        if self._step is not None:
            for name, value in values.items():
                self._add("", name, {"value": torch.tensor(value, dtype=torch.float64)})

    def flush(self) -> None:
        """Write all rows so far as one part and record nothing until the next `begin`."""
        self._close_step()
        steps = self._columns["step"]
        if not steps:
            return
        part = self.path / f"steps-{steps[0]:09d}-{steps[-1]:09d}.parquet"
        write_whole(part, parquet_bytes(pa.table(self._columns, schema=SCHEMA), part.name))
        for column in self._columns.values():
            column.clear()

    def _make_room(self, first: int, resume: bool) -> None:
        parts = _parts(self.path)
        if parts and not resume:
            raise ValueError(f"the recorder's folder already holds records: {self.path}")
        for part in parts:
            if _first_step(part) >= first:
                part.unlink()

    def _watch_outputs(self, model: nn.Module) -> Iterator[Any]:
        for name, module in model.named_modules():
            for pattern, quantity in OUTPUTS.items():
                if re.fullmatch(pattern, name):
                    yield module.register_forward_hook(self._output_hook(name, quantity))
            if isinstance(module, Attention):
                yield module.register_forward_hook(self._weights_hook(name))

    def _output_hook(self, name: str, quantity: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            # A test between two steps is not recorded.
            if self._step is not None and module.training and not recomputing():
                tensor = output[0] if isinstance(output, tuple) else output
                self._add(name, quantity, _size(tensor))

        return hook

    def _weights_hook(self, name: str) -> Callable[..., None]:
        def hook(layer: Attention, inputs: tuple[Tensor, ...], _output: Any) -> None:
            if self._step is not None and layer.training and not recomputing():
                weights_BHNN = layer.weights(inputs[0]).float()
                mass_BHN = weights_BHNN.sum(-1)
                statistics = {
                    "frobenius": weights_BHNN.norm(dim=(-2, -1)).mean(),
                    "row_mass_mean": mass_BHN.mean(),
                    "row_mass_max": mass_BHN.max(),
                }
                self._add(name, "attention_weights", _size(weights_BHNN) | statistics)

        return hook

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if self._step is not None and parameter.grad is not None:
                self._add(name, "gradient", _size(parameter.grad))

        return hook

    def _update_hook(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if self._step is None:
                return
            for name, parameter in model.named_parameters():
                self._add(name, "parameter", _size(parameter))
                state = optimizer.state.get(parameter, {})
                for quantity, key in (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq")):
                    if key in state:
                        self._add(name, quantity, _size(state[key]))

        return hook

    def _add(self, module: str, quantity: str, statistics: dict[str, Tensor]) -> None:
        for statistic, value in statistics.items():
            self._keys.append((module, quantity, statistic))
            self._values.append(value)

    def _close_step(self) -> None:
        if self._step is not None and self._values:
            # One transfer for the whole step: each transfer synchronises with the GPU.
            device = self._values[0].device
            values = torch.stack([value.detach().to(device).double() for value in self._values])
            for (module, quantity, statistic), value in zip(
                self._keys, values.tolist(), strict=True
            ):
                row = (self._step, _layer(module), module, quantity, statistic, value)
                for column, entry in zip(self._columns.values(), row, strict=True):
                    column.append(entry)
        self._keys, self._values, self._step = [], [], None


def read_records(path: Path) -> pa.Table:
    """All rows of a recorder's folder, by step.

    Raises:
        ValueError: the folder has no records, or a part is damaged; names it.
    """
    parts = _parts(Path(path))
    if not parts:
        raise ValueError(f"there are no records in {path}")
    return pa.concat_tables(read_table(part, SCHEMA) for part in parts)


def _parts(path: Path) -> list[Path]:
    return sorted(part for part in path.glob("steps-*.parquet") if part.exists())


def _first_step(part: Path) -> int:
    with reading(part):
        return int(part.name.split("-")[1])


def _layer(module: str) -> int:
    match = re.match(r"blocks\.(\d+)", module)
    return int(match[1]) if match else -1


@torch.no_grad()
def _size(tensor: Tensor) -> dict[str, Tensor]:
    norm = tensor.float().norm()
    return {
        "norm": norm,
        "rms": norm / tensor.numel() ** 0.5,
        "max_abs": tensor.abs().amax().float(),
    }
