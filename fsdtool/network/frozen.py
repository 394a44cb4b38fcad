"""Parameters that training left alone: influence and curvature are of the trained ones."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from fsdtool.errors import FsdtoolError, some
from fsdtool.model.factory import canonical_names
from fsdtool.network.traced import Network


def frozen_names(model: nn.Module, patterns: Sequence[str] = ()) -> frozenset[str]:
    """The parameters without requires_grad, and those whose names a pattern (`backbone.*`) matches.

    Of a tensor with several names it is the first. Raises FsdtoolError for a pattern that matches no parameter.
    """
    names, found = canonical_names(model), set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matching = fnmatch.filter(parameters, pattern)
        if not matching:
            raise FsdtoolError(
                f"--frozen '{pattern}' matches no parameter of the model (it has {some(list(parameters))}); write for "
                f"example '{next(iter(parameters), 'layer1').split('.')[0]}.*'"
            )
        found |= {names.get(name, name) for name in matching}
    return frozenset(found | {names.get(n, n) for n, p in parameters.items() if not p.requires_grad})


def check_trained(network: Network) -> None:
    """Raise FsdtoolError where every weight that influence could be of is frozen."""
    graph = network.graph
    if not graph.weight_uses() and not graph.vector_uses() and graph.frozen:
        still = [name for name in graph.parameter_names() if name in graph.frozen]
        raise FsdtoolError(
            f"every linear and convolution weight in reach is frozen ({some(still)}), so that there is nothing that "
            "influence could be of; let the factory leave requires_grad=True on what was trained, and "
            "leave out --frozen for it"
        )
