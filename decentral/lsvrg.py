"""L-SVRG: the loopless variance-reduced gradient, for local data that is a finite sum.

Kovalev, Horvath, Richtarik: "Don't Jump Through Hoops and Remove Those Loops: SVRG and Katyusha are
Better Without the Outer Loop", ALT 2020, arXiv:1901.08689. With f this rank's own loss and B a
mini-batch of its data:

    g   = grad_B f(x) - grad_B f(w) + grad f(w)
    w  <- x with probability p, else w stays;   w is x at the start

g is unbiased, and its variance vanishes as x and w approach a minimum. VR-IntDIANA (Mishchenko et
al., ICLR 2022) is IntDIANA on this estimator; there the coin is common to all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from decentral_kernels.rng import DRAW_BITS, draw, fold_key


class LSVRG:
    """Computes the L-SVRG gradient in place of loss.backward(); step the optimizer as usual.

    A model with dropout or BatchNorm does not fit: both of its mini-batch gradients must be of the
    same function. The gradients that backward() leaves are this rank's own; the step() of a
    DistributedOptimizer averages them.

    Args:
        model: whose parameters are x.
        loss: loss(batch) is the mini-batch loss at the model's current parameters.
        full_loss: full_loss() is the loss over all local data at the model's current parameters.
        probability: p, of a refresh of w; with batches of b out of m samples b/m is usual.
        seed: of the coin, equal on all ranks, so that they refresh w at the same steps.

    Raises:
        ValueError: the probability is not in (0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor],
        full_loss: Callable[[], Tensor],
        probability: float,
        seed: int = 0,
    ) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"expected a probability in (0, 1], got {probability}")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._loss, self._full_loss = loss, full_loss
        self._threshold, self._seed = probability * 2**DRAW_BITS, seed
        self._step = 0
        self._w: list[Tensor] = []
        self._full: list[Tensor] = []  # grad f(w)

    def backward(self, batch: Any) -> Tensor:
        """Set every parameter's grad to g, then toss the coin for w; return the mini-batch loss."""
        if not self._w:  # not before: DistributedOptimizer broadcasts parameters when constructed
            self._refresh()
        loss, at_x = self._gradient(lambda: self._loss(batch))
        with self._model_at_w():
            _, at_w = self._gradient(lambda: self._loss(batch))
        for p, g_x, g_w, full in zip(self._parameters, at_x, at_w, self._full, strict=True):
            p.grad = g_x - g_w + full
        self._step += 1
        if draw(fold_key(self._seed, self._step), 0, 1)[0] < self._threshold:
            self._refresh()
        return loss

    def _gradient(self, function: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        # Not loss.backward(), at whose end DistributedOptimizer would average half of an estimator.
        with torch.enable_grad():
            loss = function()
            gradient = torch.autograd.grad(
                loss, self._parameters, allow_unused=True, materialize_grads=True
            )
        return loss.detach(), gradient

    def _refresh(self) -> None:
        self._w = [p.detach().clone() for p in self._parameters]
        self._full = list(self._gradient(self._full_loss)[1])

    @contextmanager
    def _model_at_w(self) -> Iterator[None]:
        x = [p.detach().clone() for p in self._parameters]
        self._set(self._w)
        try:
            yield
        finally:
            self._set(x)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for p, value in zip(self._parameters, values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return w, grad f(w) and the number of steps: tensors and numbers only."""
        return {
            "w": [w.clone() for w in self._w],
            "full": [g.clone() for g in self._full],
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict() returned on this rank.

        Raises:
            ValueError: it is of another model.
        """
        expected = [p.shape for p in self._parameters] if state["step"] else []
        for name in ("w", "full"):
            if [t.shape for t in state[name]] != expected:
                raise ValueError("the state of L-SVRG is of a model with other parameters")
        self._w, self._full = (
            [
                t.detach().clone().to(p.device, p.dtype)
                for p, t in zip(self._parameters, state[name], strict=False)
            ]
            for name in ("w", "full")
        )
        self._step = state["step"]
