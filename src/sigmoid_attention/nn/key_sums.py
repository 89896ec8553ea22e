"""The sums of the keys that the last token of a cache sees, for the means of centred keys.

The sums are in float64. A float32 sum of 100,000 keys of mean 100 and variance 1 leaves an error of
1e-3 in their mean, and of 3e-4 in the mean of a window of 1024; in float64 both were exact.

Shape letters: B batch, H query heads, G key heads, K stored tokens, N new tokens, D head dim.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl.cpu.abi import supports
from sigmoid_attention.attention.impl.cpu.key_means import next_bias


class KeySums(NamedTuple):
    """The sum of the keys that the last of ``tokens`` stored tokens sees, in float64.

    A key that leaves a window is subtracted, but an infinity or a NaN cannot be. So the sum of a
    window is made from the stored keys again after ``left`` tokens, when the first key that was
    added since then is about to leave. It is made again for every token while a key in the window
    is not ``finite``. ``stored_BGKD`` are the keys that were summed: a caller may give the cache
    other ones.
    """

    tokens: int
    left: int
    sum_BG1D: Tensor
    mask_BK: Tensor | None
    made_at: int
    finite: bool
    stored_BGKD: Tensor

    @classmethod
    def of(cls, key_BGKD: Tensor, tokens: int, left: int, mask_BK: Tensor | None) -> Self:
        """The sum of the last of these tokens' keys and of ``left`` before it, -1 for all keys.

        Keys with False in the mask have no influence.
        """
        first = 0 if left < 0 else max(0, tokens - 1 - left)
        keys = _shown(key_BGKD, slice(first, tokens), mask_BK)
        total = keys.sum(2, keepdim=True, dtype=torch.float64)
        # A GPU is not asked, since that would wait for it: there the sum of a window is made for
        # every token.
        finite = left < 0 or (_readable(total) and bool(total.isfinite().all()))
        mask_BK = None if mask_BK is None else _kept(mask_BK[:, :tokens])
        return cls(tokens, left, total, mask_BK, tokens, finite, key_BGKD)

    def covers(self, key_BGKD: Tensor, tokens: int, left: int, mask_BK: Tensor | None) -> bool:
        """Whether these are the sums of the first ``tokens`` keys under this window and mask.

        Two masks of a GPU or of a compiled graph are not compared, since that would wait for the
        device or break the graph.
        """
        if (tokens, left) != (self.tokens, self.left) or key_BGKD is not self.stored_BGKD:
            return False
        before = self.mask_BK
        if before is None or mask_BK is None:
            shown = mask_BK if before is None else before
            return shown is None or (_readable(shown) and bool(shown[:, :tokens].all()))
        if not (_readable(before) and _readable(mask_BK)):
            return True
        return torch.equal(before, mask_BK[:, :tokens])

    def advanced(
        self, key_BGKD: Tensor, tokens: int, mask_BK: Tensor | None
    ) -> tuple[Tensor, Self]:
        """The means that the tokens after these see, (B, G, N, D), and the sums of all ``tokens``.

        The mean of no key is 0.
        """
        if self.left >= 0 and tokens - self.tokens != 1:
            means = self._means_in_windows(key_BGKD, tokens, mask_BK)
            return means, self.of(key_BGKD, tokens, self.left, mask_BK)
        if not self._continues(tokens):
            new = self.of(key_BGKD, tokens, self.left, mask_BK)
            return new.sum_BG1D / self._counts(tokens, mask_BK, new.sum_BG1D), new
        # Each operation saved is noticed in a decoding step.
        keys = _shown(key_BGKD, slice(self.tokens, tokens), mask_BK).double()
        if tokens - self.tokens != 1:
            keys = keys.cumsum(2)
        sums = keys + self.sum_BG1D
        leaving = self.tokens - 1 - self.left
        if self.left >= 0 and leaving >= 0:
            sums = sums - _shown(key_BGKD, slice(leaving, leaving + 1), mask_BK)
        means = sums / self._counts(tokens, mask_BK, sums)
        last = sums[:, :, -1:] if sums.shape[2] else self.sum_BG1D
        mask_BK = None if mask_BK is None else _kept(mask_BK)
        return means, self._replace(tokens=tokens, sum_BG1D=last, mask_BK=mask_BK)

    def next_bias(
        self,
        query_BH1D: Tensor,
        key_BGKD: Tensor,
        tokens: int,
        scale: float,
        strength_H: Tensor,
        offset_H: Tensor,
    ) -> "tuple[Tensor, KeySums] | None":
        """offset - strength scale q · k̄ of one token after these, (B, H, 1, 1), and the sums.

        The sums change in place: read the old tuple no more. One call of the CPU kernel, since a
        decoding step notices each operation of PyTorch. None where the kernel does not compute it.
        """
        if tokens - self.tokens != 1 or self.mask_BK is not None or not self._continues(tokens):
            return None
        tensors = (query_BH1D, key_BGKD, strength_H, offset_H)
        heads = query_BH1D.shape[1]
        if not (
            query_BH1D.is_cpu
            and key_BGKD.is_cpu
            and strength_H.is_cpu
            and offset_H.is_cpu
            and supports(query_BH1D.dtype)
            and query_BH1D.dtype == key_BGKD.dtype
            # The kernel reads so far; batch and head dim.
            and query_BH1D.shape[::3] == key_BGKD.shape[::3]
            and _is_for_heads(strength_H, heads)
            and _is_for_heads(offset_H, heads)
            and torch_state.bypasses_dispatcher(tensors)
        ):
            return None
        leaving = self.tokens - 1 - self.left if self.left >= 0 else -1
        factor = scale / (tokens if self.left < 0 else min(tokens, self.left + 1))
        sums = self.sum_BG1D.contiguous()
        bias = next_bias(
            *(query_BH1D, key_BGKD, self.tokens, leaving),
            *(sums, strength_H, offset_H, factor),
        )
        if bias is None:
            return None
        # Faster than _replace.
        return bias, KeySums(
            tokens, self.left, sums, None, self.made_at, self.finite, self.stored_BGKD
        )

    def _continues(self, tokens: int) -> bool:
        """Whether the sums continue to this token; otherwise they are made again."""
        return self.left < 0 or (self.finite and tokens - self.made_at <= self.left)

    def _means_in_windows(self, key_BGKD: Tensor, tokens: int, mask_BK: Tensor | None) -> Tensor:
        """The means of several new tokens: differences of sums over the keys of their windows."""
        start = max(0, self.tokens - self.left)
        keys = _finite(_shown(key_BGKD, slice(start, tokens), mask_BK))
        before = F.pad(keys.cumsum(2), (0, 0, 1, 0))
        place_N = torch.arange(self.tokens, tokens, device=keys.device) - start
        first_N = (place_N - self.left).clamp(min=0)
        sums = before[:, :, place_N + 1] - before[:, :, first_N]
        means = sums[..., :-1] / self._counts(tokens, mask_BK, sums)
        return means.masked_fill(sums[..., -1:] > 0, torch.nan)

    def _counts(self, tokens: int, mask_BK: Tensor | None, sums: Tensor) -> int | Tensor:
        """The number of keys that each new token sees, at least 1, (N, 1) or (B, 1, N, 1)."""
        if mask_BK is None:
            if tokens - self.tokens == 1:
                return tokens if self.left < 0 else min(tokens, self.left + 1)
            seen_N = torch.arange(self.tokens + 1, tokens + 1, dtype=sums.dtype, device=sums.device)
            return (seen_N if self.left < 0 else seen_N.clamp(max=self.left + 1))[:, None]
        before_BK = F.pad(mask_BK.cumsum(-1), (1, 0))
        seen_BN = before_BK[:, self.tokens + 1 :]
        if self.left >= 0:
            first_N = torch.arange(self.tokens, tokens, device=sums.device) - self.left
            seen_BN = seen_BN - before_BK[:, first_N.clamp(min=0)]
        return seen_BN[:, None, :, None].clamp(min=1)

    def reordered(self, index_B: Tensor, key_BGKD: Tensor) -> Self:
        """The sums of these rows of the batch, whose keys are in ``key_BGKD`` now."""
        mask_BK = None if self.mask_BK is None else self.mask_BK[index_B]
        sums = self.sum_BG1D[index_B]
        return self._replace(sum_BG1D=sums, mask_BK=mask_BK, stored_BGKD=key_BGKD)


def _shown(key_BGKD: Tensor, part: slice, mask_BK: Tensor | None) -> Tensor:
    """The keys of a part, with zeros for a key that is hidden."""
    key = key_BGKD[:, :, part]
    return key if mask_BK is None else key.masked_fill(~mask_BK[:, None, part, None], 0)


def _finite(key_BGKD: Tensor) -> Tensor:
    """Finite keys in float64, and a channel of 1 for a key that was not finite, else 0."""
    finite = key_BGKD.isfinite()
    infinite_BGK1 = ~finite.all(-1, keepdim=True)
    return torch.cat((key_BGKD.where(finite, 0), infinite_BGK1), -1).double()


def _is_for_heads(numbers: Tensor, heads: int) -> bool:
    """Whether these are one fp32 number a head, in this order in memory."""
    return numbers.dtype == torch.float32 and numbers.numel() == heads and numbers.is_contiguous()


def _readable(tensor: Tensor) -> bool:
    return tensor.is_cpu and torch_state.has_values(tensor)


def _kept(mask_BK: Tensor) -> Tensor:
    """The mask to compare later ones with: a copy, if its values will be read.

    The caller may change it in place.
    """
    return mask_BK.clone() if mask_BK.is_cpu else mask_BK
