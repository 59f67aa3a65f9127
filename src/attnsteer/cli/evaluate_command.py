"""`attnsteer evaluate`: a suite of prompts under several methods, on one machine or many."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.report import failures, hush_libraries, print_json, say

_SUITE = "Suite"
_RUN = "Run"


def evaluate(
    suite: Annotated[str | None, typer.Argument(help="Name of a suite; see --list.", show_default=False)] = None,
    methods: Annotated[
        str, typer.Option(help="none, cfg, nag, steer, both, best-of-N, best-of-equal; with commas, baseline first.")
    ] = "none,steer",
    model: options.Model = None,
    classifier: options.Classifier = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="mask2former, owlv2, owlvit, grounding-dino, vlm, shapes; or NAME:MODEL for other weights. Default:"
            " the suite's.", rich_help_panel=_SUITE,
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The suite's published prompt file.", rich_help_panel=_SUITE)
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Prompts, per kind where there are kinds.", rich_help_panel=_SUITE)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Pictures of each prompt.", rich_help_panel=_SUITE)] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="Features of fidelity: inception:PATH, clip:MODEL or pixels.", rich_help_panel=_SUITE),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP or PickScore model of fidelity.", rich_help_panel=_SUITE)
    ] = None,
    patches: Annotated[
        str | None, typer.Option(help="Patches of fidelity: center:299, tiled:256, ...", rich_help_panel=_SUITE)
    ] = None,
    negative: options.Negative = None,
    nag_scale: options.NagScale = None,
    nag_tau: options.NagTau = None,
    nag_alpha: options.NagAlpha = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    width: options.Width = None,
    height: options.Height = None,
    extra: options.Extra = None,
    batch: Annotated[int, typer.Option(help="Pictures that are generated together.", rich_help_panel=_RUN)] = 1,
    engine: Annotated[str, typer.Option(help="local, torchrun or ray.", rich_help_panel=_RUN)] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; 'auto' finds a running one.", rich_help_panel=_RUN)
    ] = None,
    workers: Annotated[int, typer.Option(help="Ray actors; 0 takes all there is.", rich_help_panel=_RUN)] = 0,
    gpus_per_worker: Annotated[
        float, typer.Option(help="GPUs that a Ray actor reserves.", rich_help_panel=_RUN)
    ] = 0.0,
    shard_size: Annotated[
        int | None, typer.Option(help="Pictures that a killed process loses at most.", rich_help_panel=_RUN)
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the suites.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Measure methods on a suite of prompts, from the same seeds, and write a report.

    attnsteer evaluate shapes-position --methods none,steer,best-of-equal --batch 16
    """
    with failures(as_json):
        if listing or suite is None:
            _list(as_json)
            return
        given: dict[str, Any] = {
            "suite": suite, "methods": methods, "model": model, "classifier": classifier, "detector": detector,
            "prompts": None if prompts is None else str(prompts), "count": count, "samples": samples,
            "negative": negative, "nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha, "seed": seed,
            "steps": steps, "guidance_scale": guidance_scale, "width": width, "height": height, "batch": batch,
            "dtype": dtype, "device": device, "extractor": extractor, "clip": clip, "patches": patches,
        }  # fmt: skip
        resources = {"address": ray_address, "workers": workers, "gpus_per_worker": gpus_per_worker}
        result = _work(given, extra or [], engine, resources, shard_size, output, quiet=quiet or as_json)
        if as_json:
            print_json(result)
        elif result["report"]:
            typer.echo(result["report"][0])


def _work(
    given: dict[str, Any], extra: list[str], engine: str, resources: dict[str, Any], shard_size: int | None,
    output: Path | None, *, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Run the evaluation and write its report; returns what --json prints."""
    from attnsteer.cli.settings import build_request
    from attnsteer.evaluate.report import write_report
    from attnsteer.evaluate.runner import Evaluation, default_folder
    from attnsteer.jobs import make_engine, run_job

    hush_libraries()
    settings = {name: value for name, value in given.items() if value is not None}
    extras = build_request({"prompt": "anything"}, extra=extra).extra
    evaluation = Evaluation(**settings, extra=dict(extras))
    where = make_engine(engine, **resources)
    folder = output or default_folder(evaluation)
    outcome = run_job(evaluation.job(shard_size), folder, where, progress=not quiet)
    say(f"{outcome.finished} of {outcome.shards} shards in {folder}", quiet=quiet or not where.leads)
    report = write_report([folder], folder / "report") if where.leads else []
    return {
        "run": str(folder),
        "shards": outcome.shards,
        "finished": outcome.finished,
        "report": [str(path) for path in report],
    }


def _list(as_json: bool) -> None:
    from attnsteer.evaluate import fidelity
    from attnsteer.evaluate.suites import SUITES

    rows: list[dict[str, Any]] = [
        {"name": s.name, "rule": s.rule, "detector": s.detector, "samples": s.samples} for s in SUITES.values()
    ]
    rows += [{"name": name, "rule": rule, "detector": None, "samples": 1} for name, rule in fidelity.SUITES.items()]
    if as_json:
        print_json({"suites": rows})
        return
    for row in rows:
        typer.echo(f"{row['name']:24s} {row['rule']}" + (f" (detector: {row['detector']})" if row["detector"] else ""))
