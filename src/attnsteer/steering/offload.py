"""Gradients through a denoiser whose weights are offloaded in groups, or stored in a narrower type (fp8).

Group offloading and layer-wise casting replace a weight's data behind the forward. Autograd would keep the copies on
the accelerator alive, or find weights on another device, or of another type, in its backward. Here it keeps
references, and loads a weight when it needs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

_HOOKS = ("group_offloading", "layerwise_casting")


@contextmanager
def weights_by_reference(denoiser: nn.Module) -> Iterator[None]:
    """Within the block, autograd refers to weights that are offloaded or cast, instead of keeping copies of them.

    Does nothing for a denoiser that is neither group-offloaded nor cast layer by layer.

    Raises: ValueError if the groups are offloaded to disk, where a weight alone cannot be loaded.
    """
    if not _weights_move(denoiser):
        yield
        return
    weights = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _packed(tensor, weights), _unpacked):
        yield


def _packed(tensor: Tensor, weights: dict[int, Tensor]) -> Any:
    """A tensor as it is; a weight, or a view of one, as the weight and the view's geometry."""
    weight = weights.get(id(tensor), weights.get(id(tensor._base)))
    if weight is None or type(weight.data) is not Tensor or tensor.dtype != weight.dtype:
        return tensor
    return weight, (tensor.device, tensor.dtype), (tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpacked(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    weight, place, geometry = packed
    loaded: Tensor = weight.data.to(*place)
    return loaded.as_strided(*geometry)


def _weights_move(denoiser: nn.Module) -> bool:
    hooks = [hook for module in denoiser.modules() for hook in _moving_hooks(module)]
    groups = [getattr(hook, "group", None) for hook in hooks]
    if any(getattr(group, "offload_to_disk_path", None) is not None for group in groups):
        raise ValueError(
            "a denoiser whose groups are offloaded to disk cannot be steered: leave offload_to_disk_path out of "
            "enable_group_offload()"
        )
    return bool(hooks)


def _moving_hooks(module: nn.Module) -> list[Any]:
    registry = getattr(module, "_diffusers_hook", None)
    hooks = [registry.get_hook(name) for name in _HOOKS] if isinstance(registry, HookRegistry) else []
    return [hook for hook in hooks if hook is not None]
