"""Prompts of the suites, read from their published files or drawn from a seed. No torch."""

from attnsteer.evaluate.prompts.task import Task

__all__ = ["Task"]
