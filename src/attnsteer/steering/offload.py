"""Gradients through a denoiser whose weights are offloaded in groups.

Group offloading replaces a weight's data behind the forward. Autograd would keep the copies on the accelerator alive,
or find weights on another device in its backward. Here it keeps references, and loads a weight when it needs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

_HOOK = "group_offloading"


@contextmanager
def weights_by_reference(denoiser: nn.Module) -> Iterator[None]:
    """Within the block, autograd refers to a group-offloaded denoiser's weights instead of keeping copies of them.

    Does nothing for a denoiser that is not group-offloaded.

    Raises: ValueError if the groups are offloaded to disk, where a weight alone cannot be loaded.
    """
    if not _is_group_offloaded(denoiser):
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
    return weight, tensor.device, (tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpacked(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    weight, device, geometry = packed
    loaded: Tensor = weight.data.to(device)
    return loaded.as_strided(*geometry)


def _is_group_offloaded(denoiser: nn.Module) -> bool:
    hooks = [hook for module in denoiser.modules() for hook in _group_hooks(module)]
    if any(getattr(hook.group, "offload_to_disk_path", None) is not None for hook in hooks):
        raise ValueError(
            "a denoiser whose groups are offloaded to disk cannot be steered: leave offload_to_disk_path out of "
            "enable_group_offload()"
        )
    return bool(hooks)


def _group_hooks(module: nn.Module) -> list[Any]:
    registry = getattr(module, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if isinstance(registry, HookRegistry) else None
    return [] if hook is None else [hook]
