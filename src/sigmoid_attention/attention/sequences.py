"""Offsets and lengths of the sequences of a packed or cached call.

Shape letters: B sequences, H query or key heads, T tokens of a row, Q longest query, K longest
key, D head or value dim, P pages in the cache, S tokens a page, M pages a sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """The ranges of queries and keys of each sequence: in its own row, or ``packed`` in one row.

    Sequence s has the queries ``start_q_B[s] : start_q_B[s] + length_q_B[s]`` and its keys
    likewise; its last query is at the position of its last key. A sequence with its own row starts
    at 0, and the elements after its length may have any value. With ``block_table_BM`` key and
    value are (P, H, S, D), and token t of sequence s is token t % S of page
    ``block_table_BM[s, t // S]``; entries without tokens are 0. All tensors are contiguous int64 on
    the device of the query; the rows of ``offsets_and_lengths_4B`` are start_q, length_q, start_k
    and length_k.
    """

    offsets_and_lengths_4B: Tensor
    max_q: int
    max_k: int
    block_table_BM: Tensor | None = None
    packed: bool = False

    @property
    def count(self) -> int:
        return self.offsets_and_lengths_4B.shape[1]

    @property
    def start_q_B(self) -> Tensor:
        return self.offsets_and_lengths_4B[0]

    @property
    def length_q_B(self) -> Tensor:
        return self.offsets_and_lengths_4B[1]

    @property
    def start_k_B(self) -> Tensor:
        return self.offsets_and_lengths_4B[2]

    @property
    def length_k_B(self) -> Tensor:
        return self.offsets_and_lengths_4B[3]

    def raw_lengths_and_table(self) -> tuple[Tensor, Tensor | None]:
        """Lengths and block table, for kernels that read nothing beyond a sequence's end.

        Both are int32 or int64; table entries without tokens may have any value.
        """
        return self.length_k_B, self.block_table_BM

    def positions(self) -> Tensor:
        """The queries' positions on the key axis of their sequence, (B, 1, Q, 1)."""
        place = torch.arange(self.max_q, device=self.length_q_B.device)[:, None]
        return place + (self.length_k_B - self.length_q_B)[:, None, None, None]

    def keys(self) -> Tensor:
        """The number of keys of each sequence, (B, 1, 1, 1)."""
        return self.length_k_B[:, None, None, None]

    def within(self) -> Tensor:
        """True for the positions before the end of each sequence, (B, 1, 1, K)."""
        return torch.arange(self.max_k, device=self.length_k_B.device) < self.keys()

    def padded(self) -> "Sequences":
        """The same sequences with one batch row each, the layout of the methods below."""
        zeros = torch.zeros_like(self.start_q_B)
        places = torch.stack((zeros, self.length_q_B, zeros, self.length_k_B))
        return Sequences(places, self.max_q, self.max_k)

    def padded_queries(self, query: Tensor) -> Tensor:
        """(B, H, Q, D), with zeros after the end of a packed sequence."""
        return _rows(query, self.start_q_B, self.length_q_B, self.max_q) if self.packed else query

    def padded_keys(self, key: Tensor) -> Tensor:
        """(B, H, K, D), with zeros after the end of a sequence."""
        if self.packed:
            return _rows(key, self.start_k_B, self.length_k_B, self.max_k)
        if self.block_table_BM is not None:
            key = of_pages(key, self.block_table_BM)
        # The memory of a cache after its tokens is not initialised: a NaN there would reach the
        # output even with a weight of zero.
        return key.masked_fill(~self.within().mT, 0)

    def unpadded(self, rows_BHQ: Tensor, tokens: int) -> Tensor:
        """A result for padded queries, (B, H, Q, ...), in the layout of the query.

        Tokens after the last sequence get zeros.
        """
        if not self.packed:
            return rows_BHQ
        token_T = torch.arange(tokens, device=rows_BHQ.device)
        sequence_T = torch.searchsorted(self.start_q_B, token_T, right=True) - 1
        inside_T = token_T - self.start_q_B[sequence_T]
        exists_T = inside_T < self.length_q_B[sequence_T]
        found_TH = rows_BHQ.transpose(1, 2)[sequence_T, inside_T.where(exists_T, 0)]
        exists = exists_T.view(-1, *(1,) * (found_TH.dim() - 1))
        return found_TH.where(exists, 0).transpose(0, 1)[None]


def of_pages(pages_PHSD: Tensor, table_BM: Tensor) -> Tensor:
    """The pages of each sequence, concatenated, (B, H, K, D)."""
    if pages_PHSD.shape[0] == 0:
        # A table without tokens has page 0 in every entry.
        pages_PHSD = torch.cat([pages_PHSD, pages_PHSD.new_zeros(1, *pages_PHSD.shape[1:])])
    return pages_PHSD.transpose(1, 2)[table_BM].flatten(1, 2).transpose(1, 2)


def _rows(packed_1HTD: Tensor, start_B: Tensor, length_B: Tensor, longest: int) -> Tensor:
    """(B, H, longest, D), with zeros after the end of a sequence."""
    packed_THD = packed_1HTD[0].transpose(0, 1)
    place = torch.arange(longest, device=packed_THD.device)
    # Positions after a sequence's end index the appended row of zeros.
    with_zero = torch.cat([packed_THD, packed_THD.new_zeros(1, *packed_THD.shape[1:])])
    index = torch.where(place < length_B[:, None], start_B[:, None] + place, packed_THD.shape[0])
    return with_zero[index].transpose(1, 2)


class DeviceCache(Sequences):
    """A cache whose lengths and pages cannot be validated: they are on a GPU or being traced.

    A check would wait for the device. The offsets and the int64 block table are computed on demand,
    because they take kernel launches that a decoding step does not need.
    """

    used_B: Tensor
    given_BM: Tensor | None
    page: int

    def __init__(
        self, queries: int, seqused_k: Tensor, capacity: int, block_table: Tensor | None, page: int
    ) -> None:
        own = {"used_B": seqused_k, "given_BM": block_table, "page": page}
        self.__dict__.update(own, max_q=queries, max_k=capacity, packed=False)

    @property
    def count(self) -> int:
        return self.used_B.shape[0]

    @property
    def offsets_and_lengths_4B(self) -> Tensor:
        starts = torch.zeros_like(self.used_B, dtype=torch.int64)
        return torch.stack((starts, starts + self.max_q, starts, self.used_B.long()))

    @property
    def block_table_BM(self) -> Tensor | None:
        return None if self.given_BM is None else used_pages(self.given_BM, self.used_B, self.page)

    def raw_lengths_and_table(self) -> tuple[Tensor, Tensor | None]:
        return self.used_B, self.given_BM


def used_pages(block_table_BM: Tensor, used_B: Tensor, page_size: int) -> Tensor:
    """The block table with page 0 in the entries without tokens, which may have any value."""
    starts_M = torch.arange(block_table_BM.shape[1], device=block_table_BM.device) * page_size
    return block_table_BM.long().masked_fill(starts_M >= used_B[:, None], 0).contiguous()
