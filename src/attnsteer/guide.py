"""The public names that guide, under the name of the verb; callable, because this module shadows the function.

`from attnsteer import guide` may find this module instead of the function once anything has imported it.
"""

import sys
from types import ModuleType
from typing import Any

from attnsteer.install import guide_denoiser, record_maps
from attnsteer.pipeline import GuidedPipeline, guide

__all__ = ["GuidedPipeline", "guide", "guide_denoiser", "record_maps"]


class _CallableModule(ModuleType):
    def __call__(self, pipe: Any, *methods: Any, validate: bool = False) -> GuidedPipeline:
        return guide(pipe, *methods, validate=validate)


sys.modules[__name__].__class__ = _CallableModule
