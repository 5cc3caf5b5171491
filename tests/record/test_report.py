"""The report of a small made-up run: numbers in the table, pictures that open, gaps that are said."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapo_vl.distributed import World
from sapo_vl.record.report import describe_summary, table, write_report
from sapo_vl.record.report_plots import PLOTS, Plot, draw, merge_lines
from sapo_vl.record.run_log import LogConfig, RunLog, write_json

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def level(mean: float, n: int, low: float, high: float) -> dict:
    return {"mean": mean, "n": n, "ci95": [low, high]}


def measured(shift: float) -> dict:
    sampled = level(0.125 + shift, 200, 0.081, 0.179) | {
        "by_task": {
            "count": level(0.25 + shift, 120, 0.2, 0.3),
            "ground": level(0.0625 + shift, 80, 0.027, 0.138),
        },
    }
    greedy = level(0.3125 + shift, 200, 0.25, 0.38) | {"by_task": {}}
    blank = level(0.03125, 200, 0.014, 0.067) | {"by_task": {"count": level(0.05, 120, 0.02, 0.1)}}
    return {**sampled, "sampled": sampled, "greedy": greedy, "blank_image": blank}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run7"
    with RunLog(folder, LogConfig(trackers=()), {}, ALONE) as log:
        for step in range(1, 4):
            log.metrics(step, "sft", {"loss": 3.0 / step})
        for step in range(1, 9):
            values = {
                "reward/mean": 0.1 * step,
                "reward/task/count": 0.09 * step,
                "accuracy/mean": 0.05 * step,
                "gate/mean": 0.99,
                "gate/pos/mean": 0.98,
                "ratio/mean_abs_dev": 0.01,
                "sequence/var/mean": 1e-3 * step,
                "entropy/mean": 1.0 / step,
                "grad_norm": math.nan if step == 3 else 0.5,
                "length/mean": 20.0,
                "seconds/rollout": 0.5,
                "seconds/step": 0.9,
                "log_ratio/pos/hist": [1, 2, 3],
            }
            log.metrics(step, "train", values)
        for step, mean in ((0, 0.125), (8, 0.5)):
            interval = [mean - 0.05, mean + 0.05]
            log.metrics(step, "eval", {"eval/sampled/all": mean, "eval/sampled/all/ci95": interval})
    write_json(
        folder / "summary.json",
        {
            "seed": 11,
            "loss": "sapo",
            "steps": 8,
            "accuracy": {"cold_start": measured(0.0), "final": measured(0.375)},
            "wall_s": {"rollout": 4.04, "train": 123.46},
        },
    )
    return folder


def lines_of(text: str, title: str) -> list[list[str]]:
    """Cells of the rows below the heading that starts with `title`."""
    block = next(b for b in text.split("\n\n") if b.startswith(title))
    return [line.split() for line in block.splitlines()[3:]]


def test_tables_hold_the_numbers(run_dir: Path):
    text = "\n\n".join(describe_summary(json.loads((run_dir / "summary.json").read_text())))
    assert "loss sapo, seed 11, steps 8" in text
    assert lines_of(text, "Accuracy, sampled") == [
        ["all", "200", "0.125", "[0.081,", "0.179]", "0.500", "[0.081,", "0.179]", "+0.375"],
        ["count", "120", "0.250", "[0.200,", "0.300]", "0.625", "[0.200,", "0.300]", "+0.375"],
        ["ground", "80", "0.062", "[0.027,", "0.138]", "0.438", "[0.027,", "0.138]", "+0.375"],
    ]
    assert lines_of(text, "Accuracy, greedy")[0][2] == "0.312"
    blank = lines_of(text, "Control: the same problems with blank images")
    assert [row[0] for row in blank] == ["all", "count"]
    assert blank[0][-1] == "+0.000"
    assert lines_of(text, "Seconds by phase") == [["rollout", "4.0"], ["train", "123.5"]]


def test_pictures_open_and_gaps_are_said(run_dir: Path):
    text = write_report(run_dir)
    assert "Accuracy, sampled" in text
    names = {path.stem for path in (run_dir / "plots").glob("*.png")}
    assert names == {plot.name for plot in PLOTS} - {"eval_greedy"}
    assert "left out eval_greedy: no eval line has eval/greedy/*" in text
    assert f"{len(PLOTS) - 1} plots in" in text
    for name in names:
        with Image.open(run_dir / "plots" / f"{name}.png") as image:
            colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        assert len(colours) > 10, f"{name} is blank"


def test_later_lines_complete_and_override_earlier_ones():
    first = {"step": 1, "phase": "train", "a": 1.0, "b": 2.0}
    again = {"step": 1, "phase": "train", "a": 5.0, "c": 3.0}
    other = {"step": 1, "phase": "eval", "a": 9.0}
    merged = merge_lines([first, other, again])
    assert merged == {"train": {1: first | again}, "eval": {1: other}}
    assert merged["train"][1]["a"] == 5.0


def test_curves_are_the_values_by_step():
    plot = Plot("x", "train", "y", ("b", "a/*"))
    lines = {2: {"a/1": 4.0, "b": None}, 1: {"a/1": 3.0, "a/hist": [1, 2]}}
    figure = draw(plot, lines)
    assert figure is not None
    first, second = figure.axes[0].get_lines()
    assert [first.get_label(), second.get_label()] == ["b", "a/1"]
    assert list(first.get_xdata()) == [2] and np.isnan(first.get_ydata()).all()
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([1, 2], [3.0, 4.0])
    assert draw(plot, {1: {"a/hist": [1], "c": 2.0}}) is None


def test_intervals_are_drawn():
    figure = draw(Plot("x", "eval", "y", ("acc",)), {0: {"acc": 0.5, "acc/ci95": [0.25, 0.75]}, 4: {"acc": 0.6}})
    assert figure is not None
    (bars,) = figure.axes[0].collections
    assert bars.get_segments()[0].tolist() == [[0, 0.25], [0, 0.75]]


def test_unfinished_run_gets_curves_only(run_dir: Path):
    (run_dir / "summary.json").unlink()
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "phase": "train", "time": 0, "reward/mean": 0.5}\n')
    text = write_report(run_dir)
    assert "the run has not finished" in text and "Accuracy" not in text
    assert (run_dir / "plots" / "reward.png").exists()


def test_accuracy_without_modes_or_without_a_first_measurement():
    flat = level(0.5, 10, 0.2, 0.8) | {"by_task": {"count": {"mean": None, "n": 0, "ci95": None}}}
    text = "\n\n".join(describe_summary({"accuracy": {"cold_start": None, "final": flat}}))
    assert lines_of(text, "Accuracy") == [
        ["all", "10", "-", "0.500", "[0.200,", "0.800]", "-"],
        ["count", "0", "-", "-", "-"],
    ]
    assert describe_summary({"seed": 1}) == ["seed 1", "summary.json holds no accuracy."]
    signs = describe_summary({"seed": 1, "notices": {"gate_low": {"first": 138, "last": 148, "rows": 11}}})[-1]
    assert [line.split() for line in signs.splitlines()[3:]] == [["gate_low", "138", "148", "11"]]


def test_no_run_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.jsonl and no summary\.json"):
        write_report(tmp_path)


def test_summary_without_metrics(run_dir: Path):
    (run_dir / "metrics.jsonl").unlink()
    text = write_report(run_dir)
    assert "0 plots" in text and "left out reward: no train line has reward/mean or reward/task/*" in text
    assert json.loads((run_dir / "summary.json").read_text())["seed"] == 11


def test_table_alignment():
    assert table(["a", "bb"], [["long", "1"], ["x", "100"]]) == ("a      bb\n----  ---\nlong    1\nx     100")
