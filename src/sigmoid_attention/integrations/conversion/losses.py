"""Distillation losses: distance to the hidden states and predictions of the parent model.

Shape letters: B batch, N tokens, C channels, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor


def relative_error(student_BNC: Tensor, parent_BNC: Tensor) -> Tensor:
    r"""Mean over tokens of :math:`|x - y|^2 / |y|^2`, with x the student's and y the parent's.

    Each token counts alike, although a few carry activations a thousand times as large.

    Example:
        >>> import torch
        >>> error = relative_error(torch.full((1, 2, 4), 1.1), torch.ones(1, 2, 4))
        >>> round(float(error), 4)
        0.01
    """
    return _errors(student_BNC, parent_BNC).mean()


def damped_error(student_BNC: Tensor, parent_BNC: Tensor) -> Tensor:
    r"""Mean over tokens of :math:`\log(1 + |x - y|^2 / |y|^2)`, the training loss of one layer.

    Where errors are small it is :func:`relative_error`. But a model on its way may give a token an
    activation thousands of times too large, where its parent gives none, and the gradient of such
    a token's relative error drowns all others'.

    Example:
        >>> import torch
        >>> parent = torch.ones(1, 2, 4)
        >>> far = 1001 * parent
        >>> round(float(damped_error(far, parent)), 1), float(relative_error(far, parent))
        (13.8, 1000000.0)
    """
    return _errors(student_BNC, parent_BNC).log1p().mean()


def _errors(student_BNC: Tensor, parent_BNC: Tensor) -> Tensor:
    """(B, N), each token's."""
    student_BNC, parent_BNC = student_BNC.float(), parent_BNC.float()
    error_BN = (student_BNC - parent_BNC).square().sum(-1)
    return error_BN / parent_BNC.square().sum(-1)


def next_token_loss(logits_BNV: Tensor, ids_BN: Tensor) -> Tensor:
    """Cross-entropy of the next token, mean over tokens, in nats.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[0, 1, 1]])
        >>> round(float(next_token_loss(torch.zeros(1, 3, 4), ids)), 4)
        1.3863
    """
    return F.cross_entropy(logits_BNV[:, :-1].flatten(0, 1).float(), ids_BN[:, 1:].flatten())


def logit_divergence(student_BNV: Tensor, parent_BNV: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean over tokens of :math:`T^2 KL(p_T \| q_T)`, p the parent's and q the student's.

    Both are softmaxes of logits over the temperature T; T^2 keeps the gradient's size (Hinton et
    al. 2015, arXiv 1503.02531, section 2.1).

    Example:
        >>> import torch
        >>> logits = torch.randn(1, 3, 8)
        >>> abs(float(logit_divergence(logits, logits))) < 1e-6
        True
    """
    student_TV = F.log_softmax(student_BNV.float() / temperature, -1).flatten(0, -2)
    parent_TV = F.log_softmax(parent_BNV.float() / temperature, -1).flatten(0, -2)
    divergence = F.kl_div(student_TV, parent_TV, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
