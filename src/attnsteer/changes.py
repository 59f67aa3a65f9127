"""Changes to models, processors, schedulers and registries, each undone by identity: the only file that makes any.

Everything else describes the changes it needs as data and applies them with `applied`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True, eq=False)
class Hook:
    """A forward hook to register on a module.

    Args:
        module: The module.
        when: "before" runs before the forward, "after" behind it, even if it raised (then the output is None).
        function: The hook; it receives keyword arguments too.
    """

    module: nn.Module
    when: Literal["before", "after"]
    function: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Attribute:
    """An instance attribute to set on any object."""

    owner: object
    name: str
    value: object


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry to add to a mapping."""

    mapping: MutableMapping[Any, Any]
    key: object
    value: object


Change = Hook | Attribute | Entry


@contextmanager
def applied(changes: Iterable[Change]) -> Iterator[None]:
    """Apply changes for the time of the block; undo them in reverse order, however the block ends."""
    with ExitStack() as stack:
        for change in changes:
            stack.callback(_apply(change))
        yield


def _apply(change: Change) -> Callable[[], object]:
    if isinstance(change, Hook):
        return _register(change)
    if isinstance(change, Attribute):
        owner, name, own = change.owner, change.name, vars(change.owner)
        replaced = functools.partial(setattr, owner, name, own[name]) if name in own else None
        setattr(owner, name, change.value)
        return replaced or functools.partial(delattr, owner, name)
    mapping, key = change.mapping, change.key
    replaced = functools.partial(mapping.__setitem__, key, mapping[key]) if key in mapping else None
    mapping[key] = change.value
    return replaced or functools.partial(mapping.pop, key)


def _register(hook: Hook) -> Callable[[], object]:
    if hook.when == "before":
        handle = hook.module.register_forward_pre_hook(hook.function, with_kwargs=True)
    else:
        handle = hook.module.register_forward_hook(hook.function, with_kwargs=True, always_call=True)
    return lambda: handle.remove()
