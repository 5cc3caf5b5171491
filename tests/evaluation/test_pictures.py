"""The small copies of items' pictures: how large they are, of which items, and that the page shows them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import ScriptedEngine, session, write_own_benchmark
from helpers_models import MODEL
from PIL import Image

from sapo_vl.config import load_config
from sapo_vl.evaluation.pictures import MAX_BYTES, small_copy
from sapo_vl.evaluation.records import read_records
from sapo_vl.evaluation.run import evaluate_benchmarks
from sapo_vl.viewing.collecting import write_page
from sapo_vl.viewing.serving import Site


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Five items, each with a picture of its own, 40 x 24 pixels."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [{"name": str(i), "question": "how many", "image": f"{i}.png", "answer": i, "colour": "x"} for i in range(5)]
    for i in range(5):
        Image.new("RGB", (40, 24), (50 * i, 0, 200)).save(folder / f"{i}.png")
    return write_own_benchmark(folder, "\n".join(map(json.dumps, rows)))


def evaluated(own: str, out: Path, *overrides: str, step: int | None = None) -> Any:
    config = load_config(None, [f'eval.benchmarks=["{own}"]', *overrides]).model_copy(update={"model": MODEL})
    return evaluate_benchmarks(config, session(ScriptedEngine(lambda *_: "\\boxed{1}")), out, step=step)


@pytest.mark.parametrize(("size", "noise"), [((3000, 1500), True), ((1024, 1024), True), ((900, 300), False)])
def test_a_copy_is_small_and_tells_the_size_of_the_picture(size: tuple[int, int], noise: bool, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = small_copy(Image.fromarray(values) if noise else Image.new("RGB", size, "red"))
    assert len(data) <= MAX_BYTES
    with Image.open(io.BytesIO(data)) as copy:
        assert copy.info["comment"].decode() == f"{size[0]}x{size[1]}"
        assert max(copy.size) <= 512 and copy.width / copy.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_copies_are_those_of_the_items_and_the_page_shows_them(own: str, tmp_path: Path) -> None:
    evaluated(own, tmp_path / "out", "eval.pictures=3")
    folder = tmp_path / "out" / "squares"
    records = {record.id: record for record in read_records(folder / "records.jsonl")}
    kept = {path.name for path in (folder / "pictures").iterdir()}
    assert kept == {f"{records[f'squares-{i}'].prompt[:32]}.0.jpg" for i in (0, 2, 4)}

    write_page([folder], tmp_path / "p.html", None)
    block = (
        (tmp_path / "p.html").read_text().split('<script type="application/json" id="data">')[1].split("</script")[0]
    )
    pictures = json.loads(block)["evaluations"][0]["pictures"]
    assert pictures.keys() == {"squares-0", "squares-2", "squares-4"}
    assert [(p["w"], p["h"], p["src"][:22]) for p in pictures["squares-4"]] == [(40, 24, "data:image/jpeg;base64")]
    site = Site([folder], None, follow=False)
    asked = {"n": "0", "row": "4", "prompt": records["squares-4"].prompt}
    assert site.pictures(asked) == {"pictures": pictures["squares-4"]}
    assert site.pictures(asked | {"prompt": records["squares-1"].prompt}) == {"pictures": []}
    assert site.pictures(asked | {"prompt": "../" * 20}) == {"pictures": []}


def test_measurements_of_a_training_share_them(own: str, tmp_path: Path) -> None:
    run = tmp_path / "run" / "benchmarks"
    evaluated(own, run / "step_00000000", step=0)
    shared = run / "pictures" / "squares"
    stamps = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    assert len(stamps) == 5
    evaluated(own, run / "step_00000010", step=10)
    assert {path.name: path.stat().st_mtime_ns for path in shared.iterdir()} == stamps
    assert not list(run.glob("step_*/squares/pictures"))
    (run.parent / "metrics.jsonl").write_text("")
    write_page([run.parent], tmp_path / "p.html", None)
    assert (tmp_path / "p.html").read_text().count("data:image/jpeg") == 5


def test_without_room_or_wish_there_are_none_and_the_figures_are_the_same(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_all = evaluated(own, tmp_path / "a", "eval.batch=2")
    none = evaluated(own, tmp_path / "b", "eval.pictures=0")
    assert not (tmp_path / "b" / "squares" / "pictures").exists()
    monkeypatch.setattr("sapo_vl.evaluation.pictures.Path.replace", no_room)
    full = evaluated(own, tmp_path / "c", "eval.batch=2")
    assert with_all == none == full
    assert list((tmp_path / "c" / "squares" / "pictures").iterdir()) == []
    assert caplog.text.count("pictures of items were not written") == 1 and "No space left" in caplog.text


def no_room(self: Path, target: Path) -> Path:
    if self.suffix == ".tmp" and self.parent.name == "pictures":
        raise OSError(28, "No space left on device")
    self.rename(target)
    return target
