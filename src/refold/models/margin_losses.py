"""Losses for embeddings: softmax over directions, one a class, with a margin for the right one."""

from __future__ import annotations

from math import cos, pi, sin

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MarginLoss(nn.Module):
    """Cross entropy of scaled cosines between embeddings and one direction a class.

    A subclass says what the margin makes of the right class's cosine.

    Args:
        embedding: numbers of an embedding.
        classes: how many there are.
        scale: of the cosines.
        margin: by how much the right class is made harder.
    """

    def __init__(self, embedding: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(classes, embedding))
        nn.init.xavier_normal_(self.weight)

    def harder(self, cosine: Tensor) -> Tensor:
        """Return the right class's cosine with the margin taken off."""
        raise NotImplementedError

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the cosine to each class: (N, embedding) -> (N, classes)."""
        return F.linear(F.normalize(embeddings), F.normalize(self.weight))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        Shape:
            embeddings (N, embedding), labels (N,) of class numbers -> ().
        """
        cosines = self.cosines(embeddings)
        right = cosines.gather(1, labels[:, None])
        return F.cross_entropy(
            self.scale * cosines.scatter(1, labels[:, None], self.harder(right)), labels
        )


class AMSoftmax(MarginLoss):
    """The margin is taken off the cosine: s (cos t - m).

    Examples:
        >>> loss = AMSoftmax(8, 4)
        >>> loss(torch.randn(2, 8), torch.tensor([0, 3])).shape
        torch.Size([])

    Source: Wang et al. 2018, Additive Margin Softmax for Face Verification, arXiv:1801.05599.
    """

    def __init__(
        self, embedding: int, classes: int, scale: float = 30.0, margin: float = 0.35
    ) -> None:
        super().__init__(embedding, classes, scale, margin)

    def harder(self, cosine: Tensor) -> Tensor:
        """Return cos t - m."""
        return cosine - self.margin


class ArcFace(MarginLoss):
    """The margin is added to the angle: s cos(t + m).

    Beyond t = pi - m, where that would rise again, the cosine falls on in a straight line.

    Examples:
        >>> loss = ArcFace(8, 4)
        >>> loss(torch.randn(2, 8), torch.tensor([0, 3])).shape
        torch.Size([])

    Source: Deng et al. 2019, ArcFace, arXiv:1801.07698.
    """

    def __init__(
        self, embedding: int, classes: int, scale: float = 64.0, margin: float = 0.5
    ) -> None:
        super().__init__(embedding, classes, scale, margin)

    def harder(self, cosine: Tensor) -> Tensor:
        """Return cos(t + m), and cos t - m sin m beyond where that is the smallest."""
        sine = (1 - cosine.square()).clamp_min(1e-7).sqrt()
        turned = cosine * cos(self.margin) - sine * sin(self.margin)
        straight = cosine - self.margin * sin(self.margin)
        return torch.where(cosine > cos(pi - self.margin), turned, straight)
