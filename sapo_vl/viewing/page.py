"""The page itself: one HTML file with its styles, scripts and data inside, which asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

# In the order in which they need each other; each does one job.
SCRIPTS = (
    "dom.js", "store.js", "route.js", "theme.js", "charts.js", "heat.js", "overview.js", "curves.js", "boxes.js",
    "group.js", "rollouts.js", "tokens.js", "evaluations.js", "main.js",
)  # fmt: skip
CHARTS = "js/d3.v5.min.js"


def render(data: Mapping[str, Any], title: str, *, served: bool) -> str:
    """The page. `served`: it may ask its own server for more; else nothing at all may be fetched.

    What a model wrote is in `data` alone, a block of JSON that no parser of HTML or of scripts reads, and gets into the
    page as text. The policy in the page keeps any script from running but ours.
    """
    style, library, scripts = _text("page.css"), chart_library(), "\n".join(_text(name) for name in SCRIPTS)
    own = "'self'" if served else "'none'"
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"connect-src {own}",
            f"script-src {_digest(library)} {_digest(scripts)}",
            f"style-src {_digest(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = Environment(loader=PackageLoader("sapo_vl.viewing", "page"), autoescape=True)
    return environment.get_template("page.html.j2").render(
        title=title,
        policy=policy,
        style=Markup(style),
        library=Markup(library),
        scripts=Markup(scripts),
        data=Markup(as_block(data)),
    )


def as_block(data: Any) -> str:
    """JSON to stand in a <script type="application/json">: without "<", nothing in it can end the block."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def chart_library() -> str:
    """The text of D3, which the package mpld3 brings; that package itself is not imported."""
    spec = importlib.util.find_spec("mpld3")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (path := Path(place) / CHARTS).is_file():
            return path.read_text(encoding="utf-8")
    raise ModuleNotFoundError(f"mpld3, which brings {CHARTS}, is not installed: pip install 'mpld3>=0.5.12,<0.6'")


def _text(name: str) -> str:
    return (files("sapo_vl.viewing") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
