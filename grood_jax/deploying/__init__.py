"""A classifier that says what it does not know, shipped: saved, exported, served."""
