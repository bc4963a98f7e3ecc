"""Grounding: actions on screens, the formats other models write them in, benchmarks on disk, pictures with boxes.

Nothing is imported here; import the module you need.
"""
