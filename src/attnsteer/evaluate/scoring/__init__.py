"""Scoring rules: what detected boxes say about a prompt. No torch."""

from attnsteer.evaluate.scoring.boxes import Box, Verdict

__all__ = ["Box", "Verdict"]
