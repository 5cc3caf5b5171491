"""Opening sets by way of `datasets` and the hub; whatever these raise becomes one sentence with what to do.

No code of a set is run. Some sets cannot be opened by their id alone, because a loading script says which files are
which, or pictures lie in an archive: a Layout says it instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError, DatasetsError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from huggingface_hub.errors import RepositoryNotFoundError as NoRepository

from sapo_vl.data.folder import DataError

T = TypeVar("T")
MAX_WORDS = 300  # characters of another library's message that are passed on
# What these libraries raise: DatasetsError for sets that are not there, have no files or cannot be built; OSError or
# HTTPError for the network; ValueError for bad names; RuntimeError for loading scripts.
FAULTS = (
    DatasetsError,
    pa.ArrowException,
    EntryNotFoundError,
    HTTPError,
    OSError,
    ValueError,
    RuntimeError,
)
LOCAL = "or give a local copy (source=FOLDER or source=FILE)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of a set that its id alone does not open."""

    repo: str  # id on the hub
    files: tuple[str, ...]  # with the rows of the split, in order; the same names in a local copy
    archive: str = ""  # a zip of the pictures whose paths the rows have

    def path(self, name: str) -> Path:
        """The file of the hub set, from the cache if it is there. Raises DataError."""
        return attempt(lambda: Path(hf_hub_download(self.repo, name, repo_type="dataset")), f"{name} of {self.repo!r}")


def attempt(work: Callable[[], T], what: str, config: str | None = None) -> T:
    """What `work` returns. Raises DataError in place of what `datasets` and the hub raise.

    Args:
        what: is opened, for the message.
        config: the configuration that was asked for.
    """
    try:
        return work()
    except DataError:
        raise
    except FAULTS as error:
        raise DataError(f"source {what} cannot be opened: {explained(error, config)}") from error


def explained(error: BaseException, config: str | None = None) -> str:
    """What went wrong, and what to do about it, in a sentence."""
    words = one_line(error)
    if "scripts are no longer supported" in words:
        script = words.rpartition(" ")[2]
        return f"it is a loading script ({script}), and no code of a data set is run; give its data files: source=FILE"
    if offline(error):
        return f"there is no copy in the cache and the hub is not asked (HF_HUB_OFFLINE is set); unset it, {LOCAL}"
    if "gated" in words.casefold():
        return f"it is gated: accept its terms on its page of the hub and log in (hf auth login), {LOCAL} ({words})"
    if "Config name is missing" in words or re.match(r"BuilderConfig .* not found", words):
        there = re.search(r"(?:configs|Available): (\[[^\]]*\])", words)
        asked = f"there is no config {config!r}" if config else "it has several configs"
        return f"{asked}; give config= as one of {there[1] if there else words}"
    if isinstance(error, DataFilesNotFoundError):
        return f"no data files (parquet, JSON, CSV, ...) in it; give the file itself: source=FILE ({words})"
    if isinstance(error, DatasetNotFoundError | NoRepository):
        return f"no such set, or it is private: look at the id, log in (hf auth login), {LOCAL} ({words})"
    if isinstance(error, DatasetGenerationError):
        why = f": {one_line(error.__cause__)}" if error.__cause__ is not None else f": {words}"
        return f"its files are not one table of rows{why}; give the file with the rows: source=FILE"
    if isinstance(error, pa.ArrowException):
        return f"a file of it cannot be read ({words}); fetch it again, or give the file with the rows: source=FILE"
    if isinstance(error, EntryNotFoundError) and not isinstance(error.__cause__, HTTPError | OSError):
        return f"the set has no such file ({words})"
    if isinstance(error, ConnectionError | EntryNotFoundError | HTTPError):
        return f"the hub cannot be reached ({words}); try again, {LOCAL}"
    return words


def offline(error: BaseException) -> bool:
    """Whether it was raised because the environment forbids to ask the hub."""
    words = f"{error} {error.__cause__}"
    return "OfflineModeIsEnabled" in words or "offline mode is enabled" in words


def one_line(error: BaseException) -> str:
    """The words of an error on one line, cut to MAX_WORDS."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + "..."
