"""Tiny stock pipelines: one entry each; what the constructor and the call need is derived from their signatures."""

import importlib
import inspect
import re
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from attnsteer.families import FAMILIES
from pipelines.components import MAKERS, SCHEDULERS, denoiser
from pipelines.entry import DEFAULT_CALL, Entry
from pipelines.pictures import PICTURES
from pipelines.unets import UNETS
from pipelines.videos import VIDEOS

HIDDEN = {
    "ConsisIDPipeline": "diffusers.pipelines.consisid.pipeline_consisid",
    "KolorsPipeline": "diffusers.pipelines.kolors.pipeline_kolors",
    "KolorsImg2ImgPipeline": "diffusers.pipelines.kolors.pipeline_kolors_img2img",
    "KolorsPAGPipeline": "diffusers.pipelines.pag.pipeline_pag_kolors",
}
LEFT_OUT = {"safety_checker", "feature_extractor", "image_encoder", "watermarker", "requires_safety_checker"}
ENTRIES: dict[str, Entry] = {**UNETS, **PICTURES, **VIDEOS}


def class_of(name: str) -> type:
    """The class; of those that diffusers hides without sentencepiece or OpenCV, too; not needed here."""
    return getattr(importlib.import_module(HIDDEN[name]) if name in HIDDEN else diffusers, name)


def words(annotation: Any) -> list[str]:
    """The names in an annotation."""
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return re.findall(r"[A-Za-z_]\w*", text)


def part(name: str, annotation: Any, entry: Entry) -> Any:
    """A component for an argument of the constructor: the entry's own, or one of the class that is asked for."""
    if name in entry.parts:
        return entry.parts[name]()
    named = words(annotation)
    for word in named:
        if word in MAKERS:
            return MAKERS[word]()
        if word in FAMILIES:
            return denoiser(word, **entry.options)
    for word in SCHEDULERS:
        if word in named:
            return getattr(diffusers, word)()
    raise KeyError(f"no tiny component for {name}: {annotation}")


def build(name: str) -> DiffusionPipeline:
    """A tiny pipeline with random weights (no layer left at zero), in eval mode, progress bar off."""
    cls, entry = class_of(name), ENTRIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {}
        for key, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
            if key not in entry.parts and key in LEFT_OUT:
                parts[key] = False if key.startswith("requires") else None
            elif key in entry.parts or parameter.default is parameter.empty:
                parts[key] = part(key, parameter.annotation, entry)
        pipe = cls(**parts)
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
                for parameter in component.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    entry.adjust(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(name: str) -> dict[str, Any]:
    """The keywords of the entry's smallest call, without CFG."""
    entry = ENTRIES[name]
    known = inspect.signature(class_of(name).__call__).parameters
    call = {key: value for key, value in DEFAULT_CALL.items() if key in known}
    call |= entry.call
    return {key: value for key, value in call.items() if value is not None}


def cfg_of(name: str) -> dict[str, Any]:
    """Keywords that switch classifier-free guidance on; none where the pipeline has none."""
    entry, known = ENTRIES[name], inspect.signature(class_of(name).__call__).parameters
    if entry.cfg is not None:
        return dict(entry.cfg)
    if "negative_prompt" not in known:
        return {}
    if "true_cfg_scale" in known:
        return {"true_cfg_scale": 3.0, "negative_prompt": "low quality"}
    return {"guidance_scale": 5.0} if "guidance_scale" in known else {}
