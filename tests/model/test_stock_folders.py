"""Model folders as people have them, written by stock transformers, through everything a run does with one.

What is run of each folder (support/stock_models.py says what they are, stock_matrix.py and stock_odd.py which there
are; `python tests/support/stock_table.py` runs all of this and prints the combinations, what passed, and the seconds;
a test of the whole makes one or two runs of each folder, in turn):

    folders              runs of 2 steps: ZeRO stage, what learns, dtype           besides
    RELEASED, in full    0, all but the vision tower, float32                      preflight, once a folder
                         3, all, the folder's own
                         0, LoRA, the folder's own
                         3, LoRA, float32
    PAIRWISE             0, all but the vision tower, float32                      preflight, once a folder
                         3, all, the folder's own
                         0 and 3 in turn, LoRA, the folder's own
    ODD                  0 and 3, all, float32                                     preflight, what it warns of
    three of them        0, all, float32, sampled by vLLM in process               parity of vLLM with the trainer
    BROKEN               none: preflight must refuse them, and say what and where

A run is `sapo_vl.train.train`, many in one process (support/stock_worker.py). It is judged without the code under test:
the weight files of the source and of final/ are read as they are, and stock transformers loads final/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stock_models
import torch
from helpers_launch import run_ranks
from stock_matrix import AXES, PAIRWISE, RELEASED, pairs
from stock_models import EMBEDDING, EXPERTS, HEAD, THETA, Folder
from stock_odd import BROKEN, ODD
from stock_runs import (
    CONVERTED,
    FOLDERS,
    PLAN,
    RUNTIME,
    SETTINGS,
    VLLM,
    Run,
    build_folders,
    settings,
    write_data,
    write_plan,
)
from stock_worker import QUESTION, digest, probe_image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sapo_vl.config import RunConfig, load_config
from sapo_vl.model.folder import ModelError
from sapo_vl.planning.plan import summary_here
from sapo_vl.stages import preflight

# All runs are made before the first of them is judged, one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Of log-probs of the trained policy and of final/ in stock transformers, on another path through the model.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.15}  # measured: 1e-6; 0.02, and 0.06 where a token goes to another expert

LINEAR = tuple(f".{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))  # what LoRA adapts


# --- the folders -----------------------------------------------------------------------------------


def test_every_two_values_of_every_two_axes_meet() -> None:
    rows = [{axis: getattr(folder, axis) for axis in AXES} for folder in PAIRWISE.values()]
    found = set().union(*(pairs(row) for row in rows))
    wanted = {
        ((a, x), (b, y))
        for i, a in enumerate(AXES)
        for b in list(AXES)[i + 1 :]
        for x in AXES[a]
        for y in AXES[b]
    }  # fmt: skip
    assert found == wanted
    assert len(rows) <= 14, "the set grew: it is run in full"


def test_the_folders_are_what_they_say(tmp_path: Path) -> None:
    """The same seed gives the same bytes, and the config keys are where the hub has them."""
    one, two = (stock_models.build(RELEASED["30B-A3B"], tmp_path / name, 7) for name in ("a", "b"))
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    state = json.loads((one / "config.json").read_text())
    assert state["tie_word_embeddings"] is False and "tie_word_embeddings" not in state["text_config"]
    assert state["text_config"]["rope_theta"] == THETA and "rope_parameters" not in json.dumps(state)
    assert state["text_config"]["rope_scaling"]["mrope_section"] == [6, 5, 5]
    assert json.loads((one / "generation_config.json").read_text())["eos_token_id"] == [320, 321]
    shape = stock_models.read_weights(one)["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape
    assert tuple(shape) == (8, 160, 128)  # [E, H, 2I]
    assert len(stock_models.weight_files(one)) > 1 and not (one / "processor_config.json").exists()


# --- what was run of them --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders and the data of all runs."""
    folder = tmp_path_factory.mktemp("stock")
    write_data(folder / "data")
    build_folders(folder)
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> Path:
    run_ranks(1, "stock_worker.py", write_plan(root), timeout=1400)
    return root


@pytest.mark.parametrize("name", FOLDERS)
def test_preflight_lets_it_pass(name: str, root: Path) -> None:
    run = next(r for r in PLAN.values() if r.folder == name)
    preflight(run_config(settings(root, run)), "train", 1)


@pytest.mark.parametrize("name", PLAN)
def test_its_memory_is_told_before_it_is_loaded(name: str, root: Path) -> None:
    assert " parameters on 1 processes on a CPU" in summary_here(run_config(settings(root, PLAN[name])))


@pytest.mark.parametrize("name", BROKEN)
def test_preflight_refuses(name: str, root: Path, tmp_path: Path) -> None:
    """With the file and the weights in the message."""
    broken = BROKEN[name]
    broken.edit(stock_models.build(broken.folder, tmp_path / "model", 0))
    given = SETTINGS | {"model.path": str(tmp_path / "model"), "data.path": str(root / "data")}
    with pytest.raises(ModelError) as refusal:
        preflight(run_config(given), "train", 1)
    lacks = [words for words in broken.says if words not in str(refusal.value)]
    assert not lacks, f"{lacks} not in: {refusal.value}"


def run_config(given: dict[str, Any]) -> RunConfig:
    """Of `settings`, with a reward that this process knows."""
    given = given | {"rewards.by_task": {"*": "number"}}
    return load_config(None, [f"{key}={json.dumps(value)}" for key, value in given.items()])


@pytest.mark.parametrize("name", [r.name for r in PLAN.values() if not r.vllm])
def test_it_trains_and_exports(name: str, runs: Path) -> None:
    wanted = ODD[PLAN[name].folder].warns if PLAN[name].folder in ODD else ""
    warnings = judge(PLAN[name], runs)
    assert [wanted in text for text in warnings] == [True] * bool(wanted), warnings


@pytest.mark.parametrize("name", VLLM)
def test_it_is_sampled_by_vllm(name: str, runs: Path) -> None:
    run = PLAN[f"{name}-vllm"]
    warnings = judge(run, runs)
    assert len(warnings) == 1 and "Syncing by 'repack' from now on" in warnings[0]  # as always where there is no GPU
    rows = [json.loads(line) for line in (runs / "out" / run.name / "metrics.jsonl").read_text().splitlines()]
    gaps = [[row[f"parity/{kind}/largest"] for kind in ("text", "image")] for row in rows if row["phase"] == "train"]
    assert len(gaps) == 2 and max(map(max, gaps)) < 1e-4, gaps


def test_vllm_reads_no_experts_as_transformers_holds_them(root: Path) -> None:
    """Said in preflight, with the command that mends it; what that wrote is CONVERTED."""
    run = PLAN[f"{CONVERTED}-vllm"]
    built = root / "models" / RUNTIME
    with pytest.raises(ModelError, match=r"sapo-vl convert"):
        preflight(run_config(settings(root, run) | {"model.path": str(built)}), "train", 1)
    found, right = stock_models.read_weights(root / "models" / CONVERTED), stock_models.read_weights(built)
    assert found.keys() == right.keys() and all(torch.equal(found[n], turned(n, right[n])) for n in right)


# --- judging a run ---------------------------------------------------------------------------------


def judge(run: Run, root: Path) -> list[str]:
    """Raises AssertionError if the run was not right; what it warned of."""
    folder, out = FOLDERS[run.folder], root / "out" / run.name
    record = json.loads((out / "record.json").read_text())
    assert "error" not in record, record["error"]
    source = in_runtime_layout(folder, stock_models.read_weights(root / "models" / run.folder), run.dtype)
    trained = plain(run, stock_models.load_file(out / "trained.safetensors"))
    final = stock_models.read_weights(out / "final")

    begins_with_the_files(source, record["loaded"])
    holds_what_was_trained(folder, run, trained, final)
    only_what_learns_changed(run, source, trained)
    if not (folder.alike and folder.experts == "hub"):  # of these transformers reads the source wrong too
        loads_as_what_was_trained(folder, run, root / "models" / run.folder, out / "final", record["probe"])
    return record["warnings"]


def turned(name: str, value: Tensor) -> Tensor:
    """Runtime [E, 2I, H], [E, H, I] to the hub's [E, H, 2I], [E, I, H], and back; other weights as they are."""
    return value.transpose(1, 2) if name.endswith(EXPERTS) else value


def in_runtime_layout(folder: Folder, weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The weight files as the model must hold them."""
    state = {n: turned(n, t) if folder.experts == "hub" else t for n, t in weights.items()}
    if folder.tied:
        state.setdefault(EMBEDDING, state.get(HEAD))
        state[HEAD] = state[EMBEDDING]
    return {n: t.to(getattr(torch, dtype)) for n, t in state.items()}


def bare(name: str) -> str:
    """A name in the adapted model's state as the model has it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def plain(run: Run, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A trained state with its adapters folded in, W + alpha / rank * B A, in float64 and under the model's names.

    Experts have a pair each, side by side in two matrices: A by expert, then rank, B by rank, then expert.
    """
    if run.lora is None:
        return state
    rank, scale = run.lora["rank"], run.lora["alpha"] / run.lora["rank"]
    pairs = {n: (state[n], state[n.replace(".lora_A.", ".lora_B.")]) for n in state if ".lora_A." in n}
    out = {bare(n): value for n, value in state.items() if ".lora_" not in n}
    for place, (a, b) in pairs.items():
        module, a, b = bare(place.partition(".lora_A.")[0]), a.double(), b.double()
        if not module.endswith(".experts"):
            name = f"{module}.weight"
            update = b @ a
        else:  # of the two stacks, the one with these sizes
            (name,) = (
                f"{module}.{leaf}"
                for leaf in ("gate_up_proj", "down_proj")
                if out[f"{module}.{leaf}"].shape[1:] == (b.shape[0], a.shape[1])
            )
            count = len(out[name])
            update = torch.stack([b[:, e::count] @ a[e * rank : (e + 1) * rank] for e in range(count)])
        out[name] = (out[name].double() + scale * update).to(out[name].dtype)
    return out


def begins_with_the_files(source: dict[str, Tensor], loaded: dict[str, str]) -> None:
    found = {bare(n): value for n, value in loaded.items() if ".lora_" not in n}
    assert found.keys() == source.keys()
    wrong = [n for n, t in source.items() if digest(t) != found[n]]
    assert not wrong, f"not as in the weight files when training began: {wrong}"


def holds_what_was_trained(folder: Folder, run: Run, trained: dict[str, Tensor], final: dict[str, Tensor]) -> None:
    """In the hub's layout; where shapes do not tell the layouts apart, in that of the source."""
    wanted = {n for n in trained if not (folder.tied and n == HEAD)}
    assert final.keys() == wanted
    for name in sorted(wanted):
        right = trained[name] if folder.alike and folder.experts == "runtime" else turned(name, trained[name])
        assert final[name].shape == right.shape and final[name].dtype == right.dtype, name
        if run.lora:  # the sum is rounded once, whichever way it is taken
            torch.testing.assert_close(final[name], right, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(final[name], right), name


def only_what_learns_changed(run: Run, source: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    changed = {n for n in source if not torch.equal(source[n], trained[n])}
    layers = "model.language_model.layers."
    if run.lora:
        adapted = {n for n in source if n.startswith(layers) and n.endswith((*LINEAR, *EXPERTS))}
        assert changed == adapted
        return
    tower = {n for n in source if n.startswith("model.visual.") and "merger" not in n}
    assert tower and not (changed & tower if run.freeze else set())
    must = {n for n in source if n.startswith(layers) or "merger" in n or n in (HEAD, EMBEDDING)}
    if run.dtype == "float32":
        assert not must - changed, f"learned nothing: {sorted(must - changed)}"
    assert len(must & changed) > len(must) / 2  # in bfloat16 a step may be less than half of the last digit


def meaning(folder: Path) -> dict[str, Any]:
    """What transformers takes config.json to say, but for dtype and tie."""

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        left_out = ("dtype", "tie_word_embeddings", "transformers_version", "_name_or_path")
        return {k: kept(v) if isinstance(v, dict) else v for k, v in part.items() if k not in left_out}

    return kept(AutoConfig.from_pretrained(folder).to_dict())


@torch.no_grad()
def loads_as_what_was_trained(folder: Folder, run: Run, source: Path, final: Path, probe: dict[str, Any]) -> None:
    model, told = AutoModelForImageTextToText.from_pretrained(
        final, dtype=getattr(torch, run.dtype), output_loading_info=True
    )
    assert not any(told.values()), told
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == folder.tied
    assert meaning(final) == meaning(source)
    state = json.loads((final / "config.json").read_text())
    for part in (state, state["text_config"]):  # other programs believe one or the other
        assert part.get("tie_word_embeddings", folder.tied) is folder.tied
    if (source / "generation_config.json").exists():
        given = json.loads((source / "generation_config.json").read_text())
        assert model.generation_config.eos_token_id == given["eos_token_id"]
        assert model.generation_config.pad_token_id == given.get("pad_token_id")

    processor = AutoProcessor.from_pretrained(final)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[probe_image()], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == probe["prompt"]
    response = torch.tensor(probe["response"])
    ids = torch.cat([inputs["input_ids"][0], response])[None]
    kinds = torch.cat([inputs["mm_token_type_ids"][0], torch.zeros_like(response)])[None]
    logits = model.eval()(
        input_ids=ids,
        mm_token_type_ids=kinds,
        pixel_values=inputs["pixel_values"].to(model.dtype),
        image_grid_thw=inputs["image_grid_thw"],
    ).logits[0, len(probe["prompt"]) - 1 : -1]
    logits[:, probe["banned"]] = -torch.inf
    logprobs = logits.float().log_softmax(-1).gather(1, response[:, None])[:, 0]
    gap = (logprobs - torch.tensor(probe["logprobs"])).abs().max()
    assert gap < TOLERANCE[run.dtype], f"log-probs of final/ differ by {gap:.2e} from those of the trained policy"
