"""Published checkpoints on disk: headers, key maps, loading, writing.

Nothing is imported here, so that `import vlm.checkpoints` costs nothing; import the module you need.
"""
