"""The site of docs/ builds, with every page in its menu and no link that leads nowhere; README's links do, too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from doc_blocks import ROOT


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", str(out)],
        cwd=source, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_builds_and_a_broken_link_is_an_error(tmp_path: Path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert all((tmp_path / "site" / page).is_file() for page in pages) and len(pages) > 20
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "docs", copy / "docs")
    shutil.copy(ROOT / ".mkdocs.yml", copy)
    with (copy / "docs" / "start.md").open("a") as page:
        page.write("\n[a](losses.md#no-such-heading)\n")
    done = build(copy, tmp_path / "other")
    assert done.returncode != 0 and "no-such-heading" in done.stderr


def test_links_of_the_readme():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 20
    for link in links:
        name, _, anchor = link.partition("#")
        assert (ROOT / name).is_file(), link
        headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link
