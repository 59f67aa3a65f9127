"""Evaluation: suites of prompts, detectors, scoring rules, metrics, statistics and the report."""
