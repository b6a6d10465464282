"""What torch's GradScaler leaves to an optimizer that it calls in every step."""

from __future__ import annotations

import torch


def unscale(wrapper: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> bool | None:
    """Divide the gradients by the scale that GradScaler has set on `wrapper`, unless it did itself.

    Returns whether a gradient of this rank overflowed; None without a GradScaler.
    """
    found_inf, scale = getattr(wrapper, "found_inf", None), getattr(wrapper, "grad_scale", None)
    if found_inf is None:
        return None
    if scale is not None:  # the script has not called unscale_()
        for g in (p.grad for group in optimizer.param_groups for p in group["params"]):
            if g is not None:
                g.div_(scale.to(g.device))
    return bool(found_inf.item())


def check_averaged(overflow: bool | None, averaged: bool) -> None:
    """Refuse what unscale() returned if it has looked at gradients before they were averaged.

    Raises:
        RuntimeError: they were not; ranks would skip steps, and scale, each on its own.
    """
    if overflow is not None and not averaged:
        raise RuntimeError(
            "GradScaler looks for overflows before step(), expected gradients that are averaged by "
            "then; call the last backward() of a step outside no_sync()"
        )
