"""Measurements of speed: every ratio comes from pairs run in one process, and says what it compares."""
