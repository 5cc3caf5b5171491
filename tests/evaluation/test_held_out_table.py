"""The figures of a held-out evaluation as they are printed."""

from sapo_vl.evaluation.table import held_out_table


def figure(mean: float | None, n: int) -> dict[str, object]:
    return {"mean": mean, "n": n, "ci95": None if mean is None else [mean - 0.125, mean + 0.125]}


def test_each_mode_and_task_has_a_row_and_what_was_not_measured_has_none() -> None:
    sampled = figure(0.5, 40) | {"by_task": {"count": figure(0.25, 20), "ground": figure(0.75, 20)}}
    blank = figure(None, 0) | {"by_task": {"count": figure(None, 0)}}
    lines = held_out_table(sampled | {"sampled": sampled, "greedy": None, "blank_image": blank}).splitlines()
    cells = [line.split("  ") for line in lines[2:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in cells] == [
        ["sampled, all", "40", "0.500", "0.375..0.625"],
        ["sampled, count", "20", "0.250", "0.125..0.375"],
        ["sampled, ground", "20", "0.750", "0.625..0.875"],
        ["blank image, all", "0", "-", "-"],
    ]
