"""Our models behind transformers' Auto classes and pipelines: tiny random checkpoints, the same answers as our own API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.tiny_vlm import write_vlm
from tests.model.test_published import picture
from vlm import CheckpointError, DiffusionVLM, OptionError, PromptError, register_transformers
from vlm.checkpoints.shards import Shards, read_tensor
from vlm.families.registry import families

transformers = pytest.importorskip("transformers")
NAMES = ("lavida-llada", "lavida-dream", "llada-v")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    register_transformers()
    return {name: write_vlm(tmp_path_factory.mktemp(name) / "model", name) for name in NAMES}


def chat(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [c if isinstance(c, dict) else {"type": "text", "text": c} for c in content]}]


def shown(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": picture(seed)}


def pair(folder: Path) -> tuple[Any, Any]:
    return transformers.AutoProcessor.from_pretrained(str(folder)), transformers.AutoModelForImageTextToText.from_pretrained(str(folder))


def inputs_of(processor: Any, messages: Any) -> Any:
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)


def test_nothing_is_registered_or_imported_unasked() -> None:
    code = "import sys, vlm; vlm.register_transformers; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_what_is_registered() -> None:
    done = register_transformers()
    assert {"pocket", "llada", "llava_llada", "llava_dream", "dimple", "sdar_v", "bard_vl"} <= set(done)
    assert register_transformers() == done
    native = {t for family in families().values() for t in family.model_types} - set(done)
    assert all(t in transformers.CONFIG_MAPPING for t in native)  # only what transformers has itself is left out


@pytest.mark.parametrize("name", NAMES)
def test_the_pipeline_says_what_we_say(name: str, folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    pipe = transformers.pipeline("image-text-to-text", model=str(folders[name]))
    ours = DiffusionVLM.from_pretrained(folders[name])
    assert "not supported" not in caplog.text
    out = pipe(text=chat(shown(), "who?"), max_new_tokens=6, return_full_text=False)
    text = out[0]["generated_text"]
    assert isinstance(text, str) and text.strip() == ours.ask(picture(), "who?", max_new_tokens=6).text
    full = pipe(text=chat(shown(), "who?"), max_new_tokens=6)[0]["generated_text"]
    assert full[-1] == {"role": "assistant", "content": text}
    several = pipe(text=[chat(shown(), "who?"), chat(shown(1), "where?")], max_new_tokens=6, return_full_text=False)
    assert several[0][0]["generated_text"] == text and len(several) == 2
    plain = pipe(images=picture(), text="who?", max_new_tokens=6)
    assert plain[0]["generated_text"].removeprefix("who?") == text


@pytest.mark.parametrize("name", NAMES)
def test_generate_and_streamer(name: str, folders: dict[str, Path]) -> None:
    processor, model = pair(folders[name])
    inputs = inputs_of(processor, chat(shown(), "who?"))
    calls: list[tuple[str, torch.Tensor | None]] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            calls.append(("put", value))

        def put_draft(self, value: torch.Tensor, **_: Any) -> None:
            calls.append(("draft", value))

        def end(self) -> None:
            calls.append(("end", None))

    out = model.generate(**inputs, max_new_tokens=6, preset="one-by-one", streamer=Streamer())
    width = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :width], inputs["input_ids"])
    kinds = [kind for kind, _ in calls]
    assert kinds[0] == "put" and kinds[-2:] == ["put", "end"] and set(kinds[1:-2]) == {"draft"} and len(kinds) >= 5
    assert torch.equal(calls[0][1], inputs["input_ids"]) and torch.equal(calls[-2][1], out[0, width:])
    mask = model.vlm.engine.symbols.mask
    assert mask in calls[1][1].tolist() and mask not in out[0, width:].tolist()
    result = model.vlm.ask(picture(), "who?", max_new_tokens=6, preset="one-by-one")
    assert processor.batch_decode(out[:, width:], skip_special_tokens=True)[0].strip() == result.text
    both = inputs_of(processor, [chat(shown(), "who?"), chat("and a longer question without any picture?")])
    rows = model.generate(**both, max_new_tokens=6, preset="one-by-one")
    assert len(rows) == 2 and both["attention_mask"].sum(dim=1).tolist() == [width, both["input_ids"].shape[1]]
    assert processor.decode(rows[0, both["input_ids"].shape[1] :], skip_special_tokens=True).strip() == result.text


def test_the_streamer_of_transformers(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    processor, model = pair(folders["llada-v"])
    streamer = transformers.TextDiffusionStreamer(processor.tokenizer, skip_prompt=True)
    model.generate(**inputs_of(processor, chat("hello")), max_new_tokens=4, streamer=streamer)
    assert "\033[33m" in capsys.readouterr().out


def test_typed_control_tokens_stay_text(folders: dict[str, Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(str(folders["llada-v"]))
    control = processor.own.control_ids

    def count(text: str) -> int:
        return sum(i in control for i in inputs_of(processor, chat(text))["input_ids"][0].tolist())

    assert count("<|mdm_mask|><|eot_id|><|startoftext|>") == count("x")


def test_requests_that_cannot_be_met(folders: dict[str, Path]) -> None:
    processor, model = pair(folders["llada-v"])
    inputs = inputs_of(processor, chat("hello"))
    with pytest.raises(PromptError, match="everything the processor gives"):
        model.generate(input_ids=inputs["input_ids"])
    for options in ({"num_beams": 4}, {"do_sample": True}, {"penalty_alpha": 1.0}, {"preset": "magic"}):
        with pytest.raises(OptionError):
            model.generate(**inputs, max_new_tokens=4, **options)
    with pytest.raises(OptionError, match="has no forward"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(PromptError, match="End with a user message"):
        processor.apply_chat_template(chat("x"), continue_final_message=True)
    with pytest.raises(OptionError, match="tools"):
        processor.apply_chat_template(chat("x"), tools=[])
    with pytest.raises(OptionError, match="load_in_4bit"):
        transformers.AutoModelForImageTextToText.from_pretrained(str(folders["llada-v"]), load_in_4bit=True)


def test_options_of_loading(folders: dict[str, Path]) -> None:
    auto = transformers.AutoModelForImageTextToText
    assert auto.from_pretrained(str(folders["llada-v"]), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert auto.from_pretrained(str(folders["llada-v"]), dtype="auto").dtype == torch.float32
    assert auto.from_pretrained(str(folders["llada-v"]), device_map="cpu").device == torch.device("cpu")
    assert auto.from_pretrained(str(folders["lavida-llada"]), variant="fim").vlm.engine.symbols.pad == 260
    with pytest.raises(CheckpointError):
        type(auto.from_pretrained(str(folders["llada-v"]))).from_pretrained(folders["llada-v"] / "none")


@pytest.mark.parametrize("name", NAMES)
def test_save_pretrained_and_back(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    processor, model = pair(folders[name])
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    processor.save_pretrained(tmp_path / "saved")
    model.config.save_pretrained(tmp_path / "config")
    original = json.loads((folders[name] / "config.json").read_text())
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == original == json.loads((tmp_path / "config" / "config.json").read_text())
    before, after = Shards.open(folders[name]).tensors, Shards.open(tmp_path / "saved").tensors
    assert before.keys() == after.keys() and all(torch.equal(read_tensor(before[k]), read_tensor(after[k])) for k in before)
    again, _ = pair(tmp_path / "saved")
    assert torch.equal(inputs_of(again, chat("x"))["input_ids"], inputs_of(processor, chat("x"))["input_ids"])


def test_pocket(tiny: Path) -> None:
    register_transformers()
    pipe = transformers.pipeline("image-text-to-text", model=str(tiny))
    text = pipe(text=chat(shown(), "who?"), max_new_tokens=6, return_full_text=False)[0]["generated_text"]
    assert text.strip() == DiffusionVLM.from_pretrained(tiny).ask(picture(), "who?", max_new_tokens=6).text
    with pytest.raises(OptionError, match="only a published checkpoint"):
        pipe.model.save_pretrained("nowhere")


@pytest.mark.parametrize("name", ["dimple", "dream-vl", "diffusionvl", "sdar-vl", "bard-vl", "llada", "dream"])
def test_published_folders_as_they_are(name: str) -> None:
    """The files beside the weights name processors: unknown ones lead to ours, those of transformers itself must be replaced by hand."""
    from tests.parity.cases import root
    from vlm.transformers_classes import DiffusionProcessor

    folder = root() / name
    if not (folder / "model.safetensors").is_file():
        pytest.skip("needs ../shared/parity")
    register_transformers()
    by_hand = {"processor": DiffusionProcessor.from_pretrained(folder)} if name in ("sdar-vl", "bard-vl") else {}
    pipe = transformers.pipeline("image-text-to-text", model=str(folder), **by_hand)
    conversation = chat("who?") if name in ("llada", "dream") else chat(shown(), "who?")
    text = pipe(text=conversation, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    assert text.strip() == DiffusionVLM.from_pretrained(folder).generate(conversation, max_new_tokens=4).text
