"""From scores to promises: conformal calibration, and drift of a stream of p-values."""
