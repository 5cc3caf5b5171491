"""The shared-prefix layout computes what one padded row per response computes, and would be noticed if it did not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers_models import (
    KINDS,
    TOLERANCE,
    Kind,
    Spec,
    assert_same,
    flat,
    gradients,
    make_case,
    make_model,
    mixed_specs,
    naive,
    ragged,
    weighted_sum,
    worst_error,
)
from torch import Tensor

import sapo_vl.model.logprob
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.prefix_attention import build_layout


def text_specs(rng: np.random.Generator) -> list[Spec]:
    return [Spec((), ragged(rng, 3)), Spec((), ragged(rng, 1)), Spec((), ragged(rng, 2))]


def one_image_specs(rng: np.random.Generator) -> list[Spec]:
    """Images much larger than the text, so that positions on the image grid lag behind the token count."""
    return [Spec(((80, 48),), ragged(rng, 3, 8)), Spec(((80, 48),), (5, 7)), Spec(((32, 32),), (4, 6))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("specs", "checkpointing", "chunked"),
    [
        (mixed_specs, False, False),
        (mixed_specs, False, True),
        (mixed_specs, True, False),
        (one_image_specs, True, True),
        (text_specs, False, False),
        (text_specs, True, True),
    ],
)
def test_equals_padded_rows(
    kind: Kind,
    specs: Callable[..., list[Spec]],
    checkpointing: bool,
    chunked: bool,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(kind, seed, specs)
    loss = weighted_sum(case.rng, case.groups)
    temperature = float(case.rng.uniform(0.7, 1.4))
    expected_loss, expected = gradients(case.policy, [naive(case.chat, case.groups)], loss, temperature)
    right = logprobs(case.policy, naive(case.chat, case.groups), temperature)

    if checkpointing:
        case.policy.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        case.policy.train()  # layers are recomputed in training mode only
    if chunked:
        monkeypatch.setattr(sapo_vl.model.logprob, "PLAIN_MAX_LOGITS", 0)
    found_loss, found = gradients(case.policy, [flat(case.chat, case.groups)], loss, temperature)

    assert_same(found, expected)
    assert found_loss == pytest.approx(expected_loss, rel=TOLERANCE, abs=1e-4)
    assert (logprobs(case.policy, flat(case.chat, case.groups), temperature) - right).abs().max() < TOLERANCE
    assert len(expected) == len(list(case.policy.parameters()))  # vision, mergers, routers and experts among them


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_dense(kind: Kind, seed: int) -> None:
    """Log-probs and every gradient of the model, recomputed layer by layer."""
    case = make_case(kind, seed)
    case.policy.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    case.policy.train()
    loss = weighted_sum(case.rng, case.groups)
    merged = flat(case.chat, case.groups)
    assert merged.layout is not None and merged.layout.way == "merged"
    dense = dataclasses.replace(merged, layout=build_layout(merged.layout.groups, "dense"))
    expected_loss, expected = gradients(case.policy, [dense], loss)
    found_loss, found = gradients(case.policy, [merged], loss)
    assert_same(found, expected)
    assert found_loss == pytest.approx(expected_loss, rel=TOLERANCE, abs=1e-4)
    assert (logprobs(case.policy, merged) - logprobs(case.policy, dense)).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_changes_nothing(kind: Kind, seed: int) -> None:
    """One micro-batch or one per group, text-only ones among them: the same sum of gradients."""
    case = make_case(kind, seed)
    loss = weighted_sum(case.rng, case.groups)
    _, whole = gradients(case.policy, [flat(case.chat, case.groups)], loss)
    batches = [flat(case.chat, [group]) for group in case.groups]
    assert [mb.has_images for mb in batches] == [True, False, True, True, False]
    _, found = gradients(case.policy, batches, loss)
    assert_same(found, whole)


def test_vision_gradient_of_text_is_zero_and_there(seed: int) -> None:
    """ZeRO waits for every parameter's gradient, so a text-only micro-batch must give the vision tower zeros."""
    case = make_case("dense", seed, text_specs)
    for batch in (flat(case.chat, case.groups), naive(case.chat, case.groups)):
        _, found = gradients(case.policy, [batch], lambda mb, logprobs, entropy: logprobs.sum())
        vision = {name: g for name, g in found.items() if ".visual." in name}
        assert len(vision) == sum(".visual." in name for name, _ in case.policy.named_parameters()) > 20
        assert all(not g.any() for g in vision.values())


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_transformers(kind: Kind, seed: int) -> None:
    """Against the untouched model: its own attention, mask, positions and logits, one response at a time."""
    case = make_case(kind, seed)
    plain = make_model(kind, seed)
    plain.load_state_dict(case.policy.hf.state_dict())
    temperature = 1.3
    found = logprobs(case.policy, flat(case.chat, case.groups), temperature)
    expected = []
    for group in case.groups:
        prompt = group.prompt
        for rollout in group.rollouts:
            ids = torch.from_numpy(np.concatenate([prompt.ids, rollout.response_ids]))[None]
            images = {}
            if prompt.pixel_values is not None:
                images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
            with torch.no_grad():
                out = plain(input_ids=ids, mm_token_type_ids=(ids == case.chat.image_token_id).int(), **images)
            logits = out.logits[0, len(prompt.ids) - 1 : -1].double() / temperature
            logits[:, list(case.chat.banned_ids)] = -torch.inf
            expected.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt.ids) :, None])[:, 0])
    assert (found.double() - torch.cat(expected)).abs().max() < TOLERANCE


def test_padding_of_ordinary_calls_is_masked(seed: int) -> None:
    """The attention function must keep transformers' own mask for calls without a layout: here padding on the left."""
    case = make_case("dense", seed, text_specs)
    model, rows = case.policy.hf, [torch.from_numpy(g.prompt.ids) for g in case.groups]
    longest = max(map(len, rows)) + 3
    ids = torch.stack([torch.nn.functional.pad(r, (longest - len(r), 0), value=7) for r in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(r) for r in rows]).long()
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        alone = torch.cat([model(input_ids=r[None]).logits[:, -1] for r in rows])
        ignored = model(input_ids=ids).logits[:, -1]
    assert (padded - alone).abs().max() < 1e-4
    assert (ignored - alone).abs().max() > 1e-2


# --- planted faults -------------------------------------------------------------------------------
# Each takes a right micro-batch and returns one with a single mistake.


def positions_start_at_prompt_length(mb: MicroBatch) -> MicroBatch:
    positions = mb.positions.clone()
    start = 0
    for group in mb.groups:
        start += len(group.prompt.ids)
        for r in group.rollouts:
            n = len(r.response_ids)
            positions[:, 0, start : start + n] = len(group.prompt.ids) + torch.arange(n)
            start += n
    return dataclasses.replace(mb, positions=positions)


def positions_run_on_between_responses(mb: MicroBatch) -> MicroBatch:
    positions = mb.positions.clone()
    start = 0
    for group in mb.groups:
        start += len(group.prompt.ids)
        n = sum(len(r.response_ids) for r in group.rollouts)
        positions[:, 0, start : start + n] = group.prompt.next_position + torch.arange(n)
        start += n
    return dataclasses.replace(mb, positions=positions)


def text_positions_everywhere(mb: MicroBatch) -> MicroBatch:
    """Image tokens counted like words."""
    positions = mb.positions.clone()
    start = 0
    for group in mb.groups:
        n = len(group.prompt.ids)
        positions[:, 0, start : start + n] = torch.arange(n)
        start += group.num_tokens
    return dataclasses.replace(mb, positions=positions)


def responses_see_each_other(mb: MicroBatch) -> MicroBatch:
    """All responses of a group as if they were one."""
    lengths = [(len(g.prompt.ids), [sum(len(r.response_ids) for r in g.rollouts)]) for g in mb.groups]
    return dataclasses.replace(mb, layout=build_layout(lengths))


def with_key_mask(mb: MicroBatch, mask: Tensor) -> MicroBatch:
    """The batch, attended by rectangles under another mask [B, 1, Rmax, Pmax + Rmax]."""
    assert mb.layout is not None
    layout = build_layout(mb.layout.groups, "dense")
    vars(layout)["rectangles"] = dataclasses.replace(layout.rectangles, key_mask=mask)
    return dataclasses.replace(mb, layout=layout)


def key_mask(mb: MicroBatch) -> tuple[Tensor, int]:
    """A copy of the right mask, and how many of its keys are for prompts."""
    assert mb.layout is not None
    return mb.layout.rectangles.key_mask.clone(), mb.layout.rectangles.prompt_index.shape[1]


def padding_attended(mb: MicroBatch) -> MicroBatch:
    mask, prompts = key_mask(mb)
    mask[..., :prompts] = True
    return with_key_mask(mb, mask)


def prompt_unseen(mb: MicroBatch) -> MicroBatch:
    mask, prompts = key_mask(mb)
    mask[..., :prompts] = False
    return with_key_mask(mb, mask)


def last_prompt_unmerged(mb: MicroBatch) -> MicroBatch:
    assert mb.layout is not None
    layout = build_layout(mb.layout.groups, "merged")
    vars(layout)["plan"] = dataclasses.replace(layout.plan, across=layout.plan.across[:-1])
    return dataclasses.replace(mb, layout=layout)


def response_not_causal(mb: MicroBatch) -> MicroBatch:
    mask, _ = key_mask(mb)
    for row, n in zip(mask, mb.lengths.tolist(), strict=True):
        row[:] = row[:, n - 1 : n].clone()  # all tokens see what the last one sees
    return with_key_mask(mb, mask)


def predictor_is_the_token_itself(mb: MicroBatch) -> MicroBatch:
    return dataclasses.replace(mb, predictor_index=(mb.predictor_index + 1).clamp(max=mb.ids.numel() - 1))


def predictor_is_one_earlier(mb: MicroBatch) -> MicroBatch:
    return dataclasses.replace(mb, predictor_index=mb.predictor_index - 1)


def images_swapped(mb: MicroBatch) -> MicroBatch:
    """Of the first two groups, whose images are equally large."""
    first, second = (g.prompt.pixel_values for g in mb.groups[:2])
    assert first is not None and second is not None and first.shape == second.shape
    rest = mb.pixel_values[2 * len(first) :]
    return dataclasses.replace(mb, pixel_values=torch.cat([second, first, rest]))


FAULTS = [
    positions_start_at_prompt_length,
    positions_run_on_between_responses,
    text_positions_everywhere,
    responses_see_each_other,
    padding_attended,
    prompt_unseen,
    last_prompt_unmerged,
    response_not_causal,
    predictor_is_the_token_itself,
    predictor_is_one_earlier,
    images_swapped,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_breaks_equality(kind: Kind, fault: Callable[[MicroBatch], MicroBatch], seed: int) -> None:
    case = make_case(kind, seed, one_image_specs)
    loss = weighted_sum(case.rng, case.groups)
    right, wrong = flat(case.chat, case.groups), fault(flat(case.chat, case.groups))
    assert (logprobs(case.policy, wrong) - logprobs(case.policy, right)).abs().max() > 1e-2
    _, expected = gradients(case.policy, [right], loss)
    _, found = gradients(case.policy, [wrong], loss)
    assert worst_error(found, expected)[0] > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_another_law_breaks_equality(kind: Kind, seed: int) -> None:
    case = make_case(kind, seed, one_image_specs)
    batch = flat(case.chat, case.groups)
    right = logprobs(case.policy, batch)
    assert (logprobs(case.policy, batch, temperature=1.1) - right).abs().max() > 1e-2
    with torch.no_grad():  # four ids of a few hundred hold little: give them the mass a trained model might
        case.policy.head.weight[list(case.chat.banned_ids)] *= 4
    banned, unbanned = (logprobs(PolicyModule(case.policy.hf, ids), batch) for ids in (case.chat.banned_ids, ()))
    assert (unbanned - banned).abs().max() > 1e-2


def test_an_image_token_too_many_is_an_error(seed: int) -> None:
    case = make_case("dense", seed, one_image_specs)
    batch = flat(case.chat, case.groups)
    ids = batch.ids.clone()
    ids[0, -1] = case.chat.image_token_id
    with pytest.raises(ValueError, match="image tokens for"):
        logprobs(case.policy, dataclasses.replace(batch, ids=ids))


def test_rectangles_by_hand() -> None:
    """Prompts of 2 and 1 tokens with responses of (1, 2) and (2): row p p a b b | q c c."""
    layout = build_layout([(2, [1, 2]), (1, [2])])
    found = layout.rectangles
    assert found.prompt_index.tolist() == [[0, 1], [5, 0]]
    assert found.response_index.tolist() == [[2, 0], [3, 4], [6, 7]]
    assert found.key_index.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 0, 6, 7]]
    assert found.key_mask[1, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert found.key_mask[2, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 1]]
    assert found.key_mask[0, 0, 0].int().tolist() == [1, 1, 1, 0]
    # [prompts padded to 2 | responses padded to 2], read back in row order
    assert found.unpad_index.tolist() == [0, 1, 4, 6, 7, 2, 8, 9]


@pytest.mark.parametrize("groups", [[], [(0, [1])], [(2, [1, 0])]])
def test_layout_refuses_empty_parts(groups: list[tuple[int, list[int]]]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        build_layout(groups)


def logprobs(policy: PolicyModule, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        return policy(batch, temperature=temperature)[0]
