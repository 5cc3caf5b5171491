"""TRL's side of bench/vs_trl.py, step by step: GRPOTrainer with loss_type="sapo". Runs in TRL's own environment.

A step is a rollout batch with its two updates. In the first one responses are not sampled but read, from what the other
side wrote, and are not shuffled: its two updates are those of the other side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import trl.trainer.grpo_trainer as grpo
from stepwise import Over, Stepper
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from vs_trl_reward import share_of


def chance(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The reward of the other side, from the same function."""
    return [share_of(ids) for ids in completion_ids]


class Turn(TrainerCallback):
    """Tells the other process after every rollout batch and waits for its word."""

    def __init__(self, trainer: WatchedTrainer, stepper: Stepper) -> None:
        self.trainer, self.stepper = trainer, stepper

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        watched = self.trainer
        if logs is None or "grad_norm" not in logs:  # of the whole run, at its end
            return
        watched.updates.append({"loss": watched.loss, "grad_norm": logs["grad_norm"]})
        if state.global_step % args.steps_per_generation:
            return
        phases = dict(watched.phases) | {"train": watched.phases["training_step"] - watched.phases["batch"]}
        told = watched.told | {"updates": len(watched.updates), "phases": phases, "done": watched.updates}
        watched.updates, watched.told = [], {}
        watched.phases.clear()
        self.stepper.done(**told)


class WatchedTrainer(GRPOTrainer):
    """The trainer with clocks at its parts, and with the given responses in place of its first ones."""

    def __init__(self, *args: Any, given: Sequence[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given = given
        self.phases: dict[str, float] = defaultdict(float)
        self.updates: list[dict[str, float]] = []
        self.told: dict[str, Any] = {}
        self.loss = 0.0

    def _clocked(self, phase: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = work()
        self.phases[phase] += time.perf_counter() - started
        return done

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._clocked("training_step", lambda: super(WatchedTrainer, self).training_step(*args, **kwargs))

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.loss = float(loss)
        return loss

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        return self._clocked("rollout", lambda: super(WatchedTrainer, self)._generate(*args, **kwargs))

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        return self._clocked("reward", lambda: super(WatchedTrainer, self)._calculate_rewards(*args, **kwargs))

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        made = self._clocked("batch", lambda: super(WatchedTrainer, self)._generate_and_score_completions(inputs))
        # The mean of eight equal rewards may be a rounding away from each.
        live = made["advantages"].view(-1, self.num_generations).abs().amax(1) > 1e-5
        self.told |= {"tokens": int(made["completion_mask"].sum()), "live": int(live.sum())}
        return made

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        shuffle = grpo.shuffle_sequence_dict
        if self.given is not None:
            grpo.shuffle_sequence_dict = lambda rows: rows
        try:
            return super()._prepare_inputs(generation_batch)
        finally:
            grpo.shuffle_sequence_dict = shuffle

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.given is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        groups = [group for update in self.given for group in update["groups"]]
        self.given = None
        responses = [ids for group in groups for ids in group["responses"]]
        expected = [group["prompt_ids"] for group in groups for _ in group["responses"]]
        self.told["same_prompts"] = [list(map(int, ids)) for ids in prompt_ids] == expected
        return responses, None


def parts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the trainer that both benches give it: model, settings, rows and processor."""
    torch.set_num_threads(spec["threads"])
    return {
        "model": AutoModelForImageTextToText.from_pretrained(spec["model"], dtype=torch.float32),
        "args": GRPOConfig(**spec["config"]),
        "train_dataset": datasets.load_from_disk(spec["rows"]),
        "processing_class": AutoProcessor.from_pretrained(spec["model"], padding_side="left"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="JSON: model, rows, first, moe and the arguments of GRPOConfig")
    parser.add_argument("told", type=int, help="the pipe to the other process")
    args = parser.parse_args()
    stepper = Stepper(args.told)
    spec = json.loads(args.spec.read_text())
    given = json.loads(Path(spec["first"]).read_text())
    trainer = WatchedTrainer(**parts(spec), reward_funcs=[chance], given=given)
    trainer.add_callback(Turn(trainer, stepper))
    try:
        stepper.wait()
        trainer.train()
    except Over:
        return


if __name__ == "__main__":
    main()
