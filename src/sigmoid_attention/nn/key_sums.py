"""The sums of the keys that the last token of a cache sees, for the means of centred keys.

The sums are in float64. A float32 sum of 100,000 keys of mean 100 and variance 1 leaves an error of
1e-3 in their mean, and of 3e-4 in the mean of a window of 1024; in float64 both were exact.

Shape letters: B batch, G key heads, K stored tokens, N new tokens, D head dim.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention import torch_state


class KeySums(NamedTuple):
    """The sum of the keys that the last of ``tokens`` stored tokens sees.

    ``stored_BGKD`` are the keys that were summed: a caller may give the cache other ones.
    ``sum_BG1S`` has a channel for each channel of a key, and for a window one more: the number of
    keys with an infinite or NaN channel, which the sum leaves out. A sum from which such a key is
    subtracted again would stay NaN.
    """

    tokens: int
    left: int
    sum_BG1S: Tensor
    mask_BK: Tensor | None
    stored_BGKD: Tensor

    @classmethod
    def of(cls, key_BGKD: Tensor, tokens: int, left: int, mask_BK: Tensor | None) -> Self:
        """The sum of the last of these tokens' keys and of ``left`` before it, -1 for all keys.

        Keys with False in the mask have no influence.
        """
        first = 0 if left < 0 else max(0, tokens - 1 - left)
        rows = _shown(key_BGKD, slice(first, tokens), mask_BK)
        rows = rows.double() if left < 0 else _finite(rows)
        mask_BK = None if mask_BK is None else _kept(mask_BK[:, :tokens])
        return cls(tokens, left, rows.sum(2, keepdim=True), mask_BK, key_BGKD)

    def covers(self, key_BGKD: Tensor, tokens: int, left: int, mask_BK: Tensor | None) -> bool:
        """Whether these are the sums of the first ``tokens`` keys under this window and mask.

        The mask of a GPU is not compared, since that would wait for the device.
        """
        if (tokens, left) != (self.tokens, self.left) or key_BGKD is not self.stored_BGKD:
            return False
        before = self.mask_BK
        now = mask_BK[:, :tokens] if mask_BK is not None and _readable(mask_BK) else None
        if before is None or now is None:
            shown = now if before is None else before
            return shown is None or bool(shown.all())
        return torch.equal(before, now)

    def advanced(
        self, key_BGKD: Tensor, tokens: int, mask_BK: Tensor | None
    ) -> tuple[Tensor, Self]:
        """The means that the tokens after these see, (B, G, N, D), and the sums of all ``tokens``.

        The mean of no key is 0. Of the tokens before, only those that leave the window are read.
        """
        new, left = tokens - self.tokens, self.left
        # Each operation saved is noticed in a decoding step.
        rows = _shown(key_BGKD, slice(self.tokens, tokens), mask_BK)
        if left < 0:
            rows = rows.double()
        else:
            gone = slice(max(0, self.tokens - 1 - left), max(0, tokens - 1 - left))
            both = _finite(torch.cat((rows, _shown(key_BGKD, gone, mask_BK)), 2))
            rows, leaving = both[:, :, :new], both[:, :, new:]
            if (none_leave := new - leaving.shape[2]) > 0:
                leaving = F.pad(leaving, (0, 0, none_leave, 0))
            rows = rows - leaving
        sums = (rows if new == 1 else rows.cumsum(2)) + self.sum_BG1S
        means = sums / self._counts(tokens, mask_BK, sums)
        if left >= 0:
            means = means[..., :-1].masked_fill(sums[..., -1:] > 0, torch.nan)
        if new != 1:
            sums = sums[:, :, -1:] if new else self.sum_BG1S
        mask_BK = None if mask_BK is None else _kept(mask_BK)
        return means, type(self)(tokens, left, sums, mask_BK, key_BGKD)

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
        return type(self)(self.tokens, self.left, self.sum_BG1S[index_B], mask_BK, key_BGKD)


def _shown(key_BGKD: Tensor, part: slice, mask_BK: Tensor | None) -> Tensor:
    """The keys of a part, with zeros for a key that is hidden."""
    key = key_BGKD[:, :, part]
    return key if mask_BK is None else key.masked_fill(~mask_BK[:, None, part, None], 0)


def _finite(key_BGKD: Tensor) -> Tensor:
    """Finite keys in float64, and a channel of 1 for a key that was not finite, else 0."""
    finite = key_BGKD.isfinite()
    infinite_BGK1 = ~finite.all(-1, keepdim=True)
    return torch.cat((key_BGKD.where(finite, 0), infinite_BGK1), -1).double()


def _readable(mask_BK: Tensor) -> bool:
    return mask_BK.is_cpu and torch_state.has_values(mask_BK)


def _kept(mask_BK: Tensor) -> Tensor | None:
    """A copy of a mask to compare later masks with, since the caller may change it in place."""
    return mask_BK.clone() if _readable(mask_BK) else None
