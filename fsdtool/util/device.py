"""Where to compute: chosen once, from one option."""

from __future__ import annotations

import torch

from fsdtool.errors import FsdtoolError


def choose_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one.  Raises FsdtoolError for 'cuda' without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise FsdtoolError('`device="cuda"`, but torch finds no CUDA device; use `device="cpu"` or auto')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
