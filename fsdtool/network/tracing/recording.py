"""What a model calls while it runs on examples: the modules it enters and every function of torch, with their values.

One run shows a call, not what in it depends on the examples.  So there are three: on n examples, on fewer of them, and
on n of which the first is another.  A number that differs between the first two counts examples, a dimension that does
is theirs, and where calls differ the model decides by its data what to do, and is refused (see `comparing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsdtool.network.functions import spelling


@dataclass
class Event:
    """One call, of a module (with the `inside` events after this one in it) or of a function.

    spelling: of a function, see fsdtool.network.functions; of a module its path.  path: the module it is called in.
    versions: of the tensors among the arguments before the call, by id: they count in-place operations.
    after: the version of each tensor that came out.
    """

    spelling: str
    path: str
    target: Any
    module: nn.Module | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    versions: dict[int, int]
    value: Any = None
    after: dict[int, int] = field(default_factory=dict)
    inside: int = 0


@dataclass
class Recording:
    """The events of a run on `x`, in order, and what the model returned."""

    x: Tensor
    events: list[Event]
    value: Any


def record(model: nn.Module, x: Tensor) -> Recording:
    """Run `model` (eval mode, on x (n, ...)) and note what it calls.

    x is copied first: the model may write to it.
    """
    forget(model)
    x = x.clone()
    events: list[Event] = []
    recorder = _Recorder(events)
    with recorder.modules(model), torch.no_grad(), recorder:
        value = model(x)
    return Recording(x, events, value)


def forget(model: nn.Module) -> None:
    """Let layers forget what they keep of their weights in eval mode: they do when they are to be trained."""
    model.train().eval()


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)


def _copied(value: Any) -> Any:
    """The same tensors in new containers: the model may change its lists."""
    if type(value) in (tuple, list):
        return type(value)(_copied(part) for part in value)
    return {key: _copied(part) for key, part in value.items()} if type(value) is dict else value


class _Recorder(TorchFunctionMode):
    def __init__(self, events: list[Event]):
        super().__init__()
        self._events = events
        self._entered: list[tuple[int, Event]] = []
        self._paused = False  # while it looks at tensors itself

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        path = self._entered[-1][1].path if self._entered else ""
        event = self._begin(spelling(func), path, func, None, args, kwargs)
        event.value = func(*args, **kwargs)
        self._end(event)
        return event.value

    def _begin(
        self,
        spelt: str,
        path: str,
        target: Any,
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Event:
        versions = {id(tensor): tensor._version for tensor in tensors((args, kwargs))}
        event = Event(spelt, path, target, module, _copied(args), _copied(kwargs), versions)
        self._events.append(event)
        return event

    def _end(self, event: Event) -> None:
        written = (*tensors(event.value), *tensors(event.arguments[:1]))
        event.after = {id(tensor): tensor._version for tensor in written}

    @contextmanager
    def modules(self, model: nn.Module) -> Iterator[None]:
        """Within it, the modules of `model` tell when they are entered and left."""
        fast = torch.backends.mha.get_fastpath_enabled()
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no such hooks
            handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        torch.backends.mha.set_fastpath_enabled(False)  # one function for a whole layer of a transformer
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self._pause():
                event = self._begin(name, name, type(module), module, args, kwargs)
                self._entered.append((len(self._events), event))

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        with self._pause():
            first, event = self._entered.pop()
            event.value, event.inside = value, len(self._events) - first
            self._end(event)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
