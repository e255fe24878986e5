"""Experiment trackers: which there are, and what each does in its own way. Everything else is accelerate's."""
