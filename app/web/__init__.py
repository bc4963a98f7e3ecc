"""The browser front end behind ``vlm demo``: one small file per page, one way to run and to show a request.

Needs the extra ``demo`` (Gradio 6). Nothing here is imported before the command asks for it, and nothing here knows how a
model works: pages call :class:`vlm.DiffusionVLM` and draw what its streams yield.
"""
