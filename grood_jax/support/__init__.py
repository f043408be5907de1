"""What everything stands on: checks, errors, files, progress, provenance, pytrees as JSON."""
