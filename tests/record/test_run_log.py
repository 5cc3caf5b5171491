"""metrics.jsonl, trackers, rollouts on disk, phase times and progress lines."""

import dataclasses
import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.tracking import TensorBoardTracker
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from sapo_vl.distributed import World
from sapo_vl.record import run_log
from sapo_vl.record.progress import PhaseTimer, Progress, describe, duration
from sapo_vl.record.rollout_log import RolloutLog, image_hash, prompt_text, read_rollouts
from sapo_vl.record.run_log import LogConfig, RunLog, check_trackers, read_metrics, write_json
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup, ScoreStatus

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
NO_TRACKERS = LogConfig(trackers=())


def strict_loads(line: str) -> dict:
    """JSON as its standard has it: Python's own NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_lines_are_plain_json_with_nan_and_lists(tmp_path: Path):
    values: Mapping = {
        "loss": math.nan,
        "hist": [1, 2.5, math.inf],
        "n": np.int64(3),
        "x": np.float32(0.5),
        "ok": [0, 1],
    }
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        log.metrics(7, "train", values)
        log.metrics(8, "eval", {"a": -math.inf, "b": True, "c": None})
        # both lines are there before the file is closed
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = map(strict_loads, lines)
    assert first.pop("time") >= 0
    assert first == {
        "step": 7,
        "phase": "train",
        "loss": None,
        "hist": [1, 2.5, None],
        "n": 3,
        "x": 0.5,
        "ok": [0, 1],
        "nonfinite": ["loss", "hist"],
    }
    assert (second["a"], second["b"], second["c"], second["nonfinite"]) == (None, 1, None, ["a"])


def test_values_that_are_no_numbers_are_refused(tmp_path: Path):
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        with pytest.raises(TypeError, match=r"metric 'loss' is '0\.1' of type str"):
            log.metrics(1, "train", {"loss": "0.1"})
        with pytest.raises(TypeError, match=r"metric 'loss' is tensor\(1\.\) of type Tensor; give a number"):
            log.metrics(1, "train", {"loss": torch.tensor(1.0)})
        with pytest.raises(ValueError, match=r"\['time'\] are taken"):
            log.metrics(1, "train", {"time": 1.0})
        with pytest.raises(ValueError, match="phase 'test'"):
            log.metrics(1, "test", {})  # type: ignore[arg-type]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_resume_drops_what_is_written_again_and_time_goes_on(tmp_path: Path):
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        for step in (1, 9):
            log.metrics(step, "sft", {"loss": step})
        for step in range(1, 6):
            log.metrics(step, "train", {"loss": step})
            log.metrics(step, "eval", {"acc": step})
    path = tmp_path / "metrics.jsonl"
    rows = [row | {"time": 100.0} for row in read_metrics(path)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"step": 6, "phase": "tra')  # killed while writing
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        assert path.read_text() == text
        log.truncate_from(4)
        log.metrics(4, "train", {"loss": 40})
    kept = [(row["phase"], row["step"]) for row in read_metrics(path)]
    steps = [(phase, step) for step in (1, 2, 3) for phase in ("train", "eval")]
    assert kept == [("sft", 1), ("sft", 9), *steps, ("train", 4)]
    assert 100.0 <= read_metrics(path)[-1]["time"] < 200.0
    assert read_metrics(path)[-1]["loss"] == 40
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        log.truncate_from(2, phases=("sft",))  # the cold start is done again from its step 2
    assert [(row["phase"], row["step"]) for row in read_metrics(path)] == [("sft", 1), *steps, ("train", 4)]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]  # nothing left beside it


def test_broken_line_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": "train", "time": 0}\n{"step": 2\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not JSON"):
        read_metrics(path)
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is not an object with step"):
        read_metrics(path)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_lines_that_are_lost_are_told(kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "phase": "train", "time": 1.0}) + "\n" for step in (1, 2)]
    path.write_text("".join(lines[:kept]))
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        log.truncate_from(3)
        log.truncate_from(3, phases=("eval",))
    said = "has no line of step 2, after which the run goes on"
    assert [said in record.getMessage() for record in caplog.records] == [True] * (kept < 2)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "1", "phase": "train", "time": 0}',
        '{"step": 1, "phase": "prain", "time": 0}',
        '{"step": 1, "phase": "train", "time": NaN}',
        '{"step": 1, "phase": "train", "time": 0, "loss": "x"}',
        "[" * 100_000,
    ],
)
def test_a_line_of_other_values_is_named(line: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is not"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_only_the_main_rank_writes(tmp_path: Path):
    with RunLog(tmp_path / "run", LogConfig(), {}, World(rank=1, size=2, device=torch.device("cpu"))) as log:
        log.metrics(1, "train", {"loss": 1.0})
        log.truncate_from(0)
    assert not (tmp_path / "run").exists()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_finite_scalars(tmp_path: Path):
    with RunLog(tmp_path, LogConfig(), {"steps": 2, "nested": {"lr": 0.1, "path": tmp_path}}, ALONE) as log:
        log.metrics(1, "train", {"loss": 0.5, "hist": [1, 2], "bad": math.nan, "none": None})
        log.metrics(2, "train", {"loss": 0.25})
        log.metrics(2, "eval", {"acc": 1.0})
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.5), (2, 0.25)],
        "eval/acc": [(2, 1.0)],
    }


class Failing(TensorBoardTracker):
    """A service with an error of its own, which is no OSError, in what `fails` names."""

    fails = ("log", "finish")

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.act("start")

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.act("log")

    def finish(self) -> None:
        self.act("finish")

    def act(self, what: str) -> None:
        self.calls.append(what)
        if what in self.fails:
            raise Exception(f"no {what} here")


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        (("start", "log", "finish"), ["start"]),
        (("log", "finish"), ["start", "log"]),
        (("finish",), ["start", "log", "log", "log", "finish"]),
    ],
)
def test_a_service_that_fails_is_told_once_and_costs_nothing(
    fails: tuple[str, ...], calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    service = Failing()
    monkeypatch.setattr(Failing, "fails", fails)

    def start(*_: object) -> Failing:
        service.start()
        return service

    monkeypatch.setattr(run_log, "_start_tracker", start)
    monkeypatch.setattr(run_log, "check_trackers", lambda _: None)
    with RunLog(tmp_path, LogConfig(trackers=("trackio",)), {}, ALONE) as log:
        for step in (1, 2, 3):
            log.metrics(step, "train", {"loss": step / 4})
    assert service.calls == calls
    (warning,) = caplog.messages
    assert warning.startswith("trackio did not ") and f"(Exception: no {fails[0]} here)" in warning
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.25, 0.5, 0.75]


def test_a_package_that_is_not_whole_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def start(*_: object) -> None:
        raise ImportError("a part of it is missing")

    monkeypatch.setattr(run_log, "_start_tracker", start)
    with pytest.raises(ImportError, match="a part of it"):
        RunLog(tmp_path, LogConfig(), {}, ALONE)


def event_scalars(folder: Path) -> set[tuple[int, float]]:
    """(step, loss) of all event files; each on its own, since TensorBoard follows one folder by name and clock."""
    return {pair for file in folder.iterdir() for pairs in scalars(file).values() for pair in pairs}


# The thread in which TensorBoard writes ends with the error, as it is meant to here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    full = False

    def write(self: RecordWriter, data: bytes) -> None:
        nonlocal full
        if full:
            full = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        as_it_is(self, data)

    as_it_is = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", write)
    log = RunLog(tmp_path, LogConfig(), {}, ALONE)
    for step in range(1, 6):
        full = step == 2
        log.metrics(step, "train", {"loss": step / 4})
        assert not full
    (warning,) = caplog.messages
    assert warning.startswith("tensorboard did not take step ") and "No space left on device" in warning
    log.close()
    assert caplog.messages == [warning]
    kept = {(1, 0.25), (3, 0.75), (4, 1.0), (5, 1.25)}
    assert event_scalars(tmp_path / "tensorboard") - {(2, 0.5)} == kept
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_on_a_disk_that_stays_full_tensorboard_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """And begins no event file a step while metrics.jsonl says that there is no room."""
    log = RunLog(tmp_path, LogConfig(), {}, ALONE)
    log.metrics(1, "train", {"loss": 0.25})
    begun = len(list((tmp_path / "tensorboard").iterdir()))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(RecordWriter, "write", refuse)
        disk.setattr(run_log.os, "fstat", refuse)
        for step in (2, 3, 4):
            log.metrics(step, "train", {"loss": step / 4})
    assert len(list((tmp_path / "tensorboard").iterdir())) == begun
    log.metrics(5, "train", {"loss": 1.25})
    log.close()
    assert sum(message.startswith("tensorboard did not take step ") for message in caplog.messages) == 1
    assert event_scalars(tmp_path / "tensorboard") == {(1, 0.25), (5, 1.25)}
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_stale_handle_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The handle stays stale, as on a network's disk whose server was replaced: the lines go through a new one."""
    path, fstat = tmp_path / "metrics.jsonl", os.fstat
    with RunLog(tmp_path, NO_TRACKERS, {}, ALONE) as log:
        log.metrics(1, "train", {"loss": 0.5})
        handle = log._file.fileno()

        def stale(number: int) -> os.stat_result:
            if number == handle:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return fstat(number)

        with monkeypatch.context() as disk:
            disk.setattr(run_log.os, "fstat", stale)
            log.metrics(2, "train", {"loss": 0.25})
            assert [row["step"] for row in read_metrics(path)] == [1]
            assert "its lines are kept for later" in caplog.text
            log.metrics(3, "train", {"loss": 0.125})
            assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_missing_tracker_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()  # a folder that could be taken for the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # nothing is installed here
    with pytest.raises(ModuleNotFoundError, match=r"wandb, which is not installed: pip install 'sapo-vl\[wandb\]'"):
        RunLog(tmp_path / "run", LogConfig(trackers=("wandb",)), {}, ALONE)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tensorboard'"):
        check_trackers(LogConfig())
    assert not (tmp_path / "run").exists()


def log_on_rank(rank: int, folder: str, port_env: dict[str, str]) -> None:
    """As under torchrun: a gloo group is there, and the launcher's variables are set."""
    os.environ.update(port_env, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    before = (dict(os.environ), dist.group.WORLD)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    with RunLog(Path(folder, "run"), LogConfig(), {}, world) as log:
        log.metrics(1, "train", {"loss": world.sum([rank + 1.0])[0]})
        log.metrics(2, "train", {"loss": world.sum([rank + 2.0])[0]})
    assert (dict(os.environ), dist.group.WORLD) == before
    assert (dist.get_backend(), dist.get_world_size(), dist.get_rank()) == ("gloo", 2, rank)
    world.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_trackers_leave_the_process_group_alone(tmp_path: Path):
    # An address nobody listens on: a group started on the side would fail instead of going unnoticed.
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    torch.multiprocessing.spawn(log_on_rank, args=(str(tmp_path), env), nprocs=2)
    assert [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [3.0, 5.0]
    assert scalars(tmp_path / "run" / "tensorboard") == {"train/loss": [(1, 3.0), (2, 5.0)]}


def test_trackers_start_no_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as left behind by a launcher; the group is not there
    PartialState._reset_state()  # accelerate keeps it for the process; an earlier test may have made it
    was = dist.is_initialized()
    RunLog(tmp_path, LogConfig(), {}, ALONE).close()
    assert dist.is_initialized() == was and os.environ["LOCAL_RANK"] == "0"


def test_write_json_replaces_the_whole_file_or_nothing(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_json(path, {"mean": np.float64(0.5), "bad": [math.nan], "n": np.int64(2), "dir": tmp_path})
    content = strict_loads(path.read_text())
    assert content == {"mean": 0.5, "bad": [None], "n": 2, "dir": str(tmp_path)}
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(path, {"x": object()})
    assert strict_loads(path.read_text()) == content
    assert os.listdir(tmp_path) == ["summary.json"]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8))


def group(images: tuple[Image.Image, ...], *rollouts: Rollout) -> RolloutGroup:
    ids = np.arange(3)
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": "How many?"}]
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": parts})
    problem = Problem(id="p1", task="count", messages=messages, images=images, answer="3")
    prompt = Prompt(
        problem=problem,
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=None,
        image_grid_thw=None,
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def rollout(text: str = "3", **more: object) -> Rollout:
    fields: dict = {
        "response_ids": np.array([5, 6, 7]),
        "logprobs": np.array([-1.0, -2.0, -4.5], np.float32),
        "finish": Finish.STOP,
        "weight_version": 4,
    }
    return Rollout(text=text, **(fields | more))


def test_rollouts_round_trip(tmp_path: Path):
    scored = rollout(
        reward=0.9,
        parts={"accuracy": 1.0, "odd": math.nan},
        score_status=ScoreStatus.SCORED,
        advantage=-0.5,
    )
    failed = rollout(
        "",
        response_ids=np.array([], np.int64),
        logprobs=np.array([], np.float32),
        finish=Finish.FAILED,
        score_status=ScoreStatus.UNSCORABLE,
        score_detail="no response",
    )
    path = RolloutLog(tmp_path / "rollouts").write(12, [group((picture(1),), scored, failed)], rank=0)
    assert path.name == "step_000012.rank0.jsonl"
    for line in path.read_text().splitlines():
        strict_loads(line)
    first, second = read_rollouts(path)
    assert first == {
        "step": 12,
        "id": "p1",
        "task": "count",
        "answer": "3",
        "prompt": "system: Be brief.\nuser: <image>How many?",
        "images": [image_hash(picture(1))],
        "response": "3",
        "response_ids": [5, 6, 7],
        "finish": "stop",
        "reward": 0.9,
        "parts": {"accuracy": 1.0, "odd": None},
        "score_status": "scored",
        "score_detail": "",
        "advantage": -0.5,
        "weight_version": 4,
        "mean_logprob": -2.5,
    }
    assert (second["reward"], second["mean_logprob"], second["response_ids"]) == (None, None, [])
    assert (second["finish"], second["score_detail"]) == ("failed", "no response")


@pytest.mark.parametrize(
    ("reward", "meta", "box"),
    [
        ("box", {"coords": "0-1000", "size": [640, 480], "threshold": 0.7}, {"coords": "0-1000", "size": [640, 480]}),
        ("box", {"lattice": 16, "scene": {}}, {"lattice": 16}),
        ("", {"coords": "pixel", "inclusive": True, "gold_coords": "pixel"},
         {"coords": "pixel", "inclusive": True, "gold_coords": "pixel"}),
        ("box", {"threshold": 0.5}, None),
        ("maze", {"size": [3, 3]}, None),
    ],
)  # fmt: skip
def test_lines_say_what_the_boxes_of_a_problem_are_in(tmp_path: Path, reward: str, meta: dict, box: dict | None):
    asked = group((), rollout())
    problem = dataclasses.replace(asked.prompt.problem, reward=reward, meta=meta)
    asked = dataclasses.replace(asked, prompt=dataclasses.replace(asked.prompt, problem=problem))
    (line,) = read_rollouts(RolloutLog(tmp_path).write(1, [asked], rank=0))
    assert line.get("box") == box and ("box" in line) == (box is not None)


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_any_text_survives_the_round_trip(text: str):
    with tempfile.TemporaryDirectory() as folder:
        path = RolloutLog(Path(folder)).write(1, [group((), rollout(text), rollout("next"))], rank=0)
        assert [line["response"] for line in read_rollouts(path)] == [text, "next"]


def test_images_are_written_once(tmp_path: Path):
    log = RolloutLog(tmp_path)
    log.write(1, [group((picture(1), picture(2)), rollout()), group((picture(1),), rollout())], rank=0)
    files = sorted((tmp_path / "images").iterdir())
    assert [f.stem for f in files] == sorted({image_hash(picture(1)), image_hash(picture(2))})
    for file in files:
        with Image.open(file) as image:
            assert image_hash(image) == file.stem  # lossless, and the name is the content
    stamps = [f.stat().st_mtime_ns for f in files]
    log.write(2, [group((picture(2).convert("RGBA"),), rollout())], rank=1)
    assert [f.stat().st_mtime_ns for f in sorted((tmp_path / "images").iterdir())] == stamps
    assert [(r["step"], len(r["images"])) for r in read_rollouts(tmp_path)] == [(1, 2), (1, 1), (2, 1)]


def test_image_hash_tells_sizes_and_pixels_apart():
    flat = bytes(range(36))
    wide, tall = (Image.frombytes("RGB", size, flat) for size in ((6, 2), (2, 6)))
    assert len({image_hash(i) for i in (wide, tall, picture(1), picture(2))}) == 4
    assert image_hash(wide) == image_hash(wide.copy())


def test_without_images_the_hashes_stay(tmp_path: Path):
    path = RolloutLog(tmp_path, save_images=False).write(0, [group((picture(3),), rollout())], rank=0)
    assert [r["images"] for r in read_rollouts(path)] == [[image_hash(picture(3))]]
    assert not (tmp_path / "images").exists()


def test_reading_rollouts_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_rollouts(tmp_path / "nowhere"))
    (tmp_path / "step_000001.rank0.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"step_000001\.rank0\.jsonl:2 is not JSON"):
        list(read_rollouts(tmp_path))


def test_prompt_text_of_plain_turns():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    ]
    assert prompt_text(turns) == "user: a\nassistant: b"
    called = [{"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": {"at": "\u00e9"}}]}]
    assert prompt_text(called) == 'assistant:  [{"name": "look", "arguments": {"at": "\u00e9"}}]'


def test_phases_are_exclusive_and_add_up(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("sapo_vl.record.progress.time.perf_counter", lambda: clock[0])
    seen: list[str] = []
    timer = PhaseTimer(on_phase=seen.append)
    with timer("rollout"):
        clock[0] += 3
        with timer("reward"):  # scored while sampling goes on
            clock[0] += 2
        clock[0] += 1
    clock[0] += 10  # in no phase
    with pytest.raises(KeyError), timer("reward"):
        clock[0] += 4
        raise KeyError
    assert timer.take() == {"seconds/rollout": 4.0, "seconds/reward": 6.0, "seconds/step": 20.0}
    with timer("train"):
        clock[0] += 5
    assert timer.totals == {"rollout": 4.0, "reward": 6.0, "train": 5.0}  # taken or not
    assert timer.take() == {"seconds/train": 5.0, "seconds/step": 5.0}
    assert timer.totals == {"rollout": 4.0, "reward": 6.0, "train": 5.0}
    assert timer.take() == {"seconds/step": 0.0}
    assert seen == ["rollout", "reward", "reward", "train"]


def test_describe_by_hand():
    values = {
        "reward/mean": 0.534,
        "accuracy/mean": 0.61,
        "seconds/rollout": 0.11,
        "seconds/train": 0.2,
        "seconds/step": 0.4,
        "log_ratio/pos/hist": [1.0],
    }
    assert describe(values, 0.32, 194) == ("reward 0.53 | acc 0.61 | 3.1 it/s | ETA 1m02s | rollout 0.11s train 0.20s")
    assert describe({}, 25.0, 1000) == "25.0 s/it | ETA 6h56m"
    assert [duration(s) for s in (0, 59.4, 59.6, 3599, 3600)] == ["0s", "59s", "1m00s", "59m59s", "1h00m"]


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with Progress(35, start_step=2, console=Console(file=out, width=20, soft_wrap=True)) as progress:
        for step in range(3, 36):
            progress.step(step, {"reward/mean": step / 100})
        progress.say("saved [bold]this[/bold] :smile:")
    lines = out.getvalue().splitlines()
    assert [line.split(" | ")[:2] for line in lines[:-1]] == [
        [f"step {s}/35", f"reward {s / 100:.2f}"] for s in (3, 13, 23, 33, 35)
    ]
    assert lines[-1] == "saved [bold]this[/bold] :smile:"


def test_rate_of_a_resumed_run_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch):
    clock = [50.0]
    monkeypatch.setattr("sapo_vl.record.progress.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    with Progress(200, start_step=100, console=Console(file=out, soft_wrap=True)) as progress:
        clock[0] += 8
        progress.step(102, {})
    assert out.getvalue() == "step 102/200 | 4.0 s/it | ETA 6m32s\n"


def test_bar_on_a_terminal_and_silence_elsewhere():
    out = io.StringIO()
    with Progress(4, start_step=2, console=Console(file=out, force_terminal=True, width=120)) as progress:
        progress.phase("eval")
    assert "2/4" in out.getvalue()
    out = io.StringIO()
    with Progress(4, console=Console(file=out, force_terminal=True, width=120)) as progress:
        progress.phase("rollout")
        progress.step(3, {"reward/mean": 0.25})
    shown = out.getvalue()
    assert "rollout" in shown and "3/4" in shown and "reward 0.25" in shown
    out = io.StringIO()
    with Progress(4, enabled=False, console=Console(file=out, force_terminal=True)) as progress:
        progress.phase("rollout")
        progress.step(1, {})
        progress.say("hello")
    assert out.getvalue() == ""
