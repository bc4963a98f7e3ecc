"""Schemas in, valid JSON out: schema trees, automata, scaffolds and the slot engine.

Nothing is imported here, so that `import vlm.structure` costs nothing; import the module you need.
"""
