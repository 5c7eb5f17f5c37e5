"""From a variant's fit settings to the optimizer that trains it, and the updates it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from heads.spec import Fit

NESTEROV_MOMENTUM = 0.9
FUSED_DEVICES = ("cpu", "cuda")
# Where torch keeps what it calls in place of a method that is not to be compiled.
UNCOMPILED = "__dynamo_disable"
# What torch adds to a norm before it divides by it.
NORM_MARGIN = 1e-6


def build_optimizer(fit: Fit, groups: Iterable[Mapping[str, object]]) -> Optimizer:
    """The fit's optimizer over these groups of parameters, rate and weight decay: AdamW, or SGD with Nesterov's momentum."""
    leave_compiler_out()
    plain: list[dict[str, Any]] = [dict(group) for group in groups]
    # One kernel for all parameters: most of a small head's time goes into the calls that this saves.
    fused = all(parameter.device.type in FUSED_DEVICES for group in plain for parameter in group["params"])
    if fit.optimiser == "sgd":
        return torch.optim.SGD(plain, lr=fit.learning_rate, momentum=NESTEROV_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(plain, fused=fused)


def leave_compiler_out() -> None:
    """Let optimizers be made, saved and restored without torch's compiler, which takes a process over a second to load.

    It would be loaded to keep itself out of these methods; nothing here compiles what calls them. By a private name of torch:
    where it has another, the compiler is loaded as it always was.
    """
    for decorated in (Optimizer.add_param_group, Optimizer.state_dict, Optimizer.load_state_dict, Optimizer.zero_grad):
        method = getattr(decorated, "__wrapped__", decorated)
        if not hasattr(method, UNCOMPILED):
            setattr(method, UNCOMPILED, method)


def build_scaler(fit: Fit, device: torch.device) -> torch.amp.GradScaler:
    """The scaler that keeps float16 gradients from vanishing; for the other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=fit.precision == "fp16")


def update_weights(optimizer: Optimizer, scaler: torch.amp.GradScaler, max_norm: float) -> None:
    """Updates all trained parameters by their gradients, clipped together to `max_norm` (0: not at all), which it then drops."""
    scaler.unscale_(optimizer)
    clip([parameter for group in optimizer.param_groups for parameter in group["params"]], max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def clip(weights: Sequence[nn.Parameter], max_norm: float) -> None:
    """Scales the gradients of these weights down to `max_norm` together, if their norm is greater (0: never)."""
    if max_norm:
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        # On a CPU a look at the norm costs less than to multiply all gradients by one.
        if norm.device.type != "cpu" or not norm + NORM_MARGIN <= max_norm:
            clip_grads_with_norm_(weights, max_norm, norm)


def in_layout_of(weight: Tensor, rows: Tensor) -> Tensor:
    """A copy of `rows` in the weight's memory layout, or `rows` itself if it has it: fused kernels ignore strides."""
    return rows if rows.stride() == weight.stride() else torch.empty_like(weight).copy_(rows)


def lay_out_state(optimizer: Optimizer) -> None:
    """Brings the optimizer's state of each weight into that weight's memory layout."""
    for weight, state in optimizer.state.items():
        state.update({name: in_layout_of(weight.data, known) for name, known in state.items() if known.shape == weight.shape})
