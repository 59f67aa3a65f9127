"""`attnsteer collect`: attention maps with known relations, for training a relation classifier."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.report import failures, hush_libraries, print_json, say

if TYPE_CHECKING:
    from attnsteer.steering.data.settings import CollectionSettings

_DATA = "Data"
_MAPS = "Maps"
_RUN = "Run"


def collect(
    source: Annotated[
        str,
        typer.Argument(help="gqa, orm (pictures), samples (the model's own), shapes (an embedded model's).",
                       show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the maps; an unfinished one goes on.", show_default=False,
                           file_okay=False)
    ],
    model: options.Model = None,
    preset: Annotated[
        str | None, typer.Option(help="Published settings: sd14, sd2, flux-schnell, flux-dev.", rich_help_panel=_DATA)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Local copy of the data set.", rich_help_panel=_DATA)] = None,
    split: Annotated[str, typer.Option(help="train, val or test.", rich_help_panel=_DATA)] = "train",
    count: Annotated[
        int | None, typer.Option(help="Triplets per relation; pictures of samples, shapes.", rich_help_panel=_DATA)
    ] = None,
    relations: Annotated[str | None, typer.Option(help="Vocabulary, with commas.", rich_help_panel=_DATA)] = None,
    published: Annotated[
        bool | None,
        typer.Option("--published/--improved", help="Whose filters, split and wording. Default: the preset's, else"
                     " improved.", rich_help_panel=_DATA),
    ] = None,
    wordnet: Annotated[
        Path | None, typer.Option(help="WordNet's dict folder, for the filters of gqa.", rich_help_panel=_DATA)
    ] = None,
    detector: Annotated[str, typer.Option(help="For samples; see evaluate.", rich_help_panel=_DATA)] = "mask2former",
    nouns: Annotated[
        Path | None, typer.Option(help="Things for samples, one per line. Default: COCO's.", rich_help_panel=_DATA)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="noise, ddim (inversion) or rf (inversion). Default: noise.",
                                 rich_help_panel=_MAPS)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=_MAPS)] = None,
    record: Annotated[
        str | None, typer.Option(help="Steps to record, with commas. Default: a tenth to a half of all.",
                                 rich_help_panel=_MAPS)
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures, in pixels.", rich_help_panel=_MAPS)] = None,
    map_size: Annotated[int | None, typer.Option(help="Side of the maps, in cells.", rich_help_panel=_MAPS)] = None,
    normalise: Annotated[
        bool | None, typer.Option("--normalise/--raw", help="Divide each map by its sum.", rich_help_panel=_MAPS)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Attention layers, with commas. Default: all.", rich_help_panel=_MAPS)
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(help="Text tokens (max_sequence_length).", rich_help_panel=_MAPS)
    ] = None,
    guidance_scale: options.GuidanceScale = None,
    seed: options.Seed = None,
    extra: options.Extra = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in one denoiser call.", rich_help_panel=_RUN)] = None,
    engine: Annotated[str, typer.Option(help="local, torchrun or ray.", rich_help_panel=_RUN)] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; 'auto' finds a running one.", rich_help_panel=_RUN)
    ] = None,
    workers: Annotated[int, typer.Option(help="Ray actors; 0 takes all there is.", rich_help_panel=_RUN)] = 0,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="GPUs that a Ray actor reserves. Default: one where there are any.", rich_help_panel=_RUN),
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(help="Pictures that a killed process loses at most.", rich_help_panel=_RUN)
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Record attention maps of pictures in which it is known what stands where.

    attnsteer collect gqa --data GQA --model stable-diffusion-v1-5/stable-diffusion-v1-5 -o maps
    """
    with failures(as_json):
        given: dict[str, Any] = {
            "model": model, "data": None if data is None else str(data), "split": split, "count": count,
            "relations": _listed(relations), "published": published,
            "wordnet": None if wordnet is None else str(wordnet), "detector": detector,
            "nouns": None if nouns is None else tuple(nouns.read_text("utf-8").split("\n")), "method": method,
            "num_inference_steps": steps, "record": _numbers(record), "image_size": size, "map_size": map_size,
            "normalise": normalise, "layers": _listed(layers), "text_length": text_length,
            "guidance_scale": guidance_scale, "seed": seed, "batch": batch, "dtype": dtype, "device": device,
        }  # fmt: skip
        resources = {"address": ray_address, "workers": workers, "gpus_per_worker": gpus_per_worker}
        settings = settings_of(source, preset, {k: v for k, v in given.items() if v is not None}, extra or [])
        result = _work(settings, output, engine, resources, shard_size, quiet=quiet or as_json)
        if as_json:
            print_json(result)
        else:
            typer.echo(result["maps"])


def settings_of(source: str, preset: str | None, given: dict[str, Any], extra: list[str]) -> "CollectionSettings":
    """Options over a preset over the defaults.

    Raises: RequestError (a ValueError) for an unknown preset, source or value.
    """
    from attnsteer.cli.settings import build_request
    from attnsteer.compare.request import RequestError
    from attnsteer.steering.data.settings import DATA_PRESETS, CollectionSettings

    if preset is not None and preset not in DATA_PRESETS:
        raise RequestError(f"preset must be one of {', '.join(DATA_PRESETS)}, got {preset!r}")
    own: dict[str, Any] = {"model": "shapes-unet"}
    if preset is not None:
        chosen = DATA_PRESETS[preset]
        own = {"model": chosen.model, **chosen.settings}
        if source == "samples":
            ours = ("published", "method", "relations", "guidance_scale", "squash")  # sampled as the model is used
            own = {name: value for name, value in own.items() if name not in ours}
    if source == "shapes":
        from attnsteer.world.steering import MAP_SIZE

        own |= {"map_size": MAP_SIZE, "batch": 48}
    if "nouns" in given:
        given["nouns"] = tuple(noun.strip() for noun in given["nouns"] if noun.strip())
    extras = dict(build_request({"prompt": "anything"}, extra=extra).extra)
    try:
        return CollectionSettings(**{"source": source, **own, **given, "extra": extras})
    except ValueError as error:
        raise RequestError(str(error)) from error


def _work(
    settings: "CollectionSettings", output: Path, engine: str, resources: dict[str, Any], shard_size: int | None, *,
    quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Collect, and return what --json prints."""
    from attnsteer.jobs import make_engine
    from attnsteer.steering.data.collection import collect as collect_maps
    from attnsteer.steering.shards import read_manifest

    hush_libraries()
    where = make_engine(engine, **resources)
    outcome = collect_maps(settings, output, where, shard_size=shard_size, progress=not quiet)
    samples = sum(row["samples"] for row in read_manifest(output).shards.values()) if where.leads else None
    say(
        f"{outcome.finished} of {outcome.shards} shards, {samples} labelled maps in {output}",
        quiet=quiet or not where.leads,
    )
    return {"maps": str(output), "shards": outcome.shards, "finished": outcome.finished, "samples": samples}


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str | None) -> tuple[int, ...] | None:
    from attnsteer.compare.request import RequestError

    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(f"--record takes step numbers with commas, e.g. 5,10,15, got {text!r}") from error
