"""The page in a real browser. Pictures of each view stay in SAPO_VL_SCREENSHOTS, if that names a folder.

Without a browser these tests are skipped; where CI is set they fail instead. scripts/setup.sh installs one.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from browser import Browser, find_browser
from viewing_folders import HOSTILE, make_evaluation, make_run

from sapo_vl.viewing.collecting import write_page
from sapo_vl.viewing.serving import HOST, Server, Site

pytestmark = pytest.mark.slow
VIEWS = ("overview", "curves", "rollouts", "tokens", "evaluations")
# Every control without a name that a screen reader could say.
NAMELESS = """[...document.querySelectorAll(
        'button, select, input, a, svg[role=img], canvas, [role=group], [role=list]')]
    .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim()))
    .map((e) => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = find_browser()
    if binary is None:
        assert not os.environ.get("CI"), "no Chromium: scripts/setup.sh installs it; by hand: apt-get install chromium"
        pytest.skip("no Chromium here, so the page was not looked at: apt-get install chromium")
    with Browser(binary) as browser:
        yield browser


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("viewed")
    runs = [make_run(root / f"seed_{i}", range(5, 41, 5), seed=i, notices={7: ["entropy_collapse"]}) for i in range(2)]
    ids = [f"item-{i}" for i in range(12)]
    before = make_evaluation(root / "before" / "shapes", {id: [float(i % 2)] for i, id in enumerate(ids)})
    after = make_evaluation(root / "after" / "shapes", {id: [float(i > 3)] for i, id in enumerate(ids)})
    return [*runs, before, after]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_page(folders, out, {"steps": 1})
    return f"file://{out}"


@pytest.fixture(autouse=True)
def nothing_to_complain_of(browser: Browser) -> Iterator[None]:
    browser.complaints.clear()
    browser.requests.clear()
    yield
    assert browser.complaints == []


def visit(browser: Browser, address: str) -> None:
    browser.open("about:blank", "true")  # a change of the part behind # alone would load nothing
    browser.open(address)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_draws_and_names_its_controls(
    browser: Browser, page: str, scheme: str, width: int, tmp_path: Path
) -> None:
    browser.prefer(scheme)
    browser.resize(width, 900)
    for view in VIEWS:
        visit(browser, f"{page}#{view}")
        browser.wait("document.querySelectorAll('main .card').length")
        shots = Path(os.environ.get("SAPO_VL_SCREENSHOTS") or tmp_path)
        browser.screenshot(shots / f"{view}-{scheme}-{width}.png")
        assert browser.run("document.documentElement.dataset.theme") == scheme
        assert browser.run(NAMELESS) == []
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than the screen"
    asked = {request.split("#")[0] for request in browser.requests if not request.startswith(("data:", "about:"))}
    assert asked == {page}
    browser.prefer("light")
    browser.resize(1280, 900)


def test_hostile_text_is_shown_as_text(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#rollouts?run=0&step=5")
    browser.wait("document.querySelectorAll('.response').length === 4")
    assert browser.run("[...document.querySelectorAll('.response pre')].map((e) => e.textContent)[1]") == HOSTILE
    assert browser.run("window.hit === undefined && !document.querySelector('.response script, .response img')")


def test_a_click_opens_a_group_and_its_problem_over_time(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#rollouts?run=0&step=20")
    browser.wait("document.querySelectorAll('.list button').length === 4")
    browser.click(".list [role=listitem]:nth-child(3) button")
    name = browser.run("document.querySelector('.list [role=listitem]:nth-child(3) .id').textContent")
    browser.wait(f"document.querySelector('.problem h3').textContent === {name!r}")
    assert "group=20." in browser.run("location.hash")
    buttons = "[...document.querySelectorAll('.split > div:last-child .card .row button')]"
    names = browser.run(f"{buttons}.map((b) => b.textContent.split(':')[0])")
    steps = [name for name in names if name.startswith("step")]
    assert steps == ["step 5", "step 20", "step 35"]


def test_filters_leave_what_fits(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#rollouts?run=0&step=all")
    count = "document.querySelector('[role=status]:not(#live)').textContent"
    browser.wait(f"{count} === '32 groups'")
    pick = (
        "(() => {{ const s = document.querySelector('[aria-label=\"{}\"]');"
        " s.value = {!r}; s.dispatchEvent(new Event('{}')); }})()"
    )
    browser.run(pick.format("State of the group", "dead", "change"))
    browser.wait(f"{count} !== '32 groups'")
    assert browser.run(
        "[...document.querySelectorAll('.list .chip')].every((c) => ['dead', '1 cut'].includes(c.textContent))"
    )
    browser.run(pick.format("State of the group", "all", "change"))
    browser.run(pick.format("Task", "ground", "change"))
    browser.wait(f"{count} === '8 groups'")
    browser.run(pick.format("Task", "", "change"))
    browser.run(pick.format("Text filter", "window.hit", "input"))
    browser.wait(f"{count} === '8 groups'")
    assert browser.run("[...document.querySelectorAll('.list .id')].every((e) => e.textContent.startsWith('count-0'))")
    browser.run(pick.format("Text filter", "", "input"))
    browser.run(pick.format("Sort", "spread", "change"))
    browser.wait(f"{count} === '32 groups'")
    spreads = browser.run(
        "[...document.querySelectorAll('.list .num')].map((e) => Number(e.textContent.split('± ')[1]))"
    )
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > spreads[-1]


# What the problem says of its boxes, gold, answer; all the same places in a picture of 64 x 64.
BOXES = {
    "thousandths": ({"coords": "0-1000"}, "250 500 500 1000", "0 0 250 750"),
    "gold in pixels of a larger picture": ({"coords": "0-1000", "size": [640, 320]}, "160 160 320 320", "0 0 250 750"),
    "pixels for thousandths": (
        {"coords": "pixel", "gold_coords": "0-1000", "size": [64, 64]}, "250 500 500 1000", "0 0 16 48"
    ),
    "shares": ({"coords": "0-1"}, "0.25 0.5 0.5 1.0", "0 0 0.25 0.75"),
    "pixels": ({"coords": "pixel"}, "16 32 32 64", "0 0 16 48"),
    "lattice": ({"lattice": 8}, "2 4 4 8", "0 0 2 6"),
    "last column inside": ({"lattice": 4, "inclusive": True}, "1 2 1 3", "0 0 0 2"),
    "guess: pixels": ({}, "16 32 32 64", "0 0 16 48"),
    "guess: sixteenths": ({}, "4 8 8 16", "0 0 4 12"),
    "guess: thousandths": ({}, "250 500 500 1000", "0 0 250 750"),
    "guess: shares": ({}, "0.25 0.5 0.5 1", "0 0 0.25 0.75"),
}  # fmt: skip


@pytest.mark.parametrize("told", BOXES)
def test_boxes_lie_where_the_problem_says(browser: Browser, tmp_path: Path, told: str) -> None:
    box, gold, answer = BOXES[told]
    run = make_run(tmp_path / "run", [5], prompts=1, group=2, ranks=1, tokens=False)
    path = run / "rollouts" / "step_000005.rank0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [line | {"answer": gold, "response": f"<answer>{answer}</answer>", "box": box} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    write_page([run], tmp_path / "p.html", None)
    visit(browser, f"file://{tmp_path / 'p.html'}#rollouts")
    browser.wait("document.querySelectorAll('.figure rect').length === 2 && document.querySelector('img').complete")
    place = """(() => { const i = document.querySelector('.figure img').getBoundingClientRect();
        const r = document.querySelector('rect.%s').getBoundingClientRect();
        return [(r.x - i.x) / i.width, (r.y - i.y) / i.height, r.width / i.width, r.height / i.height]; })()"""
    assert browser.run(place % "gold") == pytest.approx([0.25, 0.5, 0.25, 0.5], abs=0.02)
    assert browser.run(place % "said") == pytest.approx([0, 0, 0.25, 0.75], abs=0.02)
    guessed = browser.run("document.querySelector('[aria-label=\"Unit of the boxes\"]') !== null")
    assert guessed == told.startswith("guess")


def test_tokens_have_numbers_and_masked_ones_no_say_in_the_scale(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#tokens?by=ratio&step=5")
    browser.wait("document.querySelectorAll('.tok').length === 6")
    browser.move(*browser.place(".tok:nth-child(2)"))
    browser.wait("!document.querySelector('#tip').hidden")
    told = browser.run("document.querySelector('#tip').textContent")
    assert told.startswith("token 2 of 6") and "ratio r" in told and "entropy" in told
    ends = browser.run("[...document.querySelectorAll('.ends span')].map((e) => Number(e.textContent))")
    assert ends[0] < 1 < ends[2] < 2, "the masked token, with r = e^3, set the scale"
    masked = "getComputedStyle(document.querySelector('.tok.masked'))"
    assert browser.run("document.querySelectorAll('.tok.masked').length") == 1
    assert float(browser.run(f"{masked}.opacity")) < 0.5
    browser.run(
        "(() => { const s = document.querySelector('[aria-label=\"Colour tokens by\"]');"
        " s.value = 'gap'; s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run("document.querySelectorAll('.tok.unknown').length") == 5  # NaN: not known


def test_a_click_on_a_curve_leads_to_the_nearest_saved_step(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#curves")
    browser.wait("document.querySelectorAll('.chart svg').length > 5")
    browser.move(*browser.place(".chart svg"))
    browser.wait("document.querySelector('#tip').textContent.startsWith('step 1')")
    browser.click(".chart svg")
    browser.wait("location.hash.startsWith('#rollouts') && document.querySelectorAll('.response').length")
    assert "step=20" in browser.run("location.hash")


def test_strips_tell_how_many_responses_have_which_variance(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#curves")
    browser.wait("document.querySelectorAll('canvas').length === 6")  # log r of both signs and Var_i of one, two runs
    strip = "canvas[aria-label^='Var_i of responses with A > 0']"
    x, y = browser.place(strip)
    bins, high = 14, 150  # the lowest bin at the bottom; below it the steps
    browser.move(x, y - 85 + (bins - 1 - 7 + 0.5) * high / bins)
    browser.wait("!document.querySelector('#tip').hidden")
    told = browser.run("document.querySelector('#tip').textContent")
    assert "Var_i in [0.01, 0.02): 6 responses, 46.2%" in told
    browser.click(strip)
    browser.wait("location.hash.startsWith('#rollouts') && document.querySelectorAll('.response').length")


def test_strips_are_read_by_arrow_keys(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#curves")
    browser.wait("document.querySelectorAll('canvas').length === 6")
    browser.run("document.querySelector(\"canvas[aria-label^='Var_i of responses with A > 0']\").focus()")

    def press(key: str) -> str:
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", {"type": kind, "key": key})
        return str(browser.run("document.querySelector('#tip').textContent"))

    # From the fullest bin of the first step: down a bin, up two, a step on, and no further back than the first.
    assert press("ArrowRight").startswith("step 1Var_i in [0.01, 0.02): 6 responses")
    assert "[0.003, 0.01): 4 responses" in press("ArrowDown")
    press("ArrowUp")
    assert "[0.02, 0.05): 1 responses" in press("ArrowUp")
    assert press("ArrowRight").startswith("step 2")
    press("ArrowLeft")
    assert press("ArrowLeft").startswith("step 1")
    press("Enter")
    browser.wait("location.hash.startsWith('#rollouts') && document.querySelectorAll('.response').length")
    assert browser.run("document.querySelector('#tip').hidden")


def test_no_two_values_of_an_axis_read_the_same(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#curves")
    browser.wait("document.querySelectorAll('.chart svg').length > 5")
    texts = "(a) => [...a.querySelectorAll('text')].map((t) => t.textContent)"
    axes = browser.run(f"[...document.querySelectorAll('.axis.left')].map({texts})")
    assert len(axes) > 5 and [axis for axis in axes if len({*axis}) < len(axis)] == []


def test_a_finger_reads_a_value_before_it_goes_on(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#curves")
    browser.wait("document.querySelectorAll('.chart svg').length > 5")
    x, y = browser.place(".chart svg")
    tap = [("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])]
    browser.call("Emulation.setTouchEmulationEnabled", {"enabled": True})
    for kind, points in tap:
        browser.call("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.wait("!document.querySelector('#tip').hidden")
    assert browser.run("location.hash") == "#curves"
    for kind, points in tap:
        browser.call("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.wait("location.hash.startsWith('#rollouts')")
    browser.call("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_theme_button_wins_over_the_system(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#overview")
    browser.click("#theme")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    browser.click("#theme")
    assert browser.run("document.documentElement.dataset.theme") == "light"
    browser.run("localStorage.clear()")
    assert "entropy_collapse in 1 steps" in browser.run("document.querySelector('.note.warn').textContent")


def test_evaluations_show_what_changed_sides(browser: Browser, page: str) -> None:
    visit(browser, f"{page}#evaluations")
    browser.wait("document.querySelectorAll('.list button').length")
    told = browser.run("[...document.querySelectorAll('.cards .card')].pop().textContent")
    assert "+4 -2" in told.replace("\N{MINUS SIGN}", "-") and "of 12 items" in told  # of i % 2 before and i > 3 after
    ids = browser.run("[...document.querySelectorAll('.list .id')].map((e) => e.textContent)")
    assert ids == ["item-1", "item-3", "item-4", "item-6", "item-8", "item-10"]


def test_the_served_page_shows_steps_and_follows_the_run(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2, 4])
    with Server(Site([run], None, follow=True), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        visit(browser, f"http://{HOST}:{server.server_address[1]}/#rollouts?step=all")
        browser.wait("document.querySelector('[role=status]:not(#live)').textContent === '8 groups'")
        browser.wait(
            "document.querySelectorAll('.response').length === 4 && document.querySelector('.figure img') !== null"
        )
        browser.run("location.hash = '#overview'")
        browser.wait("document.documentElement.dataset.ready === 'overview'")
        make_run(run, [2, 4, 6], notices={6: ["length_explosion"]})
        browser.wait("document.body.textContent.includes('length_explosion')")
        browser.run("location.hash = '#rollouts?step=6'")
        browser.wait("document.querySelectorAll('.list button').length === 4")
        server.shutdown()
