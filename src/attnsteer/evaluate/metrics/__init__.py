"""Distances between sets of pictures, and scores of pictures against texts, with injected feature extractors."""

from attnsteer.evaluate.metrics.extractors import Extractor, Pixels
from attnsteer.evaluate.metrics.frechet import frechet_distance
from attnsteer.evaluate.metrics.kernel import kernel_distance
from attnsteer.evaluate.metrics.patches import PatchSource

__all__ = ["Extractor", "PatchSource", "Pixels", "frechet_distance", "kernel_distance"]
