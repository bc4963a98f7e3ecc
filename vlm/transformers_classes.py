"""Configuration, processor and model as transformers wants them, around a :class:`vlm.model.DiffusionVLM`.

A prompt is built from typed messages and handed over whole (``prompts``): the ids beside it are for people and for the length of the
output, they are never parsed back. Text can therefore not become a control token on this way either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RawTokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vision.loading import load_image
from vlm.checkpoint import is_pocket
from vlm.checkpoints.hub import TEXTS, find_folder
from vlm.checkpoints.load import read_json
from vlm.checkpoints.write import SHARD_BYTES, save_published
from vlm.decoding.canvas import MASK
from vlm.errors import OptionError, PromptError
from vlm.families.registry import families, find_family
from vlm.model import DiffusionVLM
from vlm.processor.messages import Messages
from vlm.processor.prompt import Prompt
from vlm.processor.template import POCKET, Template
from vlm.processor.tokenizer import Tokenizer
from vlm.processor.vocabulary import qwen_spec
from vlm.published import PublishedEngine
from vlm.writing import Writing

#: Hub options that every ``from_pretrained`` of transformers takes, and ``snapshot_download`` too.
HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
#: What the Auto classes and pipelines pass along and makes no difference here.
PASSED = ("_from_auto", "_from_pipeline", "trust_remote_code", "code_revision", "_commit_hash", "adapter_kwargs", "attn_implementation", "use_fast", "config")
#: Options of a model's ``from_pretrained``; pipelines give them to the processor's as well.
LOADING = ("dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "variant", "tower")
#: Processors that published files name and transformers does not have: it looks a registered one up by that name.
PROCESSORS = {"dimple": "DimpleProcessor", "dream-vl": "DreamVLProcessor"}
#: Options of ``generate`` that name what is so anyway.
WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "return_dict_in_generate": (None, False), "do_sample": (None, False), "num_beams": (None, 1), "num_return_sequences": (None, 1), "use_cache": (None, True),
}  # fmt: skip


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the Hub, the rest) of what a ``from_pretrained`` was called with."""
    for name in PASSED:
        options.pop(name, None)
    hub = {name: options.pop(name) for name in HUB if name in options}
    return {name: value for name, value in hub.items() if value is not None}, options


class DiffusionConfig(PreTrainedConfig):  # type: ignore[misc]
    """A published config.json, kept as it is in `raw`; one subclass for each model_type."""

    def __init__(self, **data: Any) -> None:
        path = data.pop("name_or_path", data.pop("_name_or_path", ""))
        PreTrainedConfig.__init__(self, name_or_path=path)  # type: ignore[call-arg]
        self.raw = {key: value for key, value in data.items() if not isinstance(value, torch.dtype)}  # an option of loading, not of the file
        self.vocab_size = data.get("vocab_size")
        self.hidden_size = data.get("hidden_size", data.get("d_model"))
        self.num_hidden_layers = data.get("num_hidden_layers", data.get("n_layers"))

    def to_dict(self) -> dict[str, Any]:
        """The published config.json."""
        return {**self.raw, "model_type": self.model_type}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


class DiffusionProcessor(ProcessorMixin):  # type: ignore[misc]
    """Messages to prompts, ids to text, in the format of a checkpoint's family.

    Args:
        tokenizer: for code that expects one of transformers' (streamers, pad ids); prompts are not built by it.
        own: ours. template: of the family. folder: where the files are.
    """

    def __init__(self, tokenizer: Any, own: Tokenizer, template: Template, folder: Path) -> None:
        self.chat_template = template.name  # pipelines ask whether there is one
        self.tokenizer, self.own, self.template, self.folder = tokenizer, own, template, folder

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> DiffusionProcessor:  # type: ignore[override]
        """From a folder or Hub id; no weights are fetched."""
        hub, rest = _split(options)
        _refuse({k: v for k, v in rest.items() if k not in LOADING}, "from_pretrained")
        folder = find_folder(path, patterns=TEXTS, **hub)
        config = read_json(folder / "config.json")
        template = POCKET if is_pocket(folder) else find_family(config, str(folder / "config.json")).template
        return cls(_raw_tokenizer(folder, config), Tokenizer.from_file(folder), template, folder)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Write what :meth:`from_pretrained` reads beside a model, and the name of this class for ``AutoProcessor``."""
        if push_to_hub:
            raise OptionError("a processor is pushed with its model", remedy="use model.push_to_hub")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        names = [n for n in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt") if (self.folder / n).is_file()]
        for name in names:
            (target / name).write_bytes((self.folder / name).read_bytes())
        return [str(target / name) for name in names]

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, *, tokenize: bool = False, return_dict: bool = False, add_generation_prompt: bool = True,
        continue_final_message: bool = False, return_tensors: str | None = None, processor_kwargs: Mapping[str, Any] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Prompts of one conversation or a list.

        Returns:
            The prompt as text (a list for a list); with `tokenize` the ids, with `return_dict` what ``generate`` takes:
            input_ids [B, P] with one id at each picture, attention_mask, prompts.

        Raises:
            PromptError: a conversation that is none, that should be continued, or whose template was exchanged.
        """
        _refuse({k: v for k, v in {**options, **(processor_kwargs or {})}.items() if k not in ("padding", "timeout")}, "apply_chat_template")
        if chat_template is not None or continue_final_message or not add_generation_prompt:
            raise PromptError("the template is the family's, and always opens a new answer", remedy="end with a user message")
        if return_tensors not in (None, "pt"):
            raise OptionError(f"return_tensors is {return_tensors!r}", remedy="use 'pt'")
        many = isinstance(conversation, Sequence) and not isinstance(conversation, str) and bool(conversation) and isinstance(conversation[0], list | tuple)
        prompts = [self.template.build(one, self.own) for one in (conversation if many else [conversation])]
        rows = [prompt.lay_out([1] * len(prompt.images)).ids for prompt in prompts]
        if not tokenize:
            texts = [self.own.decode(row, specials=True) for row in rows]
            return texts if many else texts[0]
        if return_dict:
            return self._batch(prompts, rows)
        return self._batch(prompts, rows)["input_ids"] if return_tensors else (rows if many else rows[0])

    def __call__(self, images: Any = None, text: Any = None, *, return_tensors: str | None = None, **options: Any) -> BatchFeature:
        """One user turn: pictures, then text; lists of equal length make a batch."""
        _refuse({k: v for k, v in options.items() if k not in ("padding", "timeout")}, "the processor")
        texts = [text] if isinstance(text, str) or text is None else list(text)
        pictures = [images] if len(texts) == 1 else list(images) if images is not None else [None] * len(texts)
        if len(pictures) != len(texts):
            raise PromptError(f"{len(pictures)} pictures for {len(texts)} texts", remedy="give one (or a list) for each text")
        turns: list[Messages] = []
        for words, seen in zip(texts, pictures, strict=True):
            parts: list[Any] = [{"type": "image", "image": image} for image in (seen if isinstance(seen, list | tuple) else [seen]) if image is not None]
            turns.append([{"role": "user", "content": [*parts, {"type": "text", "text": words or ""}]}])
        prompts = [self.template.build(turn, self.own) for turn in turns]
        return self._batch(prompts, [prompt.lay_out([1] * len(prompt.images)).ids for prompt in prompts])

    def _batch(self, prompts: list[Prompt], rows: list[list[int]]) -> BatchFeature:
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "prompts": prompts})

    def decode(self, ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        """Text of one row of ids."""
        return self.own.decode([int(i) for i in ids], specials=not skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """Text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any) -> list[str]:
        """Like :meth:`batch_decode`; the name that pipelines use."""
        return self.batch_decode(generated_outputs, skip_special_tokens)


def _raw_tokenizer(folder: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    file = folder / "tokenizer.json"
    raw = RawTokenizer.from_file(str(file)) if file.is_file() else RawTokenizer.from_str(json.dumps(qwen_spec(folder)))
    inner = config.get("backbone") or config.get("text_config") or config  # pocket and some VLMs keep the text model's ids inside
    eos, pad = (inner.get(name, config.get(name)) for name in ("eos_token_id", "pad_token_id"))
    eos = eos[0] if isinstance(eos, list) else eos
    names = {"eos_token": eos, "pad_token": eos if pad is None else pad}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{name: raw.id_to_token(i) for name, i in names.items() if i is not None and raw.id_to_token(i)})


def _bytes(size: int | str) -> int:
    """A size as transformers takes it: a number, or '5GB'."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    match = re.fullmatch(r"([\d.]+)\s*([A-Z]+)", str(size).upper())
    if isinstance(size, int) and size > 0:
        return size
    if match is None or match[2] not in units:
        raise OptionError(f"max_shard_size is {size!r}", remedy="use a number of bytes, or '5GB'")
    return int(float(match[1]) * units[match[2]])


def _refuse(options: Mapping[str, Any], where: str) -> None:
    if options:
        raise OptionError(f"{where} does not take {', '.join(sorted(options))}", remedy="leave it out")


class DiffusionModel(PreTrainedModel):  # type: ignore[misc]
    """A model of ours behind ``generate``; `vlm` is the whole of it, with ``ask``, ``extract`` and so on.

    Args:
        config: of the checkpoint. vlm: the model.
    """

    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  transformers' own attribute
    _supports_sdpa = True

    def __init__(self, config: DiffusionConfig, vlm: DiffusionVLM) -> None:
        super().__init__(config)
        self.vlm = vlm
        self.model = vlm.engine.model  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *args: Any, dtype: Any = None, torch_dtype: Any = None, **options: Any
    ) -> DiffusionModel:
        """Load a folder or Hub id.

        Args:
            dtype: 'auto' and None keep what is stored. options: ``device_map``, ``max_memory``, ``offload_folder``, ``variant``,
                ``tower`` of :meth:`vlm.model.DiffusionVLM.from_pretrained`, and the Hub's.

        Raises:
            VLMError: as there.
        """
        _refuse({f"{len(args)} positional arguments": args} if args else {}, "from_pretrained")
        hub, rest = _split(options)
        folder = find_folder(path, **hub)
        wanted = dtype if dtype is not None else torch_dtype
        name = None if wanted in (None, "auto") else str(wanted).removeprefix("torch.")
        _refuse({k: v for k, v in rest.items() if k not in LOADING}, "from_pretrained")
        if isinstance(rest.get("device_map"), str | int | torch.device) and rest["device_map"] != "auto":  # transformers' way to name one device
            rest["device"] = str(rest.pop("device_map"))
        vlm = DiffusionVLM.from_pretrained(folder, dtype=name, **rest)
        vlm.name = Path(path).name
        kind: Any = cls.config_class
        model = cls(kind(**read_json(folder / "config.json"), name_or_path=str(path)), vlm)
        if rest.get("device_map") is not None:
            model.__dict__["hf_device_map"] = {"": model.device}  # tells pipelines to leave it where it is
        return model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, push_to_hub: bool = False, max_shard_size: int | str = SHARD_BYTES, **options: Any
    ) -> None:
        """Write the checkpoint in its published layout, tokenizer and configurations beside it; ``push_to_hub`` uploads that.

        Raises:
            OptionError: pocket, parameters on disk, unknown options.
        """
        hub = {k: options.pop(k) for k in ("repo_id", "commit_message", "private", "token", "create_pr", "revision") if k in options}
        _refuse({k: v for k, v in options.items() if k not in ("safe_serialization", "is_main_process")}, "save_pretrained")
        engine = self.vlm.engine
        if not isinstance(engine, PublishedEngine) or any(p.is_meta for p in engine.model.parameters()):
            raise OptionError("only a published checkpoint that is wholly in memory can be written", remedy="load it without a device_map, or copy its folder")
        loaded = engine.loaded
        save_published(loaded.model, loaded.family, loaded.config, save_directory, source=loaded.folder, shard_bytes=_bytes(max_shard_size))
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    @classmethod
    def can_generate(cls) -> bool:
        """Yes, in its own way."""
        return True

    def forward(self, *args: Any, **options: Any) -> Any:
        """There is no forward over ids alone: use ``generate``, or ``vlm.engine.denoiser``."""
        raise OptionError("a diffusion model has no forward over input_ids alone", remedy="use generate(**processor(...)), or model.vlm")

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs: Any = None, *, prompts: Sequence[Prompt] | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None, max_new_tokens: int | None = None, pad_token_id: int | None = None, streamer: Any = None,
        **decoding: Any,
    ) -> Tensor:  # fmt: skip
        """Fill a canvas behind each prompt.

        Args:
            prompts, input_ids: of our processor. max_new_tokens: cells of the canvas, 64 by default.
            generation_config: its max_new_tokens counts, if the argument is not given; nothing else of it.
            streamer: gets the prompt (`put`), if it takes drafts the canvas after each step (`put_draft`, masks as the mask
                token), the answer when it is final (`put`), and the end (`end`); one prompt only.
            decoding: ``preset``, ``seed`` and the preset's options.

        Returns:
            [B, P + N] ids: prompt, answer and what ended it, padding.

        Raises:
            PromptError: no prompts. OptionError: options that do not exist here.
        """
        if prompts is None or input_ids is None:
            raise PromptError("there are no prompts", source="generate", remedy="pass on everything the processor gives: model.generate(**inputs)")
        for name, values in WITHOUT_EFFECT.items():
            if name in decoding and decoding.pop(name) not in values:
                raise OptionError(f"{name} works for autoregressive models only", remedy="use a preset and its options, such as temperature")
        cells = max_new_tokens or (generation_config.max_new_tokens if generation_config is not None else None) or 64
        if streamer is not None:
            if len(prompts) > 1:
                raise OptionError(f"a streamer takes one prompt, not {len(prompts)}", remedy="leave it out, or go one by one")
            streamer.put(input_ids[:1].cpu())
        answers = [self._answer(prompt, cells, streamer, decoding) for prompt in prompts]
        if streamer is not None:
            streamer.end()
        width = max(map(len, answers), default=0)
        pad = self.vlm.engine.symbols.pad if pad_token_id is None else pad_token_id
        filled = torch.tensor([ids + [pad] * (width - len(ids)) for ids in answers], dtype=torch.long).view(len(answers), width)
        return torch.cat((input_ids.cpu(), filled), dim=1)

    def _answer(self, prompt: Prompt, cells: int, streamer: Any, decoding: dict[str, Any]) -> list[int]:
        engine = self.vlm.engine
        plan = engine.plan(decoding)
        pictures = engine.see_all([load_image(image).rgb for image in prompt.images])
        denoiser = engine.denoiser([prompt], [pictures], cells, plan)
        writing = Writing(engine, denoiser, 1, cells, plan)
        for frame in writing.frames():
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(torch.tensor(_written(frame.ids[0], frame.state[0] == MASK, engine.stop_ids)))
        ids = _written(writing.canvas.ids[0], writing.canvas.masked[0], engine.stop_ids)
        if streamer is not None:
            streamer.put(torch.tensor(ids))
        return ids


def _written(ids: torch.Tensor, masked: torch.Tensor, stop_ids: Sequence[int]) -> list[int]:
    """Ids [L] up to the first end token that is known."""
    found: list[int] = ids.tolist()
    return found[: next((i + 1 for i, token in enumerate(found) if token in stop_ids and not masked[i]), len(found))]


def register() -> tuple[str, ...]:
    """Give the Auto classes a configuration, processor and model for each model_type of ours; returns those."""
    done = []
    for model_type in sorted({"pocket", *(t for family in families().values() for t in family.model_types)}):
        if model_type in CONFIG_MAPPING:
            continue
        name = "".join(part.capitalize() for part in model_type.replace("-", "_").split("_"))
        # __init__ is named because transformers writes one of its own for every subclass without
        inside = {"model_type": model_type, "__module__": __name__, "__init__": DiffusionConfig.__init__}
        config = type(f"{name}DiffusionConfig", (DiffusionConfig,), inside)
        model = type(f"{name}DiffusionModel", (DiffusionModel,), {"config_class": config, "__module__": __name__})
        AutoConfig.register(model_type, config)
        named = PROCESSORS.get(model_type)
        AutoProcessor.register(config, type(named, (DiffusionProcessor,), {"__module__": __name__}) if named else DiffusionProcessor)
        AutoModelForImageTextToText.register(config, model)
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.setdefault(model_type, model.__name__)  # the list that pipelines check names against
        done.append(model_type)
    return tuple(done)
