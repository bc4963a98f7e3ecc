"""From typed message parts to ids: tokenizer, messages, templates, prompts.

Nothing is imported here, so that `import vlm.processor` costs nothing; import the module you need.
"""
