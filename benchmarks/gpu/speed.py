"""Speed: one case, with all its peers in alternation and a row for each.

Tensors are drawn on the device. Those of attention have the memory order (B, N, H, D) of a
projection, a cache has (B, G, N, D). A decoding step is timed as a captured graph if it can be
captured (the row's stamp holds that), with cold caches.

Shape letters: B batch, H heads, G key heads, N tokens, D head dim.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.automatic import tried_by_auto
from benchmarks.gpu.peers import OURS, ready
from benchmarks.gpu.stopwatch import COLD_BYTES, captured, gpu_stopwatch
from benchmarks.operations import DTYPES, OPERATIONS, Case, Inputs, Work, with_bounded_rows, work
from benchmarks.rows import Row, times
from benchmarks.timing import Budget, Seconds, Stopwatch, take_turns

BUDGET = Budget(seconds=1.0, least=5, least_short=8, most=12)
WARM_UPS = 3

Announce = Callable[[str], None]


def measure_speed(
    case: Case,
    peers: tuple[str, ...],
    device: torch.device,
    announce: Announce,
    beside: tuple[str, ...] = (),
    stopwatch: Stopwatch | None = None,
    budget: Budget = BUDGET,
) -> Iterator[Row]:
    """A row for each peer, also for one that refused; `announce` is called before each turn.

    The peers in `beside` are timed in the same rounds, without rows. The stamps hold the costs of
    our operators in these rounds, and what `impl="auto"` tries.
    """
    tensors = inputs(case, device)
    rows: dict[str, Row] = {}
    works: dict[str, Work] = {}
    order = tried_by_auto(case, tensors, device) if {*OURS} & {*peers} else ()
    for peer in (*peers, *beside):
        if peer in beside and not works:
            return
        announce(peer)
        stamp = {"auto": order} if peer in OURS else {}
        try:
            works[peer], how = _prepared(case, peer, tensors, device)
        except Exception as refusal:
            if peer in peers:
                yield Row(case, peer, threads=0, refused=sentence(refusal), stamp=stamp)
            free_memory(device)
            continue
        rows[peer] = Row(case, peer, threads=0, stamp=stamp | how)
    names = {compute: peer for peer, compute in works.items()}
    watch = stopwatch or gpu_stopwatch(_cooling(device) if case.operation == "decode" else None)

    def announced(compute: Work) -> Seconds:
        announce(names[compute])
        return watch(compute)

    rows = {
        peer: replace(rows[peer], **times(turns))
        for peer, turns in take_turns(works, announced, budget).items()
    }
    ours = {peer: row.cost for peer, row in rows.items() if peer in OURS}
    for peer in (peer for peer in rows if peer in peers):
        yield replace(rows[peer], stamp=rows[peer].stamp | {"beside": ours})


def _prepared(
    case: Case, peer: str, tensors: Inputs, device: torch.device
) -> tuple[Work, dict[str, Any]]:
    """The work to time, after some calls, and how it is called, for the row's stamp."""
    compute = work(case, tensors, ready(peer, case, device))
    for _ in range(WARM_UPS):
        compute()
    stamp = {}
    if case.operation == "decode" and device.type == "cuda":
        try:
            compute, stamp["graph"] = captured(compute), True
        except RuntimeError:
            stamp["graph"] = False
    _wait(device)
    return compute, stamp


def free_memory(device: torch.device) -> None:
    """Free the memory of a case; raises if the device is unusable."""
    gc.collect()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cooling(device: torch.device) -> Work:
    # It is read: written data would be flushed from the caches while the next step is timed.
    store = torch.ones(COLD_BYTES // 4, device=device)
    return lambda: store.amax()


def sentence(error: Exception) -> str:
    """The error on one line that fits into a row."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}"


def inputs(case: Case, device: torch.device) -> Inputs:
    """Gaussian tensors; of an ALiBi case with rows of one length, so that logits are bounded."""
    chance = torch.Generator(device).manual_seed(case.length)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=chance, device=device, dtype=DTYPES[case.dtype])

    if case.operation == "copy":
        source, target = torch.empty(2, case.length, device=device, dtype=DTYPES[case.dtype])
        return Inputs(source, target, target, target)
    if case.operation == "gemm":
        left, right = normal(case.length, case.length), normal(case.length, case.length)
        return Inputs(left, right, right, right)
    key_heads = case.key_heads or case.heads
    if case.operation == "decode":
        cache = case.batch, key_heads, case.length, case.dim
        query = normal(case.batch, case.heads, 1, case.dim)
        return Inputs(query, normal(*cache), normal(*cache), query)
    shape = case.batch, case.length, case.heads, case.dim
    query, key, value, upstream = (normal(*shape).transpose(1, 2) for _ in range(4))
    if OPERATIONS[case.operation].alibi:
        query, key = with_bounded_rows(query), with_bounded_rows(key)
    return Inputs(query, key, value, upstream)
