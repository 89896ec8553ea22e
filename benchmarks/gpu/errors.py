"""The correctness matrix: every feature and length on the shipped path, against float64.

A case of the operation "error" is one call, forward and backward; its row holds the error of the
output and of each gradient, relative to float64 in the Euclidean norm over sampled rows and
columns, in units of the floor (`exact.py`). The row's stamp holds the floor itself.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, T tokens, D head dim,
P pages, S tokens a page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import sampled_rows
from benchmarks.gpu.exact import Named, Piece, expected, to_dtype
from benchmarks.gpu.peers import PEERS, ready
from benchmarks.operations import DTYPES, Case, alibi_slopes, with_bounded_rows
from benchmarks.peers import minus_log_length
from sigmoid_attention import sigmoid_attention, sigmoid_decode, sigmoid_varlen_attention

# Of longer problems a sample of rows is compared.
COMPLETE = 2048
PAGE = 16
TENSORS, TERMS = ("query", "key", "value"), ("bias", "attn_mask", "alibi_slopes")
IMPLEMENTATIONS = ("gluon", "triton", "cpu", "tiled", "reference")


@dataclass(frozen=True)
class Call:
    """The operator with its arguments, their sequences, and how to split results into sequences.

    `cut` turns the output, or the gradient of an argument, into a tensor for each sequence.
    """

    operator: Callable[..., Any]
    arguments: dict[str, Any]
    pieces: list[Piece]
    cut: Callable[[str, Tensor], Sequence[Tensor]] = lambda name, tensor: tensor.unbind()
    # The names of the inputs with gradients.
    learns: tuple[str, ...] = (*TENSORS, *TERMS)

    def answer(self, impl: str) -> Named:
        """The output and all gradients, from one of this library's implementations."""
        arguments, leaves = dict(self.arguments), {}
        for name in self.learns:
            argument = arguments.get(name)
            if isinstance(argument, Tensor) and argument.is_floating_point():
                arguments[name] = leaves[name] = argument.detach().requires_grad_()
        out = self.operator(**arguments, impl=impl)
        if not leaves:
            return {"output": out}
        return {"output": out.detach()} | self._gradients(out, leaves)

    def answer_of(self, peer: str, case: Case) -> Named:
        """The same with an operator that takes only the three tensors."""
        leaves = {name: self.arguments[name].detach() for name in TENSORS}
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
        out = ready(peer, case, leaves["query"].device)(*leaves.values())
        return {"output": out.detach()} | self._gradients(out, leaves)

    def _gradients(self, out: Tensor, leaves: Named) -> Named:
        upstream = torch.cat([piece.upstream.flatten() for piece in self.pieces])
        parts = torch.cat([part.flatten() for part in self.cut("output", out)])
        return dict(
            zip(leaves, torch.autograd.grad(parts, list(leaves.values()), upstream), strict=True)
        )


def measure_errors(
    case: Case, peer: str, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors in units of the floor, and the floor as a relative error, of output and gradients.

    Raises:
        ValueError: a peer is to do more than plain attention, or there is no such feature.
    """
    call = build(case, device)
    if peer in IMPLEMENTATIONS:
        given = call.answer(peer)
    elif case.feature:
        raise ValueError(f"peers: {peer} is compared without {case.feature} alone")
    else:
        given = call.answer_of(peer, case)
    return errors(call, given, DTYPES[case.dtype])


def errors(
    call: Call, given: Named, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, float]]:
    """The same for a given result."""
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in given}
    for name, whole in given.items():
        assert len(call.cut(name, whole)) == len(call.pieces)
    for place, piece in enumerate(call.pieces):
        rows_R, columns_C = (_sample(x.shape[1], x.device) for x in (piece.query, piece.key))
        exact = expected(piece, rows_R, columns_C, lambda result: result)
        least = expected(piece, rows_R, columns_C, to_dtype(dtype))
        for name in given.keys() & exact.keys():
            found = call.cut(name, given[name])[place].double()
            if name in ("output", "query"):
                found = found[:, rows_R]
            elif name in ("key", "value"):
                found = found[:, columns_C]
            parts = (found - exact[name], least[name] - exact[name], exact[name])
            squares[name] += torch.stack([part.square().sum() for part in parts]).cpu()
    measured = {name: s.tolist() for name, s in squares.items() if s[2] > 0}
    # NaN counts as an infinite error.
    units = {
        name: (own / least) ** 0.5 if math.isfinite(own) else math.inf
        for name, (own, least, _) in measured.items()
    }
    return units, {name: (least / size) ** 0.5 for name, (_, least, size) in measured.items()}


def _sample(length: int, device: torch.device) -> Tensor:
    rows = torch.arange(length) if length <= COMPLETE else sampled_rows(length)
    return rows.to(device)


# From a case to its call ----------------------------------------------------------------------


def build(case: Case, device: torch.device) -> Call:
    """The call of a case, of the same numbers every time.

    Raises:
        ValueError: there is no such feature.
    """
    if case.feature not in FEATURES:
        raise ValueError(f"feature must be of {', '.join(FEATURES)}, got {case.feature!r}")
    chance = torch.Generator(device).manual_seed(case.length + case.dim)

    def normal(*sizes: int) -> Tensor:
        drawn = torch.randn(sizes, generator=chance, device=device)
        return drawn.to(DTYPES[case.dtype])

    lengths, layout, terms = FEATURES[case.feature](case)
    heads, key_heads = case.heads, case.key_heads or case.heads
    pieces = [
        Piece(
            query=normal(heads, queries, case.dim),
            key=normal(key_heads, keys, case.dim),
            value=normal(key_heads, keys, case.dim),
            upstream=normal(heads, queries, case.dim),
            scale=case.dim**-0.5,
            **{"bias": minus_log_length(case)} | terms(normal, queries, keys),
        )
        for queries, keys in lengths
    ]
    return layout(case, pieces)


def _settings(case: Case, piece: Piece) -> dict[str, Any]:
    return {
        "softcap": piece.softcap,
        "window_size": piece.window,
        "enable_gqa": case.key_heads > 0,
        "skip_tolerance": "rounding",
    }


def _stacked(pieces: Sequence[Piece], name: str) -> Any:
    parts = [getattr(piece, name) for piece in pieces]
    return torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0]


def dense(case: Case, pieces: list[Piece]) -> Call:
    """A row of the batch for each sequence, in storage (B, N, H, D), as projections leave it."""
    tensors = {
        name: _stacked(pieces, name).transpose(1, 2).contiguous().transpose(1, 2)
        for name in ("query", "key", "value")
    }
    terms = {
        "bias": _stacked(pieces, "bias"),
        "attn_mask": _stacked(pieces, "attn_mask"),
        "alibi_slopes": _stacked(pieces, "slopes"),
    }
    return Call(sigmoid_attention, tensors | terms | _settings(case, pieces[0]), pieces)


def fixed(case: Case, pieces: list[Piece]) -> Call:
    """The same with terms without gradients: gradients of terms run in other kernels."""
    return replace(dense(case, pieces), learns=TENSORS)


def bounded(case: Case, pieces: list[Piece]) -> Call:
    """The same with logits bounded as in the timed cases."""
    parts = [
        replace(piece, query=with_bounded_rows(piece.query), key=with_bounded_rows(piece.key))
        for piece in pieces
    ]
    return fixed(case, parts)


def packed(case: Case, pieces: list[Piece]) -> Call:
    """All sequences packed one after another."""
    ends = [
        torch.tensor([0] + [getattr(p, name).shape[1] for p in pieces]).cumsum(0)
        for name in ("query", "key")
    ]
    device = pieces[0].query.device
    arguments = {
        name: torch.cat([getattr(piece, name) for piece in pieces], 1).transpose(0, 1)
        for name in ("query", "key", "value")
    } | {
        "cu_seq_q": ends[0].to(device, torch.int32),
        "cu_seq_k": ends[1].to(device, torch.int32),
        "max_q": max(piece.query.shape[1] for piece in pieces),
        "max_k": max(piece.key.shape[1] for piece in pieces),
        "bias": pieces[0].bias,
        "alibi_slopes": _stacked(pieces, "slopes"),
    }

    def cut(name: str, whole: Tensor) -> Sequence[Tensor]:
        if name in TERMS:
            return whole.unbind()
        lengths = ends[name in ("key", "value")].diff().tolist()
        return [part.transpose(0, 1) for part in whole.split(lengths)]

    return Call(sigmoid_varlen_attention, arguments | _settings(case, pieces[0]), pieces, cut)


def cached(case: Case, pieces: list[Piece], page: int = 0) -> Call:
    """A few queries of each sequence against its part of a cache; the unused part is NaN."""
    pages = -(-max(piece.key.shape[1] for piece in pieces) // PAGE) + 1
    device = pieces[0].query.device
    arguments: dict[str, Any] = {
        "query": _stacked(pieces, "query"),
        "seqused_k": torch.tensor([p.key.shape[1] for p in pieces], dtype=torch.int32).to(device),
        "bias": _stacked(pieces, "bias"),
        "alibi_slopes": _stacked(pieces, "slopes"),
        "is_causal": False,
    }
    if page:
        table = torch.arange(len(pieces) * pages, device=device).flip(0).view(-1, pages)
        arguments["block_table"] = table.int()
    for name in ("key", "value"):
        parts = [getattr(piece, name) for piece in pieces]
        cache = parts[0].new_full(
            (len(parts), parts[0].shape[0], pages * PAGE, case.dim), torch.nan
        )
        for place, part in enumerate(parts):
            cache[place, :, : part.shape[1]] = part
        if page:
            by_page = cache.unflatten(2, (pages, page)).permute(0, 2, 3, 1, 4).flatten(0, 1)
            cache = torch.empty_like(by_page)
            cache[table.flatten()] = by_page
        arguments[f"{name}_cache"] = cache
    return Call(sigmoid_decode, arguments | _settings(case, pieces[0]), pieces, learns=())


def paged(case: Case, pieces: list[Piece]) -> Call:
    """The same with a paged cache."""
    return cached(case, pieces, PAGE)


Normal = Callable[..., Tensor]
Terms = Callable[[Normal, int, int], dict[str, Any]]
Plan = tuple[list[tuple[int, int]], Callable[[Case, list[Piece]], Call], Terms]


def _feature(
    terms: Callable[[Case, Normal, int, int], dict[str, Any]] = lambda case, normal, q, k: {},
    layout: Callable[[Case, list[Piece]], Call] = dense,
    lengths: Callable[[int], list[tuple[int, int]]] | None = None,
) -> Callable[[Case], Plan]:
    """What a feature makes of a case: lengths of queries and keys, a layout, terms of the logits.

    Without `lengths` all sequences of the batch have the case's.
    """

    def plan(case: Case) -> Plan:
        n = case.length

        def own(normal: Normal, queries: int, keys: int) -> dict[str, Any]:
            window = (-1, 0 if case.is_causal else -1)
            return {"window": window} | terms(case, normal, queries, keys)

        return lengths(n) if lengths else [(n, n)] * case.batch, layout, own

    return plan


def _slopes(case: Case, normal: Normal, queries: int, keys: int) -> dict[str, Any]:
    return {"slopes": alibi_slopes(case.heads).to(normal(1).device)}


def _window(case: Case, normal: Normal, queries: int, keys: int) -> dict[str, Any]:
    return {"window": (case.length // 4, 0 if case.is_causal else 5)}


def _bias_of_heads(case: Case, normal: Normal, queries: int, keys: int) -> dict[str, Any]:
    return {"bias": normal(case.heads, 1, 1).float() - 4}


def _bias_of_rows(case: Case, normal: Normal, queries: int, keys: int) -> dict[str, Any]:
    return {"bias": normal(case.heads, queries, 1).float() - 4}


def _all_terms(case: Case, normal: Normal, queries: int, keys: int) -> dict[str, Any]:
    given = (case, normal, queries, keys)
    return _slopes(*given) | _bias_of_heads(*given) | _window(*given) | {"softcap": 2.0}


RAGGED = {"lengths": lambda n: [(n, n), (n // 3, n // 3), (1, 1), (n // 7, n // 2)]}
CACHES = {"lengths": lambda n: [(1, n), (1, n // 3), (1, 1)]}
FEATURES: dict[str, Callable[[Case], Plan]] = {
    "": _feature(),
    "alibi": _feature(_slopes),
    "bounded alibi": _feature(_slopes, layout=bounded),
    "window": _feature(_window),
    "softcap": _feature(lambda case, normal, q, k: {"softcap": 2.0}),
    "head bias": _feature(_bias_of_heads),
    "fixed head bias": _feature(_bias_of_heads, layout=fixed),
    "row bias": _feature(_bias_of_rows),
    "float mask": _feature(lambda case, normal, q, k: {"attn_mask": normal(1, q, k)}),
    "bool mask": _feature(lambda case, normal, q, k: {"attn_mask": normal(1, q, k) > 0}),
    "all terms": _feature(_all_terms),
    "fewer queries": _feature(lengths=lambda n: [(n // 2 + 1, n)] * 2),
    "packed": _feature(layout=packed, **RAGGED),
    "packed alibi": _feature(_slopes, layout=packed, **RAGGED),
    "decode": _feature(layout=cached, **CACHES),
    "decode alibi": _feature(_slopes, layout=cached, **CACHES),
    "decode 5 queries": _feature(layout=cached, lengths=lambda n: [(5, n), (5, n // 3), (5, 6)]),
    "decode all terms": _feature(_all_terms, layout=cached, **CACHES),
    "paged": _feature(layout=paged, **CACHES),
}  # fmt: skip
PLAIN_PEERS = tuple(peer for peer in PEERS if peer not in IMPLEMENTATIONS)
