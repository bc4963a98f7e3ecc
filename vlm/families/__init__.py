"""Families: one small module of data and flags per kind of checkpoint.

Nothing is imported here, so that `import vlm.families` costs nothing; see ``vlm.families.registry``.
"""
