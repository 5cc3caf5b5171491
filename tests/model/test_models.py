"""Loading, freezing, adapters, and folders that can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import (
    KINDS,
    MODEL,
    TOLERANCE,
    Kind,
    Spec,
    assert_same,
    flat,
    full_state,
    gradients,
    make_case,
    make_groups,
    make_model,
    make_policy,
    max_difference,
    processor,
    tokenizer,
    worst_error,
)
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sapo_vl.model.chat import Chat, check_tokenizer, load_processor
from sapo_vl.model.export import check_expert_shapes, save_hf_folder
from sapo_vl.model.folder import examine, hub_layout, read_config
from sapo_vl.model.loading import (
    ModelConfig,
    ModelError,
    Part,
    load_model,
    parts,
    prepare_model,
)
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.tiny import build_tiny, init_tiny, tiny_config, train_tokenizer

SPECS = [Spec(((48, 32),), (5, 3)), Spec((), (4,))]

# Which parameters belong to a part, by name and independently of the code. The tiny models tie the head.
VISION, MERGER, LANGUAGE = "model.visual.", "merger", "model.language_model."
PART_OF: dict[Part, Any] = {
    "vision": lambda n: n.startswith(VISION) and MERGER not in n,
    "merger": lambda n: n.startswith(VISION) and MERGER in n,
    "language": lambda n: n.startswith(LANGUAGE),
    "router": lambda n: n.endswith("mlp.gate.weight"),
    "embeddings": lambda n: "embed_tokens" in n,
    "lm_head": lambda n: "embed_tokens" in n or n.startswith("lm_head"),
}


def logprobs(policy: PolicyModule, batch: Any) -> Tensor:
    with torch.no_grad():
        return policy(batch)[0]


def total(_mb: Any, values: Tensor, _entropy: Tensor) -> Tensor:
    return values.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PART_OF)
def test_freeze_is_exact(kind: Kind, part: Part, seed: int) -> None:
    """The named part has no gradient, every other parameter has the one it has without freezing."""
    if part == "router" and kind == "dense":
        with pytest.raises(ModelError, match="no such parameters"):
            make_policy(kind, seed, ModelConfig(freeze=(part,)))
        return
    free = make_case(kind, seed, SPECS)
    _, expected = gradients(free.policy, [flat(free.chat, free.groups)], total)
    frozen = PolicyModule(prepare_model(free.policy.hf, ModelConfig(freeze=(part,))), free.chat.banned_ids)
    _, found = gradients(frozen, [flat(free.chat, free.groups)], total)
    kept = {n: g for n, g in expected.items() if not PART_OF[part](n.removeprefix("hf."))}
    assert 0 < len(kept) < len(expected)
    assert_same(found, kept)


def test_parts_cover_the_model(seed: int) -> None:
    model = make_model("moe", seed)
    found = {id(p) for group in parts(model).values() for p in group}
    assert found == {id(p) for p in model.parameters()}


def test_frozen_parts_add_up(seed: int) -> None:
    policy, _ = make_policy("moe", seed, ModelConfig(freeze=("vision", "router")))
    frozen = {n.removeprefix("hf.") for n, p in policy.named_parameters() if not p.requires_grad}
    expected = {n for n, _ in policy.hf.named_parameters() if PART_OF["vision"](n) or PART_OF["router"](n)}
    assert frozen == expected


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_load(kind: Kind, seed: int, tmp_path: Path) -> None:
    """The folder gives the same log-probs through our loader, and the same logits through plain transformers."""
    case = make_case(kind, seed, SPECS)
    batch = flat(case.chat, case.groups)
    expected = logprobs(case.policy, batch)
    folder = tmp_path / "out" / "model"
    save_hf_folder(case.policy.hf, case.chat.processor, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"], "nothing half-written is left beside it"

    config = MODEL.model_copy(update={"path": str(folder)})
    again = load_model(config)
    chat = Chat.load(again, config)
    assert max_difference(full_state(again), full_state(case.policy.hf)) == 0
    assert (logprobs(PolicyModule(again.eval(), chat.banned_ids), batch) - expected).abs().max() < TOLERANCE
    assert chat.eos_ids == case.chat.eos_ids and chat.banned_ids == case.chat.banned_ids
    item = case.groups[0].prompt.problem
    assert chat.prompt(item).ids.tolist() == case.groups[0].prompt.ids.tolist()

    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert plain.config._attn_implementation != "sapo_shared_prefix"
    state = json.loads((folder / "config.json").read_text())
    assert "sapo" not in json.dumps(state)
    prompt = case.groups[1].prompt  # text only
    ids = torch.from_numpy(np.concatenate([prompt.ids, case.groups[1].rollouts[0].response_ids]))[None]
    with torch.no_grad():
        logits = plain(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, list(chat.banned_ids)] = -torch.inf
    ours = logits.log_softmax(-1).gather(1, ids[0, len(prompt.ids) :, None])[:, 0]
    assert (ours - expected[-len(ours) :]).abs().max() < TOLERANCE


def test_expert_weights_on_disk_have_the_hub_layout(seed: int, tmp_path: Path) -> None:
    """Hub folders (and vLLM) hold [E, H, 2I] and [E, I, H]; the running model [E, 2I, H] and [E, H, I]."""
    model = make_model("moe", seed)
    save_hf_folder(model, processor(), tmp_path / "m")
    shapes: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    for file in (tmp_path / "m").glob("*.safetensors"):
        with safe_open(file, "pt") as f:
            for name in f.keys():  # noqa: SIM118  not a dict
                shapes[name], tensors[name] = f.get_slice(name).get_shape(), f.get_tensor(name)
    experts, hidden, inner = 8, 96, 64
    for layer in range(3):
        prefix = f"model.language_model.layers.{layer}.mlp.experts"
        assert shapes[f"{prefix}.gate_up_proj"] == [experts, hidden, 2 * inner]
        assert shapes[f"{prefix}.down_proj"] == [experts, inner, hidden]
        mine = model.get_parameter(f"{prefix}.down_proj")
        assert torch.equal(tensors[f"{prefix}.down_proj"], mine.detach().transpose(1, 2))
    assert "lm_head.weight" not in shapes  # tied


def test_hub_layout_touches_experts_only() -> None:
    state = {"a.mlp.experts.down_proj": torch.randn(2, 3, 4), "a.mlp.gate.weight": torch.randn(2, 3)}
    out = hub_layout(state)
    assert out["a.mlp.experts.down_proj"].shape == (2, 4, 3)
    assert torch.equal(out["a.mlp.gate.weight"], state["a.mlp.gate.weight"])


@pytest.mark.parametrize("inner", [96, 48])
def test_expert_sizes_that_look_alike_are_refused(inner: int, tmp_path: Path) -> None:
    """With I == H or 2I == H transformers would load transposed weights without a word."""
    config = tiny_config("moe", tokenizer())
    config.text_config.moe_intermediate_size = inner
    with pytest.raises(ValueError, match=f"moe_intermediate_size={inner} with hidden_size=96"):
        check_expert_shapes(config)
    config.text_config.moe_intermediate_size = 64
    check_expert_shapes(config)
    check_expert_shapes(tiny_config("dense", tokenizer()))


def test_an_export_replaces_what_was_there(seed: int, tmp_path: Path) -> None:
    for s in (seed, seed + 1):
        model = make_model("dense", s)
        save_hf_folder(model, processor(), tmp_path / "m")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert max_difference(full_state(again), full_state(model)) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# --- the tiny models ------------------------------------------------------------------------------


def test_a_seed_fixes_the_tiny_model(seed: int, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    a, b, c = (full_state(build_tiny("moe", tokenizer(), s)) for s in (seed, seed, seed + 1))
    assert max_difference(a, b) == 0 and max_difference(a, c) > 0.01
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state is left alone"


def test_init_tiny_writes_a_whole_folder(seed: int, tmp_path: Path) -> None:
    folder = init_tiny("moe", ["how many red circles"], tmp_path / "m", seed)
    config = MODEL.model_copy(update={"path": str(folder)})
    model = load_model(config)
    chat = Chat.load(model, config)
    groups = make_groups(chat, np.random.default_rng(seed), SPECS)
    assert torch.isfinite(logprobs(PolicyModule(model, chat.banned_ids), flat(chat, groups))).all()
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_the_tokenizer_knows_any_text_and_tags_are_one_token() -> None:
    t = train_tokenizer(["a red circle"] * 3)
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert len(t(tag).input_ids) == 1
    text = "čaj 茶 🫖\n\t7.5%"
    assert t.decode(t(text).input_ids) == text
    assert len(t("a red circle").input_ids) == 3
    ids = t("<think> red </think> <answer> red </answer><|im_end|>").input_ids
    assert len(ids) == 7 and ids[-1] == t.eos_token_id
    assert t.decode(ids, skip_special_tokens=True).endswith("</answer>")


# --- folders that cannot be used ------------------------------------------------------------------


def test_bad_folders_are_named(seed: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        read_config(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_config(str(tmp_path / "empty"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_config(str(tmp_path / "broken"))
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"'llama' model; supported: qwen3_vl, qwen3_vl_moe"):
        load_model(ModelConfig(path=str(tmp_path / "llama")))


def test_a_folder_without_a_processor_is_named(seed: int, tmp_path: Path) -> None:
    make_model("dense", seed).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no usable processor|lacks"):
        load_processor(str(tmp_path))


def test_a_folder_without_a_chat_template_is_named(seed: int, tmp_path: Path) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    removed = [p.unlink() for p in (tmp_path / "m").glob("chat_template*")]
    config = tmp_path / "m" / "tokenizer_config.json"
    state = json.loads(config.read_text())
    state.pop("chat_template", None)
    config.write_text(json.dumps(state))
    assert removed
    with pytest.raises(ModelError, match="no chat template"):
        load_processor(str(tmp_path / "m"))


def test_a_chat_template_in_the_tokenizers_config_is_enough(seed: int, tmp_path: Path) -> None:
    """Where transformers 4 wrote it."""
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    (file,) = (tmp_path / "m").glob("chat_template*")
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": file.read_text()}))
    file.unlink()
    settings = MODEL.model_copy(update={"path": str(tmp_path / "m")})
    case = make_case("dense", seed, SPECS)
    problem = case.groups[0].prompt.problem
    assert Chat.load(load_model(settings), settings).prompt(problem).ids.tolist() == case.groups[0].prompt.ids.tolist()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content + 1 }}", "cannot write a turn with a text"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "cannot write a turn"),
        ("{{ messages[0].content[-1].text }}", ""),
    ],
)
def test_a_template_is_tried_before_the_start(
    template: str, message: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    (file,) = (tmp_path / "m").glob("chat_template*")
    file.write_text(template)
    folder, found = examine(str(tmp_path / "m")), load_processor(str(tmp_path / "m"))
    if message:
        with pytest.raises(ModelError, match=message):
            check_tokenizer(found, folder)
    else:
        check_tokenizer(found, folder)
        assert "writes no <|image_pad|> for a picture" in caplog.text


def test_the_home_folder_may_be_written_short() -> None:
    assert ModelConfig(path="~/m").path == str(Path.home() / "m") and ModelConfig(path="a/~b").path == "a/~b"


def test_worst_error_by_hand() -> None:
    assert worst_error({"a": torch.ones(2)}, {"a": torch.zeros(2)})[0] == pytest.approx(2**0.5)
