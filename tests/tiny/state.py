"""What must be the same, by identity, before and after guidance."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn


def fingerprint(*owners: Any) -> dict[str, Any]:
    """Identities of everything attached to modules, their processors and other objects, and the backend registry."""
    seen: dict[str, Any] = {"backends": sorted(map(str, _AttentionBackendRegistry._backends))}
    for place, owner in enumerate(owners):
        modules = owner.named_modules() if isinstance(owner, nn.Module) else [("", owner)]
        for name, module in modules:
            seen[f"{place}.{name}"] = _attached(module)
            processor = getattr(module, "processor", None) if "processor" in vars(module) else None
            seen[f"{place}.{name}.processor"] = None if processor is None else (id(processor), _attached(processor))
    return seen


def _attached(owner: Any) -> dict[str, Any]:
    return {
        name: {key: id(entry) for key, entry in value.items()}
        if "hooks" in name and hasattr(value, "items")
        else id(value)
        for name, value in vars(owner).items()
        if not isinstance(value, bool | int | float | str | torch.device | torch.dtype)
    }
