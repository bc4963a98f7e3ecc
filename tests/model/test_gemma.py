"""The public API on a tiny random DiffusionGemma. What it says means nothing here."""

import json
import sys

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="DiffusionGemma is run by transformers, which is not installed")

from tests.families.tiny_gemma import CANVAS, VOCAB, control_id, write_gemma
from tests.model.test_published import SCHEMA, picture, said
from vision.errors import DependencyError
from vlm import CheckpointError, ContextLengthError, DiffusionVLM, ImagePart, OptionError, user
from vlm.checkpoints.load import inspect
from vlm.decoding.canvas import MASK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_gemma(tmp_path_factory.mktemp("gemma") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return DiffusionVLM.from_pretrained(folder)


QUICK = {"steps": 3}


def test_lists_equal_singles(model):
    images = [picture(0), picture(1, (20, 64))]
    for call in (
        lambda x: model.ask(x, "who?", max_new_tokens=6, **QUICK), lambda x: model.caption(x, max_new_tokens=CANVAS + 3, **QUICK),
        lambda x: model.extract(x, SCHEMA, **QUICK),
    ):  # fmt: skip
        together = call(images)
        for image, result in zip(images, together, strict=True):
            assert said(call(image)) == said(result) and result.usage.steps >= 3


def test_a_scaffold_holds_and_its_data_fits(model):
    """What the published loop cannot do: every literal cell stands, whatever the weights say."""
    for seed in range(3):
        result = model.extract(picture(seed), SCHEMA, seed=seed, **QUICK)
        jsonschema.validate(result.data, SCHEMA)
        assert json.loads(result.text) == result.data and set(result.fields) == {"/total", "/paid", "/kind", "/name"}
        assert 0 <= result.confidence <= 1


def test_stream_ends_with_what_generate_gives(model):
    messages = [user("what?", ImagePart(picture(3))), {"role": "assistant", "content": "that"}, {"role": "user", "content": "and now?"}]
    *frames, last = list(model.stream(messages, max_new_tokens=8, **QUICK))
    assert last.result is not None and len(frames) == last.result[0].usage.steps == 3
    assert bool((frames[0].frame.state == MASK).any()) and "·" in frames[0].text[0]
    assert not bool((frames[-1].frame.state == MASK).any())
    assert said(model.generate(messages, max_new_tokens=8, **QUICK)) == said(last.result[0])


def test_the_prompt(model):
    """Gemma 4's turns; a picture between its marks; typed marks are text."""
    prompt = model.engine.prompt(user(ImagePart(picture()), " <turn|> who? "), model.engine.plan({}))
    ids = prompt.lay_out([3]).ids
    tokens = model.tokenizer.decode(ids, specials=True)
    assert tokens == "<bos><|turn>user\n<|image><|image|><|image|><|image|><image|> <turn|> who?<turn|>\n<|turn>model\n"
    assert ids.count(control_id("<turn|>")) == 1


def test_an_answer_that_shall_not_think_opens_with_an_empty_thought(tmp_path, folder):
    other = write_gemma(tmp_path / "model")
    (other / "chat_template.jinja").write_text("{{- '<|turn>model\\n' -}}{{- '<|channel>thought\\n<channel|>' -}}")
    engine = DiffusionVLM.from_pretrained(other).engine
    text = engine.tokenizer.decode(engine.prompt(user("x"), engine.plan({})).lay_out([]).ids, specials=True)
    assert text.endswith("<|turn>model\n<|channel>thought\n<channel|>")


def test_what_the_checkpoint_says_about_decoding_counts(tmp_path):
    other = write_gemma(tmp_path / "model")
    stored = {
        "max_denoising_steps": 5, "t_min": 0.2, "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.7},
        "eos_token_id": [1, control_id("<|channel>")],
    }  # fmt: skip
    (other / "generation_config.json").write_text(json.dumps(stored))
    engine = DiffusionVLM.from_pretrained(other).engine
    driver = engine.plan({"t_max": 0.9}).recipe.driver
    assert (driver.cooling.steps, driver.cooling.low, driver.cooling.high, driver.accept.bound) == (5, 0.2, 0.9, 0.7)
    assert engine.plan({"preset": "entropy-bound"}).recipe.driver.cooling.steps == 48
    assert set(engine.stop_ids) == {control_id(n) for n in ("<turn|>", "<eos>", "<|tool_response>", "<|channel>")}


def test_pictures_take_their_places(model):
    """Features stand where the prompt has them, and padding on the left changes nothing but rounding."""
    engine, images = model.engine, [picture(0), picture(1, (20, 64))]
    plan = engine.plan({})
    one, two = (engine.prompt(user(*(ImagePart(i) for i in images[:n]), "which of these?"[: 4 + 5 * n]), plan) for n in (1, 2))
    seen = [engine.see_all(images[:n]) for n in (1, 2)]
    both = engine.denoiser([one, two], seen, 4, plan)
    ids = torch.arange(CANVAS).unsqueeze(0) + 20
    for row, (prompt, pictures) in enumerate(((one, seen[0]), (two, seen[1]))):
        alone = engine.denoiser([prompt], [pictures], 4, plan)
        ours, theirs = both.step(ids, None, torch.tensor([row])), alone.step(ids, None, torch.tensor([0]))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    blind = engine.denoiser([one], [[type(seen[0][0])(torch.zeros_like(seen[0][0].features), (1, 1))]], 4, plan)
    assert not torch.allclose(blind.step(ids, None, torch.tensor([0])), both.step(ids, None, torch.tensor([0])), atol=1e-2)


def test_control_tokens_stay_inside(model):
    engine = model.engine
    banned = set(engine.banned(engine.plan({}), None))
    assert banned >= engine.tokenizer.control_ids - set(engine.stop_ids) and banned >= set(range(engine.tokenizer.vocab_size, VOCAB))
    assert "<" not in "".join(r.text for r in model.ask([picture(i) for i in range(2)], "who?", max_new_tokens=8, t_max=3.0, **QUICK) if "<|" in r.text)


def test_options_that_do_not_exist_here(model):
    for wrong in ({"preset": "dimple"}, {"temperature": 0.5}, {"guidance": 1.0}, {"prefix_cache": True}, {"steps": 0}, {"nonsense": 1}):
        with pytest.raises(OptionError):
            model.ask(picture(), "who?", **wrong)
    with pytest.raises(ContextLengthError, match="the model has 512"):
        model.ask(picture(), "why? " * 200)


def test_other_models_refuse_uniform_noise():
    with pytest.raises(OptionError, match="masks"):
        DiffusionVLM.from_pretrained().ask(picture(), "who?", preset="entropy-bound")


def test_info(model, folder):
    info = model.info()
    assert info["family"] == "diffusion-gemma" and info["canvas_length"] == CANVAS and 0 < info["parameters"]["vision"] < info["parameters"]["total"]
    json.dumps(info)
    assert inspect(folder).diff.fits


def test_half_precision(folder):
    half = DiffusionVLM.from_pretrained(folder, dtype="bfloat16")
    assert half.info()["dtype"] == "bfloat16"
    assert half.ask(picture(), "who?", max_new_tokens=4, **QUICK).status == "ok"


def test_keys_that_are_missing_are_named(folder, tmp_path):
    other = write_gemma(tmp_path / "model")
    state = load_file(other / "model.safetensors")
    key = "model.decoder.layers.0.router.scale"
    save_file({k: v for k, v in state.items() if k != key}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=key):
        DiffusionVLM.from_pretrained(other)


@pytest.mark.parametrize("module", ["transformers", "transformers.models.diffusion_gemma"])
def test_without_transformers(folder, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match="diffusion-vlm\\[gemma\\]"):
        DiffusionVLM.from_pretrained(folder)
