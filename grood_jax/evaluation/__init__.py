"""Detectors fitted, tuned, scored, and their figures recorded."""
