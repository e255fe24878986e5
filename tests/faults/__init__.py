"""Faults on purpose, to whole runs in real processes: make test-faults."""
