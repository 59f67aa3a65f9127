"""The model card (README.md) of a relation classifier: intended use, how it was measured, leakage test."""

from typing import Any

from attnsteer.steering.classifier_settings import ClassifierSettings
from attnsteer.steering.metrics import leakage_verdict


def model_card(settings: ClassifierSettings, metrics: dict[str, Any] | None) -> str:
    """Markdown with the Hub's YAML header.

    Args:
        settings: Of the classifier.
        metrics: What `attnsteer.steering.metrics.evaluate` returned, or None if the classifier was not measured here.
    """
    return "\n".join([*_header(settings), *_use(settings), *_figures(settings, metrics)]) + "\n"


def _header(settings: ClassifierSettings) -> list[str]:
    lines = ["---", "library_name: attnsteer", "tags:", "- attention-steering", "- spatial-relations"]
    if settings.source.model_id.count("/") == 1:
        lines.append(f"base_model: {settings.source.model_id}")
    return [*lines, "---", ""]


def _use(settings: ClassifierSettings) -> list[str]:
    source = settings.source
    layers = "all attention layers that read text" if source.layers is None else ", ".join(source.layers)
    noise = "log-SNR" if settings.conditioning == "log_snr" else f"step index of {settings.num_timesteps}"
    steps = f", trained at steps {', '.join(map(str, source.timesteps))}" if source.timesteps else ""
    return [
        "# Relation classifier for attention steering",
        "",
        f"Reads where one object stands relative to another from the attention maps of "
        f"{source.model_id or 'a text-to-image model'} while it draws. Its gradient moves the latents until the "
        "picture agrees with the prompt (Learn-to-Steer, [arXiv:2509.02295](https://arxiv.org/abs/2509.02295)).",
        "",
        "## Intended use",
        "",
        "Steering the model it was trained on, through attnsteer. It judges relations in the picture plane, from "
        "attention maps; it is no detector, and its probabilities mean nothing for other models or layers.",
        "",
        f"- relations: {', '.join(settings.relations)}",
        f"- maps: {layers}; up to {settings.channels} channels of {settings.map_size} x {settings.map_size} cells, "
        + ("each divided by its sum" if source.normalise else "not normalised"),
        f"- noise level: {noise}{steps}",
        "",
        "```python",
        "from attnsteer import RelationClassifier",
        "",
        'classifier = RelationClassifier.from_pretrained("path or user/name")',
        "logits = classifier(maps, timestep)  # maps: (batch, 2 objects, channels, height, width)",
        "```",
        "",
    ]


def _figures(settings: ClassifierSettings, metrics: dict[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["## Measured", "", "Not measured here."]
    lines = ["## Measured", "", f"Accuracy {metrics['accuracy']:.3f} on {metrics['samples']} held-out samples.", ""]
    for title, key in (("noise level", "accuracy_by_timestep"), ("relation", "accuracy_by_relation")):
        lines += [f"| {title} | accuracy | samples |", "|---|---|---|"]
        lines += [f"| {name} | {_share(row['accuracy'])} | {row['samples']} |" for name, row in metrics[key].items()]
        lines.append("")
    lines += ["Confusion matrix (rows: truth, columns: prediction):", ""]
    lines += ["| | " + " | ".join(settings.relations) + " |", "|---" * (len(settings.relations) + 1) + "|"]
    for name, row in zip(settings.relations, metrics["confusion"], strict=True):
        lines.append(f"| {name} | " + " | ".join(map(str, row)) + " |")
    return [*lines, "", *_leakage(metrics["leakage"])]


def _leakage(leakage: dict[str, Any]) -> list[str]:
    return [
        "## Leakage test",
        "",
        "A classifier that reads the relation word of the prompt out of the maps, instead of the places of the "
        "objects, cannot steer. Accuracy must not depend on whether the prompt's word is right.",
        "",
        "| relation word in the prompt | accuracy | samples | pictures |",
        "|---|---|---|---|",
        *(
            f"| {name} | {_share(row['accuracy'])} | {row['samples']} | {row.get('pictures', 'not counted')} |"
            for name, row in leakage["by_word"].items()
        ),
        "",
        f"Right minus wrong: {_share(leakage['gap'])}, standard error {_share(leakage['gap_error'])} "
        f"(limit {leakage['limit']:.2f}): {leakage_verdict(leakage)}.",
    ]


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
