"""The settings of `LearnedSteering` that a classifier brings along: its maps, its steps, its rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.published import published_schedule, read_published_of
from attnsteer.steering.recording import Recording


def advised(classifier: RelationClassifier) -> dict[str, Any]:
    """The recording, the trained steps, the lean rule and, where they are known, start and end.

    The window is the classifier's own, or else reaches from the first step that it was trained on to the last.
    """
    source, window = classifier.settings.source, classifier.settings.window
    own: dict[str, Any] = {
        "recording": Recording(source.layers, classifier.settings.map_size, source.normalise, source.text_length),
        "timesteps": source.timesteps,
        "rule": LeanRule(**classifier.settings.lean.settings()),
    }
    if window is None and source.timesteps and source.num_steps:
        window = source.timesteps[0] / source.num_steps, (source.timesteps[-1] + 1) / source.num_steps
    if window is not None:
        own["start"], own["end"] = window
    return own


def official(path: str | Path, schedule: str | Path, stop_at_first: bool) -> tuple[RelationClassifier, dict[str, Any]]:
    """A published checkpoint, and what its official schedule says beyond `advised`: the rule, and the maps' size.

    Args:
        path: The file.
        schedule: Its published name, or the name of its schedule.
        stop_at_first: See `PublishedRule`.

    Raises: ValueError if the file is no such checkpoint, or the name is not known.
    """
    plan = published_schedule(schedule)
    classifier = RelationClassifier.from_state(*read_published_of(path, schedule), path)
    side = classifier.settings.source.orig_map_size if plan.pixels_per_cell else None
    return classifier, {
        "rule": PublishedRule(plan.step_size, plan.loss_targets, plan.max_iterations, stop_at_first),
        "recording": Recording(None, classifier.settings.map_size, plan.normalise, plan.text_length, side),
    }
