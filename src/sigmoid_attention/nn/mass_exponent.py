"""Division of each row of attention by a power of its mass.

Shape letters: B batch, H query heads, N queries, D value dim.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.keep_fp32 import keep_fp32

LEARNED = "learned"

# In fp32 a smaller mass has few correct digits: the weights of logits below -79 differ between the
# implementations.
LEAST_MASS = 1e-30


class MassExponent(nn.Module):
    r"""O_i / m_i^γ, with m_i the sum of the weights of row i.

    γ = 0 is plain sigmoid attention, γ = 1 makes the sum of the weights one, as in a softmax. γ is
    a number, or a parameter ``exponent`` (heads,), which starts at 1 and stays in fp32 when the
    model is cast to a narrower dtype. A row of mass zero stays zero, and a mass below 1e-30
    counts as 1e-30. This option is the project's own.

    Args:
        exponent: γ, or "learned" for one parameter for each head; the layer checks it.
        num_heads: query heads.

    ``forward`` takes the output (B, H, N, D) and the mass (B, H, N) and returns (B, H, N, D).

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn.mass_exponent import MassExponent
        >>> MassExponent(2.0, num_heads=1)(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 0.5))
        tensor([[[[4.]]]])
    """

    def __init__(self, exponent: float | str, num_heads: int) -> None:
        super().__init__()
        self.exponent = (
            nn.Parameter(torch.ones(num_heads, dtype=torch.float32))
            if isinstance(exponent, str)
            else exponent
        )

    def forward(self, out_BHND: Tensor, mass_BHN: Tensor) -> Tensor:
        # A power of zero, and its gradient, would be infinite.
        mass_BHN = mass_BHN.masked_fill(mass_BHN == 0, 1).clamp(min=LEAST_MASS)
        exponent = self.exponent
        if isinstance(exponent, Tensor):
            exponent = exponent[:, None].to(mass_BHN.dtype)
        # The gradient of m ** -γ has the factor m ** (-γ - 1), which overflows for small masses.
        power_BHN = (-exponent * mass_BHN.log()).exp()
        return (out_BHND * power_BHN[..., None]).to(out_BHND.dtype)

    @staticmethod
    def operands(*rows: Tensor) -> Iterator[Tensor]:
        """Query, key and value for the operator, those in fp16 as fp32.

        In fp16 the output of a row of mass 1e-6 has few digits, and its gradient, 1e6, overflows.
        """
        return (row.float() if row.dtype == torch.float16 else row for row in rows)

    def extra_repr(self) -> str:
        return "learned" if isinstance(self.exponent, Tensor) else f"{self.exponent}"


keep_fp32(MassExponent, "exponent")
