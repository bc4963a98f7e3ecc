"""Pocket's default decoding against an autoregressive decoder of the same width, depth and vocabulary.

``python -m benchmarks.autoregressive --pages 6``

The autoregressive decoder is a causal transformer with a preallocated key/value cache and greedy choice, in whichever of
float32 and bfloat16 is faster here; it has no copy head and pays for no grammar. Its weights are random: its time does
not depend on them. Both sides start from the same reading and encode the same prompt. Two counts of output tokens:

- json: all tokens of the JSON answer, which is what a decoder without a scaffold writes;
- values: only the tokens of the values and one to end each, as if a scaffold gave it all literals for nothing.

The answer whose tokens are counted is the true one. With ``--random`` pocket's weights are random too: then its number of
forwards means nothing, and only ms per forward and the break-even number of forwards do.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DocumentPage, arguments, load, median, pages, report, timed
from kernels.attention import attention
from kernels.rope import rope_table
from vlm.backbone.cache import PrefixCache
from vlm.backbone.model import DiffusionBackbone
from vlm.model import DiffusionVLM
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema


class CausalDecoder:
    """One token at a time behind an encoded prompt.

    Args:
        backbone: sizes and layers. dtype: of weights and cache.
    """

    def __init__(self, backbone: DiffusionBackbone, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        self.net = DiffusionBackbone(backbone.config).eval().to(dtype)
        self.dtype = dtype

    @torch.inference_mode()
    def run(self, prefix: PrefixCache, tokens: int) -> Tensor:
        """Greedy [tokens] behind a prefix of one row."""
        config, net = self.net.config, self.net
        start = prefix.valid.shape[1]
        room = start + tokens
        keys = [torch.zeros(1, config.num_kv_heads, room, config.width_per_head, dtype=self.dtype) for _ in range(config.num_layers)]
        values = [torch.zeros_like(k) for k in keys]
        for layer in range(config.num_layers):
            keys[layer][:, :, :start], values[layer][:, :, :start] = prefix.keys[layer], prefix.values[layer]
        cosines, sines = rope_table(torch.arange(room)[None], config.width_per_head, config.rope_theta)
        out = torch.full((tokens,), config.eos_token_id)
        token = torch.tensor([[config.bos_token_id or 0]])
        for i in range(tokens):
            at = start + i
            rope = (cosines[:, :, at : at + 1], sines[:, :, at : at + 1])
            x = net.embed(token)
            for layer, block in enumerate(net.blocks):
                q, k, v = block.attention.project(block.attention_norm(x), rope)
                keys[layer][:, :, at : at + 1], values[layer][:, :, at : at + 1] = k, v
                mixed = attention(q, keys[layer][:, :, : at + 1], values[layer][:, :, : at + 1])
                x = block.feed_forward(x + block.attention.out(mixed.transpose(1, 2).flatten(-2)))
            token = net.logits(net.norm(x)).argmax(dim=-1)
            out[i] = token[0, 0]
        return out


def fastest(backbone: DiffusionBackbone, prefix: PrefixCache) -> CausalDecoder:
    """The decoder in the precision that takes less time for 24 tokens."""
    decoders = [CausalDecoder(backbone, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for decoder in decoders:
        decoder.run(prefix, 4)
    return min(decoders, key=lambda d: median([timed(lambda: d.run(prefix, 24))[1] for _ in range(3)]))


def output_tokens(scaffold: Scaffold, truth: dict[str, Any]) -> tuple[int, int]:
    """Tokens of (the whole JSON, the values with one end each) of the true answer."""
    literals = sum(number < 0 for number in scaffold.slot_of)
    value = sum(len(scaffold.tokenizer.encode_chars(str(truth[s.pointer]))) if s.pointer in truth else 1 for s in scaffold.slots)
    return literals + value, value + len(scaffold.slots)


def compare(model: DiffusionVLM, page: DocumentPage, decoder: CausalDecoder) -> dict[str, float]:
    """One page both ways; pocket first and last."""
    scaffold = compile_scaffold(parse_schema(page.case.schema), model.tokenizer)
    json_tokens, value_tokens = output_tokens(scaffold, page.case.truth)

    def encode() -> PrefixCache:
        return model.engine.denoiser([model._prompt("")], [[page.reading]], len(scaffold)).prefix.cache

    result, before = timed(lambda: model.extract(page.image, page.case.schema))
    prefix, prompt_ms = timed(encode)
    _, json_ms = timed(lambda: decoder.run(prefix, json_tokens))
    _, value_ms = timed(lambda: decoder.run(prefix, value_tokens))
    _, after = timed(lambda: model.extract(page.image, page.case.schema))
    ms = (before + after) / 2
    per_forward = max(ms - prompt_ms, 0.01) / result.usage.forwards
    return {
        "pocket_ms": ms, "forwards": result.usage.forwards, "ms_per_forward": per_forward, "prompt_ms": prompt_ms, "read_ms": page.read_ms,
        "json_tokens": json_tokens, "json_ms": prompt_ms + json_ms, "json_ratio": (prompt_ms + json_ms) / ms, "json_break_even": json_ms / per_forward,
        "value_tokens": value_tokens, "value_ms": prompt_ms + value_ms, "value_ratio": (prompt_ms + value_ms) / ms, "value_break_even": value_ms / per_forward,
        "json_ratio_with_reading": (page.read_ms + prompt_ms + json_ms) / (page.read_ms + ms),
    }  # fmt: skip


def main() -> int:
    """Command line."""
    args = arguments(__doc__).parse_args()
    model = load(args)
    todo = pages(model, args.pages, args.random)
    model.extract(todo[0].image, todo[0].case.schema)  # warm up
    cache = model.engine.denoiser([model._prompt("")], [[todo[0].reading]], 8).prefix.cache
    decoder = fastest(model.engine.model.backbone, cache)
    rows = []
    for page in todo:
        rows.append(compare(model, page, decoder))
        print(" ".join(f"{k}={v:.4g}" for k, v in rows[-1].items()), file=sys.stderr)

    def middle(name: str) -> float:
        return median([row[name] for row in rows])

    report(args, model, {
        "pages": len(rows), "autoregressive weights": f"random, {str(decoder.dtype).removeprefix('torch.')}",
        "pocket's weights": "random: forwards mean nothing" if args.random else "trained",
        "ms per page, pocket, from the reading on": middle("pocket_ms"), "forwards per page": middle("forwards"), "ms per forward": middle("ms_per_forward"),
        "json: tokens": middle("json_tokens"), "json: ms, autoregressive": middle("json_ms"),
        "json: autoregressive / pocket, median of pairs": middle("json_ratio"),
        "json: the same with reading": middle("json_ratio_with_reading"), "json: forwards at which both are equal": middle("json_break_even"),
        "values: tokens": middle("value_tokens"), "values: ms, autoregressive": middle("value_ms"),
        "values: autoregressive / pocket, median of pairs": middle("value_ratio"),
        "values: forwards at which both are equal": middle("value_break_even"), "rows": rows,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
