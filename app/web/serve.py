"""``vlm demo``: load the model, then serve the front end."""

from __future__ import annotations

import argparse
import ipaddress
import os
from typing import Any

from app.commands import load_model, log
from vision.errors import DependencyError
from vlm.errors import OptionError, VLMError

#: Gradio looks at these when it is imported; whoever set them otherwise keeps them.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C.

    Raises:
        DependencyError: Gradio is not installed. OptionError: a port or address that cannot be used.
    """
    check_installed()
    from app.web.build import build_demo, launch_options

    local = is_local(args.host)
    if not 0 <= args.port < 65536:
        raise OptionError(f"--port is {args.port}", remedy="use 0 to 65535")
    if not local:
        log(f"{args.host} can be reached from other machines, and there is no password; whoever reaches it can use the model")
    model = load_model(args)
    warm_up(model)
    demo = build_demo(model, local=local or args.infill)
    try:
        _, url, _ = demo.launch(server_name=args.host, server_port=args.port or None, inbrowser=args.open, prevent_thread_lock=True, **launch_options())
    except OSError as error:
        raise OptionError(f"cannot listen on {args.host} port {args.port} ({error})", remedy="name another --port") from error
    log(f"{model.name} is ready on {url} (Ctrl-C stops)")
    demo.block_thread()
    return 0


def check_installed() -> None:
    """Raise DependencyError unless a Gradio that the pages can use is there."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    try:
        import gradio
    except ImportError as error:
        raise DependencyError(
            "the browser front end needs Gradio, which is not installed", remedy="install the extra: pip install 'diffusion-vlm[demo]'"
        ) from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise DependencyError(
            f"Gradio {gradio.__version__} is too old for the browser front end", remedy="install the extra: pip install 'diffusion-vlm[demo]'"
        )


def is_local(host: str) -> bool:
    """Whether an address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def warm_up(model: Any) -> None:
    """Answer one small request, so that the first visitor does not wait for what is made only once."""
    from app.web.controls import example

    try:
        model.ask(example("shapes.png"), "what is this?", max_new_tokens=4)
    except VLMError as error:
        log(f"warning: the model does not answer: {error}")
