"""`attnsteer models`: the models that come with the package, and the settings that suit others."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.report import console, failures, print_json


def models(
    as_json: options.Json = False,
    presets: Annotated[
        bool, typer.Option("--presets", help="List the settings that negative methods take for each model family.")
    ] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also print everything that was measured of each model.")
    ] = False,
) -> None:
    """List the embedded models with what they can do and how well they do it, or the presets of other models."""
    with failures(as_json):
        if presets:
            _show_presets(as_json)
            return
        found = describe_models()
        if as_json:
            print_json({"models": found})
            return
        out = console()
        if not found:
            out.print("No embedded models are installed. --model takes any diffusers folder or Hub id.")
        for model in found:
            out.print(f"{model['name']}  ({model['megabytes']:.1f} MB{', steerable' if model['steerable'] else ''})")
            if model["description"]:
                out.print(f"  {model['description']}")
            out.print(f"  {_advice(model)}")
            for name, value in model["figures"].items() if figures else ():
                out.print(f"  {name}: {value}")
        if found and not figures:
            out.print("What was measured of them: attnsteer models --figures. More: README.md in each folder.")


def _advice(model: Mapping[str, Any]) -> str:
    """E.g. "4 steps (or 1, 2), no CFG; in FOLDER"."""
    own = model["defaults"]
    scale = own.get("extra", {}).get("true_cfg_scale", own.get("guidance_scale", 1))
    others = [str(count) for count in model["step_counts"] if count != own.get("steps")]
    steps = f"{own.get('steps')} steps" + (f" (or {', '.join(others)})" if others else "")
    return f"{steps}, {f'CFG {scale:g}' if scale > 1 else 'no CFG'}; in {model['folder']}"


def _show_presets(as_json: bool) -> None:
    from attnsteer.presets import DEFAULT, PRESETS

    if as_json:
        rows = [{**asdict(preset), "settings": dict(preset.settings)} for preset in (*PRESETS, DEFAULT)]
        print_json({"presets": rows})
        return
    out = console()
    for preset in (*PRESETS, DEFAULT):
        settings = ", ".join(f"{name} {value:g}" for name, value in preset.settings.items())
        out.print(f"{preset.model}  {preset.method}: {settings}")
        out.print(f"  {preset.denoiser}; {preset.source}")


def describe_models() -> list[dict[str, Any]]:
    """Return name, folder, size, description, measured figures and recommended settings of every embedded model."""
    from attnsteer.compare.models import find_model
    from attnsteer.world.models import embedded_models, model_folder

    described = []
    for name in embedded_models():
        source, folder = find_model(name), model_folder(name)
        described.append(
            {
                "name": name,
                "folder": str(folder),
                "megabytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
                "steerable": source.classifier is not None,
                "description": str(source.card.get("description", "")),
                "figures": flatten(source.card.get("figures", {})),
                "defaults": dict(source.defaults),
                "step_counts": list(source.card.get("step_counts", [source.defaults.get("steps")])),
            }
        )
    return described


def flatten(figures: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested figures into one level, with names joined by " / "."""
    if not isinstance(figures, dict):
        return {prefix: figures} if prefix else {}
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= flatten(value, f"{prefix} / {name}" if prefix else str(name))
    return flat
