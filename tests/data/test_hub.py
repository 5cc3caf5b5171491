"""What `datasets` and the hub raise becomes one sentence that says what to do; sets whose files are opened by name."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled
from PIL import Image

from sapo_vl.data import hub
from sapo_vl.data.archive import PictureArchive
from sapo_vl.data.hub import Layout, attempt
from sapo_vl.data.images import MAX_IMAGE_BYTES, ImageRefused, encode_png
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import open_source

PNG = encode_png(Image.new("RGB", (4, 3), (1, 2, 3)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def script(folder: Path) -> Path:
    (folder / "set").mkdir()
    (folder / "set/set.py").write_text("raise SystemExit('a data set was run')")
    (folder / "set/rows.jsonl").write_text('{"a": 1}\n')
    return folder / "set"


def not_one_table(folder: Path) -> Path:
    table(folder / "set/train-0.parquet", a=[1])
    return table(folder / "set/train-1.parquet", b=["x"]).parent


def zip_beside(folder: Path) -> Path:
    (table(folder / "set/rows.parquet", a=[1]).parent / "zip.parquet").write_bytes(b"PK no parquet at all")
    return folder / "set"


def configs(folder: Path) -> Path:
    path = table(folder / "set/rows.parquet", a=[1]).parent
    listed = "".join(f"- config_name: {name}\n  data_files: rows.parquet\n" for name in ("all", "en"))
    (path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    return path


def nothing(folder: Path) -> Path:
    (folder / "set").mkdir()
    (folder / "set/notes.xyz").write_text("no data")
    return folder / "set"


def damaged(folder: Path) -> Path:
    (folder / "rows.parquet").write_bytes(b"PK no parquet at all")
    return folder / "rows.parquet"


def half_saved(folder: Path) -> Path:
    (folder / "set").mkdir()
    (folder / "set/dataset_dict.json").write_text('{"splits": ["test"]}')
    return folder / "set"


@pytest.mark.parametrize(
    ("make", "config", "words"),
    [
        (script, None, r"a loading script \(set.py\), and no code of a data set is run; give its data files"),
        (not_one_table, None, r"not one table of rows: Couldn't cast .*; give the file with the rows"),
        (zip_beside, None, r"not one table of rows: .*not a parquet file.*; give the file with the rows"),
        (configs, None, r"it has several configs; give config= as one of \['all', 'en'\]"),
        (configs, "ex", r"there is no config 'ex'; give config= as one of \['all', 'en'\]"),
        (nothing, None, r"no data files \(parquet, JSON, CSV, ...\) in it; give the file itself"),
        (
            damaged,
            None,
            r"rows.parquet' cannot be opened: a file of it .*not a parquet file.*give the file",
        ),
        (half_saved, None, r"split 'test' of .*set has no rows"),
    ],
)
def test_sets_that_datasets_cannot_read(
    make: Callable[[Path], Path], config: str | None, words: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError, match=words) as error:
        open_source(str(path), "train", config=config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def gated() -> Exception:
    error = datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. Visit the page")
    error.__cause__ = GatedRepoError.__new__(GatedRepoError)
    return error


def without_network() -> Exception:
    error = LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")
    error.__cause__ = OSError("[Errno 111] Connection refused")
    return error


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (gated(), r"it is gated: accept its terms .* log in \(hf auth login\), or give a local copy"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
         "no such set, or it is private: look at the id"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), r"HF_HUB_OFFLINE is set\); unset"),
        (OfflineModeIsEnabled("Cannot reach https://x: offline mode is enabled."), r"HF_HUB_OFFLINE is set\); unset"),
        (without_network(), r"the hub cannot be reached \(An error .*try again, or give a local copy"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"), "the hub cannot be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (pa.ArrowNotImplementedError("no such\ntype"), r"a file of it cannot be read \(no such type\)"),
    ],
)  # fmt: skip
def test_what_the_hub_says(raised: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=words) as error:
        open_source("a/b", "train")
    assert "'a/b' cannot be opened" in str(error.value) and error.value.__cause__ is raised


def test_mistakes_of_ours_stay_what_they_are() -> None:
    with pytest.raises(KeyError):
        attempt(lambda: {}["a"], "x")
    with pytest.raises(DataError, match=r"^mine$"):
        attempt(lambda: (_ for _ in ()).throw(DataError("mine")), "x")


# --- files by name


def picture_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_rows_and_an_archive_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(repo="owner/set", files=("rows.parquet",), archive="pictures.zip")
    table(tmp_path / "rows.parquet", image=["images/a.png", "images/b.png", "c.png"])
    picture_zip(tmp_path / "pictures.zip", **{"images/a.png": PNG, "b.png": PNG})
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    for source in ("owner/set", str(tmp_path), str(tmp_path / "rows.parquet")):
        opened = open_source(source, "train", columns=["image"], layout=layout)
        assert len(opened) == 3
        for index in range(2):
            assert opened.image(opened.row(index)["image"]).getpixel((3, 2)) == (1, 2, 3)
        with pytest.raises(ImageRefused) as error:
            opened.image(opened.row(2)["image"])
        assert error.value.kind == "missing"
    assert asked == [("owner/set", "rows.parquet", "dataset"), ("owner/set", "pictures.zip", "dataset")]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(PNG)
    (tmp_path / "pictures.zip").unlink()  # unpacked
    opened = open_source(str(tmp_path), "train", layout=layout)
    assert opened.image("images/a.png").size == (4, 3)
    with pytest.raises(ImageRefused):
        opened.image("../rows.parquet")


def test_archives_that_try_to_be_more(tmp_path: Path) -> None:
    names = {
        "cut.png": PNG[:-20],
        "text.png": b"words",
        "/etc/passwd": PNG,
        "../up.png": PNG,
        "bomb.png": b"\0" * 60_000_000,
    }
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in names.items():
            file.writestr(name, content)
    archive = PictureArchive(tmp_path / "p.zip")
    assert "none.png" not in archive and "bomb.png" in archive
    kinds = {}
    for name in ("cut.png", "text.png", "bomb.png", "none.png"):
        with pytest.raises(ImageRefused) as error:
            archive.image(name)
        kinds[name] = error.value.kind
    assert kinds == {
        "cut.png": "damaged", "text.png": "wrong type", "bomb.png": "too many bytes", "none.png": "missing"
    }  # fmt: skip
    assert archive.image("../up.png").size == (4, 3), "a name in an archive is a name: nothing is written anywhere"
    assert MAX_IMAGE_BYTES < 60_000_000
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(DataError, match="no zip archive of pictures"):
        PictureArchive(tmp_path / "no.zip")
