"""Detectors behind one protocol; torch and transformers are loaded when one is made."""

from attnsteer.evaluate.detectors.protocol import NAMES, ClipExaminer, Detector, Examiner, make_detector

__all__ = ["NAMES", "ClipExaminer", "Detector", "Examiner", "make_detector"]
