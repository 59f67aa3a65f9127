"""The published Learn-to-Steer classifiers: their architecture, their schedules, their files.

Source: Yiflach, Atzmon, Chechik, arXiv:2509.02295, and the checkpoint files released with it.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, MapSource
from attnsteer.steering.published_checkpoint import read_published as read_published
from attnsteer.steering.published_schedules import PUBLISHED_SCHEDULES as PUBLISHED_SCHEDULES
from attnsteer.steering.published_schedules import PublishedSchedule as PublishedSchedule
from attnsteer.steering.published_schedules import assign_by_intervals as assign_by_intervals
from attnsteer.steering.published_schedules import published_schedule as published_schedule

_POSITIONS = "object_extractor.positional_encoding.pe"


def published_classifier(name: str | Path) -> ClassifierSettings:
    """Architecture and conventions of a published classifier, for training one like it.

    Raises:
        ValueError: if the name is none of the published ones.
    """
    schedule = published_schedule(name)
    flux = schedule.pixels_per_cell is not None
    encoder = EncoderSize(width=256, layers=4 if flux else 2, heads=4 if flux else 2, feedforward=512 if flux else 128)
    return ClassifierSettings(
        relations=("above", "below", "is", "to the left of", "to the right of"),
        channels=schedule.channels,
        map_size=16,
        extractor=encoder,
        pooling_heads=encoder.heads,
        head=replace(encoder, heads=2 * encoder.heads),
        conditioning="index",
        placement="layers",
        num_timesteps=schedule.num_inference_steps,
        source=MapSource(
            model_id=schedule.model_id,
            normalise=schedule.normalise,
            text_length=schedule.text_length,
            timesteps=(1, 3) if schedule.num_inference_steps == 4 else (5, 10, 15, 20, 25, 49),
            num_steps=schedule.num_inference_steps,
            orig_map_size=schedule.image_size // schedule.pixels_per_cell if schedule.pixels_per_cell else None,
        ),
        window=schedule.window,
    )


def read_published_of(path: str | Path, name: str | Path) -> tuple[ClassifierSettings, dict[str, Tensor]]:
    """As `read_published`, with what the checkpoint's name says of model, maps and steps, which the file does not.

    The files have a position for each of 1368 channels whatever the model; those beyond the model's own are cut off,
    so that maps of another model are refused.

    Args:
        path: The file.
        name: Its published name, or the name of its schedule.

    Raises: ValueError if the name is none of the published ones, or the file no such checkpoint.
    """
    schedule = published_schedule(name)
    settings, state = read_published(path)
    own, channels = settings.source, min(settings.channels, schedule.channels)
    state[_POSITIONS] = state[_POSITIONS][:, :channels]
    source = replace(
        own,
        model_id=own.model_id or schedule.model_id,
        normalise=schedule.normalise,
        text_length=schedule.text_length,
        num_steps=own.num_steps or schedule.num_inference_steps,
    )
    return replace(settings, channels=channels, fewer_channels=False, source=source, window=schedule.window), state
