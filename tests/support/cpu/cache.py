"""A call of the decode kernel."""

import math
from dataclasses import dataclass

import torch

from tests.support.attention.calls import Call
from tests.support.cpu.calls import laid_out

SPARE = 3  # tokens of a cache's capacity that are not written


@dataclass(frozen=True)
class Cache:
    """Tokens in use of each sequence, page size (0: contiguous), and a call's rest."""

    used: tuple[int, ...]
    page_size: int
    layout: str
    call: Call

    def build(self, dtype: torch.dtype) -> tuple[tuple, dict]:
        """Keys and values, in pages in any order, among NaN where no token is."""
        capacity = max(self.used) + SPARE
        pages = -(-capacity // self.page_size) if self.page_size else 0
        if pages:
            capacity = pages * self.page_size
        call = self.call.but(batch=len(self.used), keys=capacity)
        (query, *caches), arguments = call.build(dtype)
        used = torch.tensor(self.used)
        unwritten = torch.arange(capacity) >= used[:, None, None, None]
        caches = [cache.masked_fill(unwritten.mT, math.nan) for cache in caches]
        arguments["seqused_k"] = used
        if not pages:
            return (query, *(laid_out(cache, self.layout) for cache in caches)), arguments
        chance = torch.Generator().manual_seed(call.seed)
        table = torch.randperm(len(self.used) * pages, generator=chance).view(-1, pages)
        stored = []
        for cache in caches:
            by_page = (
                cache.unflatten(2, (pages, self.page_size)).permute(0, 2, 3, 1, 4).flatten(0, 1)
            )
            place = torch.empty_like(by_page)
            place[table.flatten()] = by_page
            stored.append(place)
        arguments["block_table"] = table
        return (query, *stored), arguments
