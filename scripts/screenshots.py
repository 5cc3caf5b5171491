"""Pictures of every view of the page, as docs/viewing has them.

    python scripts/screenshots.py RUN --curves RUN RUN --rollouts RUN --evaluations EVALUATION EVALUATION

Overview, curves, rollouts and their tokens are of RUN, unless others are named for them; the evaluations are two of one
benchmark. Needs Chromium, as the tests of the page do.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from browser import Browser, find_browser  # noqa: E402

from sapo_vl.commands.viewing import config_defaults  # noqa: E402
from sapo_vl.viewing.collecting import write_page  # noqa: E402

MAX_BYTES = 150_000
READY = {
    "overview": "document.querySelectorAll('main .card').length > 3",
    "curves": "document.querySelectorAll('.chart svg').length > 5",
    "rollouts": "document.querySelectorAll('.response').length > 1 && document.querySelector('.figure img')?.complete",
    "tokens": "document.querySelectorAll('.tok').length > 1 && document.querySelector('.figure img')?.complete",
    "evaluations": "document.querySelectorAll('.list button').length && document.querySelector('main pre') !== null",
}
OF_A_STEP = "state=learns&sort=spread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--curves", type=Path, nargs="+", metavar="RUN", help="drawn over each other")
    parser.add_argument("--rollouts", type=Path, metavar="RUN", help="one that saved numbers of tokens")
    parser.add_argument("--evaluations", type=Path, nargs=2, metavar="EVALUATION")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "viewing")
    parser.add_argument("--task", default="ground", help="of the rollouts that are shown; with boxes where it has some")
    args = parser.parse_args()
    binary = find_browser()
    if binary is None:
        raise SystemExit("no Chromium here: scripts/setup.sh installs it; by hand: apt-get install chromium")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Browser(binary) as browser:
        pages = {"one": [args.run], "runs": args.curves or [args.run], "rollouts": [args.rollouts or args.run]}
        pages |= {"evaluation": args.evaluations[:1], "evaluations": args.evaluations} if args.evaluations else {}
        for name, folders in pages.items():
            write_page(folders, Path(temporary) / f"{name}.html", config_defaults())

        def shoot(name: str, page: str, view: str, query: str = "", width: int = 1280, scheme: str = "light") -> None:
            browser.prefer(scheme)
            browser.resize(width, 900)
            browser.open("about:blank", "true")
            browser.open(f"file://{temporary}/{page}.html#{view}{query and f'?{query}'}")
            browser.wait(READY[view])
            shot = Path(temporary) / "shot.png"
            browser.screenshot(shot)
            path = args.out / f"{name}.png"
            path.write_bytes(small_png(Image.open(shot)))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

        shoot("overview", "one", "overview")
        shoot("curves", "runs", "curves")
        shoot("rollouts", "rollouts", "rollouts", f"task={args.task}&{OF_A_STEP}")
        group = browser.run("new URLSearchParams(location.hash.split('?')[1]).get('group')")
        shoot("tokens", "rollouts", "tokens", f"group={group}&by=gate")
        for name in ("evaluation", "evaluations") if args.evaluations else ():
            shoot(name, name, "evaluations")
        shoot("phone", "rollouts", "rollouts", f"task={args.task}&{OF_A_STEP}", width=390, scheme="dark")
        if browser.complaints:
            raise SystemExit("the page complained: " + "\n".join(browser.complaints))


def small_png(shot: Image.Image) -> bytes:
    """At most MAX_BYTES, cut off below where no number of colours is small enough."""
    shot = shot.crop((0, 0, shot.width, min(shot.height, 1400)))
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        shot.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() < MAX_BYTES:
            return out.getvalue()
    return small_png(shot.crop((0, 0, shot.width, shot.height * 3 // 4)))


if __name__ == "__main__":
    main()
