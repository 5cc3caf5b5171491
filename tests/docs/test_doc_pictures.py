"""Pictures of the documentation: each is made by a command that is named, and is shown; which are older than that?"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

from doc_blocks import ROOT, pages

# Picture or folder -> the command that makes it, and what it shows. A change there makes it old.
MADE_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "docs/losses/gates.svg": (
        "sapo-vl reproduce --config configs/experiments/tiny.yaml --figures 1 --out DIR",
        ("sapo_vl/losses", "sapo_vl/experiments/surrogates.py", "sapo_vl/experiments/figures.py"),
    ),
    "docs/results/gates/figures": ("bash scripts/reproduce_paper.sh --config configs/experiments/choose.yaml", ()),
    "docs/results/paper/figures": ("bash scripts/reproduce_paper.sh --figures 2,4,5,6,stress", ()),
    "docs/results/sapo_auto/figures": ("bash scripts/reproduce_paper.sh --figures stress", ()),
    "docs/results/tiny_moe/figures": ("bash scripts/reproduce_paper.sh --figures 4,stress", ()),  # of its own commit
    "docs/viewing": ("python scripts/screenshots.py", ("sapo_vl/viewing",)),
}


def committed(path: str) -> int:
    """Seconds since 1970 of the last commit of a file or folder; 0 where there is no history to ask."""
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct", "--", path]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def test_every_picture_is_shown_and_has_a_command():
    text = "".join(page.read_text() for page in [*pages(), *(ROOT / "docs" / "results").rglob("*.md")])
    found = [p for p in (ROOT / "docs").rglob("*") if p.suffix in (".png", ".svg", ".jpg")]
    assert len(found) > 3
    for picture in found:
        name = picture.relative_to(ROOT).as_posix()
        assert any(name == made or name.startswith(f"{made}/") for made in MADE_BY), f"no command makes {name}"
        assert picture.name in text or picture.with_suffix(".png").name in text, f"{name} is shown nowhere"
    for command, _ in MADE_BY.values():
        program = command.split()[1]
        assert "/" not in program or (ROOT / program).is_file(), command


def test_say_which_are_older_than_what_they_show():
    """A warning and no failure: a picture is made again when a change can be seen in it."""
    for picture, (command, shown) in MADE_BY.items():
        if not shown or not (made := committed(picture)):
            continue
        newer = [path for path in shown if committed(path) > made]
        assert all(Path(ROOT / path).exists() for path in shown)
        if newer:
            warnings.warn(f"{picture} is older than {', '.join(newer)}: {command}", stacklevel=1)
