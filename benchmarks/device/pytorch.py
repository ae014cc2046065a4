"""The normalizations of PyTorch under `torch.compile`, on its GPU where it has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def wait(*_: Any) -> None:
    """Until everything has run."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def calls(norm: str, shape: tuple[int, ...], dtype: str, groups: int) -> dict[Any, Callable]:
    """The forward pass and both passes; images are channels last in memory."""
    torch._dynamo.reset()
    x = torch.randn(shape, device=DEVICE, dtype=DTYPES[dtype])
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2)
    narrow = norm in ("layer", "rms", "group")  # these take no wider parameters than x
    create = partial(torch.ones, shape[-1], device=DEVICE, requires_grad=True)
    scale, bias = (create(dtype=x.dtype if narrow else torch.float32) for _ in range(2))
    mean, var = (torch.ones(shape[-1], device=DEVICE) for _ in range(2))
    apply = {
        "batch": lambda x: F.batch_norm(x, mean, var, scale, bias, training=True),
        "layer": lambda x: F.layer_norm(x, shape[-1:], scale, bias),
        "rms": lambda x: F.rms_norm(x, shape[-1:], scale),
        "group": lambda x: F.group_norm(x, groups, scale, bias),
        "instance": lambda x: F.instance_norm(x, None, None, scale, bias),
    }[norm]
    forward = torch.compile(apply)
    cotangent, variable = torch.randn_like(x), x.clone().requires_grad_()
    wanted = [variable, scale, bias][: 2 if norm == "rms" else 3]

    def both() -> Any:
        y = forward(variable)
        return y, torch.autograd.grad(y, wanted, cotangent)

    def only_forward() -> Any:
        with torch.no_grad():
            return forward(x)

    passes = {"forward": only_forward, "both": both}
    for call in passes.values():
        call()  # compiles
    return {("torch.compile", which): call for which, call in passes.items()}
