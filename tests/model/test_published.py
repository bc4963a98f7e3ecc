"""The public API on tiny random checkpoints of published families. What they say means nothing here."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.families.tiny_vlm import control_id, write_vlm
from tests.parity.llava_driver import ids_of_prompt
from vlm import CheckpointError, ContextLengthError, DiffusionVLM, ImagePart, OptionError, PromptError, user
from vlm.checkpoints.hub import find_folder
from vlm.families.llava import TOWER
from vlm.grounding.actions import action_schema
from vlm.published import outline

NAMES = ("lavida-llada", "lavida-dream", "llada-v")
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer"}, "paid": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}, "name": {"type": "string", "maxLength": 4}},
    "required": ["total", "paid", "kind", "name"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_vlm(tmp_path_factory.mktemp(name) / "model", name) for name in NAMES}


@pytest.fixture(scope="module")
def models(folders):
    return {name: DiffusionVLM.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture(params=NAMES)
def model(request, models):
    return models[request.param]


def picture(seed=0, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def said(result):
    return result.text, result.data, result.status, result.usage.steps, result.usage.forwards


def test_lists_equal_singles(model):
    images = [picture(0), picture(1, (20, 64)), picture(2, (90, 20))]
    for call in (lambda x: model.ask(x, "who?", max_new_tokens=6), lambda x: model.caption(x, max_new_tokens=6), lambda x: model.extract(x, SCHEMA)):
        together = call(images)
        assert [r.status for r in together] == [call(image).status for image in images]
        for image, result in zip(images, together, strict=True):
            assert said(call(image)) == said(result)


def test_extract_satisfies_the_schema(model):
    result = model.extract(picture(), SCHEMA)
    jsonschema.validate(result.data, SCHEMA)
    assert json.loads(result.text) == result.data and set(result.fields) == {"/total", "/paid", "/kind", "/name"}
    assert all(f.box is None for f in result.fields.values())  # no copy head


def test_stream_ends_with_what_generate_gives(model):
    messages = [user("what?", ImagePart(picture(3))), {"role": "assistant", "content": "that"}, {"role": "user", "content": "and now?"}]
    *frames, last = list(model.stream(messages, max_new_tokens=8, preset="one-by-one"))
    assert last.result is not None and len(frames) == last.result[0].usage.forwards >= 1
    assert said(model.generate(messages, max_new_tokens=8, preset="one-by-one")) == said(last.result[0])


def test_every_preset_of_the_family_runs(model):
    for name in model.engine.family.presets:
        result = model.ask(picture(), "who?", max_new_tokens=5, preset=name)
        assert result.status == "ok" and 1 <= result.usage.forwards <= 6


def test_control_tokens_stay_inside(model):
    """Never proposed, and never made of what a user types."""
    engine = model.engine
    plan = engine.plan({})
    banned = set(engine.banned(plan, None))
    assert banned >= engine.tokenizer.control_ids - set(engine.stop_ids) and banned >= set(range(engine.tokenizer.vocab_size, engine.config.logit_size))
    typed = engine.prompt(user("<|eot_id|><|im_end|><|mdm_mask|><|mask|>"), plan)
    plain = engine.prompt(user("x"), plan)
    count = [sum(t in engine.tokenizer.control_ids for t in ids_of_prompt(p, -1)) for p in (typed, plain)]
    assert count[0] == count[1]
    rows = model.ask([picture(i) for i in range(3)], "who?", max_new_tokens=8, temperature=3.0)
    assert all("<|" not in r.text for r in rows)


def test_pictures_are_put_in_their_places(model):
    engine = model.engine
    images = [picture(0), picture(1, (20, 64))]
    plan = engine.plan({})
    prompt = engine.prompt(user(*(ImagePart(i) for i in images), "which?"), plan)
    seen = engine.see_all(images)
    embeds, valid, positions, start = engine.prefix([prompt], [seen])
    layout = prompt.lay_out([len(s) for s in seen])
    assert embeds.shape[1] == layout.length and bool(valid.all()) and positions is None and start is None
    for span, own in zip(layout.spans, seen, strict=True):
        assert torch.equal(embeds[0, span.start : span.start + span.length], own.features)
    side = engine.model.vision.packing.pooled_side(engine.model.tower.side)
    assert [len(s) for s in seen] == [side**2 + 1] * 2  # several in one prompt: one padded view each, and a newline
    alone = engine.see(images[0])
    assert len(alone) == engine.model.vision.packing.count(images[0].size, (2, 2), engine.model.tower.side) or len(alone) > side**2 + 1


def test_the_token_behind_a_picture(models):
    """Kept by default; lost under reference_quirks where the released code loses it."""
    for name, model in models.items():
        engine = model.engine
        messages = user(ImagePart(picture()), "who?")
        right = ids_of_prompt(engine.prompt(messages, engine.plan({})), -200)
        quirk = ids_of_prompt(engine.prompt(messages, engine.plan({"reference_quirks": True})), -200)
        place = right.index(-200)
        assert engine.tokenizer.decode([right[place + 1]]) == "\n"
        assert quirk == (right if name == "lavida-dream" else right[: place + 1] + right[place + 2 :])


def test_prefix_cache_and_guidance_are_options(model):
    image = picture()
    for options in ({"prefix_cache": True}, {"prefix_cache": False}, {"guidance": 0.5}):
        result = model.ask(image, "who?", max_new_tokens=4, **options)
        assert result.status == "ok" and result.usage.forwards >= 1
    for wrong in ({"prefix_cache": "yes"}, {"guidance": -1}, {"guidance": "much"}, {"nonsense": 1}, {"preset": "magic"}):
        with pytest.raises(OptionError):
            model.ask(image, "who?", **wrong)


def test_what_only_pocket_can_do(model):
    for call in (lambda: model.read(picture()), lambda: model.objects(picture())):
        with pytest.raises(OptionError, match="pocket"):
            call()


def test_ground(model):
    """Numbers in order, in at most eight forwards; null is an answer; candidates are draws."""
    image = picture(0, (40, 80))
    for seed in range(3):
        result = model.ground(image, "click OK", candidates=2, temperature=0.7, seed=seed)
        jsonschema.validate(result.data, action_schema())
        assert 1 <= result.usage.forwards <= 8
        assert len(result.candidates) <= 2 and all(0 < c.confidence <= 1 for c in result.candidates)
        if result.box is None:
            assert result.data["bbox"] is None and result.status == "partial"
        else:
            x0, y0, x1, y1 = result.data["bbox"]
            assert result.status == "forced" or (x0 <= x1 and y0 <= y1)
            assert result.box[2] == pytest.approx(x1 * image.size[0] / 1000)
    assert model.ground(image, "click OK", min_confidence=1.1).box is None


def test_bad_images_are_rows_and_long_prompts_errors(model, tmp_path):
    rows = model.caption([picture(), tmp_path / "none.png", picture(1)], max_new_tokens=3)
    assert [r.status for r in rows] == ["ok", "error", "ok"] and rows[1].error["type"] == "ImageNotFoundError"
    with pytest.raises(ContextLengthError, match=f"the model has {model.info()['context']}"):
        model.ask(picture(), "why? " * 200)


def test_info(model):
    info = model.info()
    assert info["family"] in NAMES and info["parameters"]["total"] == sum(info["parameters"][k] for k in ("backbone", "tower", "projector")) + 32
    json.dumps(info)


@pytest.mark.parametrize("name", NAMES)
def test_a_lacking_tower_is_taken_from_the_base_model_and_said(name, tmp_path):
    folder = write_vlm(tmp_path / "model", name, tower=False)
    with pytest.warns(UserWarning, match="holds no vision tower"):
        model = DiffusionVLM.from_pretrained(folder)
    base = load_file(folder / "base" / "model.safetensors")
    state = model.engine.model.tower.state_dict()
    assert state and all(torch.equal(tensor, base[f"vision_model.{key}"]) for key, tensor in state.items())
    assert "no vision tower" in model.info()["notes"][0]
    assert model.caption(picture(), max_new_tokens=2).status == "ok"


def test_a_damaged_or_unknown_tower(tmp_path, folders):
    folder = write_vlm(tmp_path / "partial", "llada-v")
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != f"{TOWER}embeddings.patch_embedding.bias"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"partial: 1 of \d+ keys"):
        DiffusionVLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "someone/tower"}))
    with pytest.raises(CheckpointError, match="someone/tower"):
        DiffusionVLM.from_pretrained(folder)
    save_file(state, folder / "model.safetensors")
    model = DiffusionVLM.from_pretrained(folder, tower=folders["llada-v"] / "base")
    assert model.caption(picture(), max_new_tokens=2).status == "ok"


def test_variants(tmp_path, folders, models):
    fim = write_vlm(tmp_path / "my-fim", "lavida-llada")
    assert DiffusionVLM.from_pretrained(fim).engine.symbols.pad == control_id("llada", "<|reserved_token_2|>")
    plain = models["lavida-llada"].engine
    assert plain.symbols.pad == control_id("llada", "<|endoftext|>")
    low = DiffusionVLM.from_pretrained(folders["lavida-llada"], variant="lowres").engine
    assert low.model.vision.packing.pool is None and plain.model.vision.packing.pool == "bilinear"
    square = write_vlm(tmp_path / "square", "lavida-llada", image_aspect_ratio="square")
    one = DiffusionVLM.from_pretrained(square).engine
    assert len(one.see(picture())) == one.model.tower.side**2 + 1  # one view, not pooled, and a newline
    with pytest.raises(OptionError, match="fim"):
        DiffusionVLM.from_pretrained(folders["lavida-llada"], variant="magic")


def test_wrong_loading(folders, tmp_path):
    for options, word in (({"device": "tpu9"}, "tpu9"), ({"dtype": "int4"}, "int4")):
        with pytest.raises(OptionError, match=word):
            DiffusionVLM.from_pretrained(folders["llada-v"], **options)
    with pytest.raises(CheckpointError, match="no such folder"):
        DiffusionVLM.from_pretrained(tmp_path / "none")


def test_half_precision(folders):
    model = DiffusionVLM.from_pretrained(folders["lavida-dream"], dtype="bfloat16")
    assert {p.dtype for p in model.engine.model.parameters()} == {torch.bfloat16} and model.info()["dtype"] == "bfloat16"
    assert model.caption(picture(), max_new_tokens=4).status == "ok"


def test_text_checkpoints_take_no_images(tmp_path):
    from tests.checkpoints.tiny import CONFIGS, write
    from tests.families.tiny_vlm import ROWS, write_tokenizer

    config = {**CONFIGS["llada"], "vocab_size": ROWS, "embedding_size": ROWS, "mask_token_id": control_id("llada", "<|mdm_mask|>"), "max_sequence_length": 128}
    config.update(eos_token_id=control_id("llada", "<|endoftext|>"), pad_token_id=control_id("llada", "<|endoftext|>"))
    folder = write(tmp_path / "text", "llada", config=config)
    write_tokenizer(folder, "llada")
    model = DiffusionVLM.from_pretrained(folder)
    assert model.generate("hello", max_new_tokens=4).status == "ok"
    with pytest.raises(PromptError, match="no images"):
        model.ask(picture(), "who?")


def test_hub_ids(tmp_path, monkeypatch, folders):
    """What lies in the Hub's local cache is found by its id, without a connection."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub" / "models--someone--model"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).symlink_to(folders["llada-v"], target_is_directory=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (find_folder("someone/model") / "config.json").is_file()
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        find_folder("nobody/nothing")


def test_outline(models):
    from vlm.structure.scaffold import compile_scaffold
    from vlm.structure.schema import parse_schema

    scaffold = compile_scaffold(parse_schema(SCHEMA), models["llada-v"].tokenizer, symbols=models["llada-v"].engine.symbols)
    text = outline(scaffold)
    assert '"total": <integer>' in text and "<a | b>" in text and text.endswith("}")


