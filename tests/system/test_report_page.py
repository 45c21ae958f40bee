"""The report page in a real browser: what it draws, how it is read, and that it is safe."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.report.page import render_page
from unit.test_report import HOSTILE, LACKING, OLD_FORMAT, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PHONE, DESKTOP = 390, 1280
LEAST_CONTRAST = 4.5  # WCAG 2, level AA

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real run with its page."""
    folder = tmp_path_factory.mktemp("page") / "a run"
    for command in (
        ("run", "digits", "--set", "generations=4", "--set", "population.offspring=9"),
        ("report", str(folder)),
    ):
        output = ("--output", str(folder)) if command[0] == "run" else ()
        subprocess.run(
            [sys.executable, "-m", "esgd_hpc", *command, *output],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
        )
    return folder


@pytest.fixture
def show(browser: "Browser", tmp_path: Path) -> Iterator[Open]:
    """Return `show(runs, width, **options)`, which opens a page. Its charts are drawn by then.

    `runs` is the path of a page, or names with runs. At the end nothing may have been complained
    about in the console, and nothing but the page asked for.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    requests: list[str] = []

    def show(runs: Path | dict[str, Checkpoint], width: int = DESKTOP, **options: Any) -> "Page":
        path = runs
        if not isinstance(path, Path):
            path = tmp_path / "report.html"
            path.write_bytes(render_page(runs))  # type: ignore[arg-type]
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("file:")] == []
    assert len(requests) == len(contexts)


def until(page: "Page", condition: str) -> None:
    """Wait until an expression is true; the page's policy forbids playwright's own way."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{condition} is still not true")


def chart(page: "Page", kind: str) -> "Locator":
    """Return the one chart of a kind that is seen."""
    return page.locator(f'.chart[data-kind="{kind}"]:visible')


def traces(page: "Page", kind: str) -> list[dict[str, Any]]:
    """Return name, number of points and x of each trace that a chart shows."""
    found: list[dict[str, Any]] = chart(page, kind).evaluate(
        "e => e.data.filter(t => t.visible)"
        ".map(t => ({name: t.meta && t.meta.label, type: t.type, mode: t.mode, x: [...t.x]}))"
    )
    return found


# ---------------------------------------------------------------- what is drawn


def test_every_chart_draws_the_run(run: Path, show: Open) -> None:
    history = open_checkpoint(run).history
    page = show(run / "report.html")
    kinds = page.locator(".chart").evaluate_all("all => all.map(e => e.dataset.kind)")
    assert kinds == [
        "fitness", "children", "diversity", "optimizers", "seconds", "settings", "family",
        "figure1", "figure2",
    ]  # fmt: skip
    for name in ("best to worst", "middle half", "median", "elite average", "best"):
        assert name in [trace["name"] for trace in traces(page, "fitness")]
    dots = [len(t["x"]) for t in traces(page, "fitness") if t["mode"] == "markers"]
    assert sum(dots) == sum(map(len, history.survivors)) == 8 * 5
    assert chart(page, "fitness").locator(".scatterlayer .points path").count() >= 8 * 5
    used = {
        optimizer for r in history.rows for optimizer, n in r.individuals_by_optimizer.items() if n
    }
    assert len(traces(page, "optimizers")) == len(used)
    assert chart(page, "optimizers").locator(".bars .point path").count() == len(used) * 5
    names = [t["name"] for t in traces(page, "seconds")]
    assert names[0] == "SGD step"
    assert "evolution step" not in names, "what an older version timed as one"
    of_the_step = {"scoring children", "making children", "planning", "evolution step, the rest"}
    assert of_the_step <= set(names)
    assert sum(len(t["x"]) for t in traces(page, "settings")) == len(history.steps) == 8 * 4
    assert len(traces(page, "children")[0]["x"]) == 4
    told = chart(page, "family").evaluate("e => e.data.at(-1).text")
    assert told[0].startswith(f"individual {open_checkpoint(run).best().uid}<br>")
    assert [len(trace["x"]) for trace in traces(page, "figure1")] == [5, 5, 5]  # two edges, a line
    assert [trace["name"] for trace in traces(page, "figure2")] == ["ESGD"]


@pytest.mark.parametrize("case", [*LACKING, "format 1", "failures"])
def test_runs_that_lack_something_are_drawn_without_a_complaint(case: str, show: Open) -> None:
    if case == "format 1":
        checkpoint = open_checkpoint(OLD_FORMAT)
    else:
        checkpoint = make_run(hostile="x") if case == "failures" else LACKING[case][0]()
    page = show({case: checkpoint}, PHONE)
    assert chart(page, "fitness").locator(".scatterlayer .trace").count() > 0
    if case == "failures":
        page.locator('[data-control="setting"]').select_option("cellx")
        note = page.locator("figure.settings .note")
        failed = sum(step.fitness == float("inf") for step in checkpoint.history.steps)
        assert f"Crosses at the edge: {failed} that failed, fitness +inf." in note.inner_text()


def test_several_runs_are_overlaid_and_one_is_shown_in_detail(show: Open) -> None:
    page = show({"one": make_run(), "two": make_run(generations=2)})
    solid = [t for t in traces(page, "comparison") if t["name"]]
    assert [(t["name"], t["x"]) for t in solid] == [("one", [0, 1, 2, 3, 4]), ("two", [0, 1, 2])]
    assert [t["name"] for t in traces(page, "figure1") if t["name"]] == [
        "ESGD: one, all 6",
        "ESGD: two, all 6",
    ]
    page.locator("figure", has_text="Figure 1").get_by_role("button", name="ESGD: one").click()
    assert [t["name"] for t in traces(page, "figure1") if t["name"]] == ["ESGD: two, all 6"]
    assert traces(page, "children")[0]["x"] == [1, 2, 3, 4]
    page.get_by_label("Details of").select_option("two")
    assert traces(page, "children")[0]["x"] == [1, 2]
    assert page.get_by_role("heading", name="one", exact=True).count() == 0
    page.get_by_label("Over").select_option("wall time")
    assert traces(page, "comparison")[1]["x"] == [0, 2.75, 5.5, 8.25, 11]


# ---------------------------------------------------------------- how it is read


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window(run: Path, show: Open, width: int) -> None:
    page = show(run / "report.html", width)
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = chart(page, "fitness").evaluate("e => e.querySelector('.main-svg').clientWidth")
    assert 0.8 * min(width, 1000) < wide < width


def test_long_words_are_broken(show: Open) -> None:
    word = "extraordinarily" * 20
    page = show({word: make_run(hostile=word), f"{word}2": make_run(hostile=word)}, PHONE)
    for details in page.locator("details:visible").all():
        details.locator("summary").click()
    page.locator('[data-control="setting"]:visible').select_option(index=4)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE


def test_charts_keep_to_a_window_that_changes(run: Path, show: Open) -> None:
    page = show(run / "report.html", DESKTOP)
    page.set_viewport_size({"width": PHONE, "height": 800})
    until(
        page, "[...document.querySelectorAll('.main-svg')].every(e => e.clientWidth < innerWidth)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("setting", ["learning rate", "momentum", "dropout", "cell"])
def test_labels_of_axes_do_not_overlap(show: Open, width: int, setting: str) -> None:
    page = show({"run": make_run(generations=30)}, width)
    page.get_by_label("Across").select_option(setting)
    for ticks in (".xtick text", ".ytick text"):
        boxes = page.locator(f".chart {ticks}").evaluate_all("""all => all.map(e => {
            const { left, right, top, bottom } = e.getBoundingClientRect();
            return [[...document.querySelectorAll(".chart")].indexOf(e.closest(".chart")),
                    left, right, top, bottom];
        })""")
        assert boxes
        for (chart_a, *a), (chart_b, *b) in combinations(boxes, 2):
            overlap = min(a[1], b[1]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[2], b[2])
            assert not (chart_a == chart_b and overlap)


CONTRASTS = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = rgba(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || parent.closest("script")) continue;
    if (!parent.checkVisibility({ checkVisibilityCSS: true })) continue;
    const style = getComputedStyle(parent);
    const color = parent.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(color), luminance(behind(parent))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), texts.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(run: Path, show: Open, scheme: str) -> None:
    page = show(run / "report.html", color_scheme=scheme)
    for details in page.locator("details").all():
        details.locator("summary").click()
    found = page.evaluate(CONTRASTS)
    texts = [text for _, text in found]
    assert {"fitness", "generation", "Adam", "Best fitness", "Recipe"} <= set(texts)
    assert [(c, text) for c, text in found if c < LEAST_CONTRAST] == []


def page_colors(page: "Page") -> tuple[str, str]:
    """Return the colour of the page, and of the numbers at an axis."""
    background: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    tick = chart(page, "fitness").locator(".xtick text").first
    color: str = tick.evaluate("e => getComputedStyle(e).fill")
    return background, color


def test_the_theme_follows_the_system_and_the_button(run: Path, show: Open) -> None:
    page = show(run / "report.html", color_scheme="light")
    light = page_colors(page)
    page.emulate_media(color_scheme="dark")
    dark = page_colors(page)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    page.get_by_role("button", name="Light theme").click()
    assert page_colors(page) == light
    page.get_by_role("button", name="Dark theme").click()
    assert page_colors(page) == dark


def test_what_a_screen_reader_is_told(run: Path, show: Open) -> None:
    page = show(run / "report.html")
    assert page.title() == "a run: esgd report"
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for element in page.locator(".chart").all():
        title, described = (
            element.get_attribute("aria-label"),
            element.get_attribute("aria-describedby"),
        )
        assert title
        assert len(page.locator(f"#{described}").inner_text()) > 20
        assert element.locator("svg:not([aria-hidden])").count() == 0
    controls = page.locator("select, input").evaluate_all(
        "all => all.map(e => e.labels[0] && e.labels[0].innerText.trim())"
    )
    assert controls
    assert all(controls)


# ---------------------------------------------------------------- what can be done with it


def test_hyper_parameters_and_generations_can_be_chosen(show: Open) -> None:
    page = show({"run": make_run()})
    before = traces(page, "settings")
    assert page.get_by_label("Across").locator("option").all_inner_texts() == [
        "learning rate",
        "momentum",
        "weight decay (always 0)",
        "batch size (always 64)",
        "cell",
        "dropout",
        "tied",
    ]
    page.get_by_label("Across").select_option("dropout")
    after = traces(page, "settings")
    assert [len(t["x"]) for t in after] == [len(t["x"]) for t in before]
    assert [t["x"] for t in after] != [t["x"] for t in before]
    assert chart(page, "settings").locator(".xtitle").text_content() == "dropout"
    page.get_by_label("Across").select_option("cell")
    labels = chart(page, "settings").locator(".xtick text").all_text_contents()
    assert labels == ["gru", "lstm"]
    page.get_by_label("Up").select_option("gain of the step")
    assert chart(page, "settings").locator(".ytitle", has_text="gain").count() == 1
    page.get_by_label("From generation").fill("4")
    assert sum(len(t["x"]) for t in traces(page, "settings")) == 6
    page.locator('[data-control="to"]').fill("2")  # takes the other end along
    assert page.get_by_label("From generation").input_value() == "2"
    assert sum(len(t["x"]) for t in traces(page, "settings")) == 6


def test_individuals_scale_and_lines_can_be_switched(run: Path, show: Open) -> None:
    page = show(run / "report.html")
    figure = page.locator("figure.fitness")
    assert any(t["mode"] == "markers" for t in traces(page, "fitness"))
    figure.get_by_label("individuals").uncheck()
    assert not any(t["mode"] == "markers" for t in traces(page, "fitness"))
    scale = "e => e.layout.yaxis.type || 'linear'"
    before = chart(page, "fitness").evaluate(scale)
    figure.get_by_label("logarithmic").click()
    assert {before, chart(page, "fitness").evaluate(scale)} == {"linear", "log"}
    legend = figure.get_by_role("button", name="median")
    legend.focus()
    page.keyboard.press("Enter")
    assert "median" not in [t["name"] for t in traces(page, "fitness")]
    assert legend.get_attribute("aria-pressed") == "false"
    page.keyboard.press("Enter")  # the focus stayed
    assert "median" in [t["name"] for t in traces(page, "fitness")]


def hover_text(page: "Page", kind: str) -> str:
    """Return what the bubble of a chart says."""
    bubble = chart(page, kind).locator(".hoverlayer text").first
    bubble.wait_for()
    return " ".join(chart(page, kind).locator(".hoverlayer text").all_text_contents())


def test_the_mouse_shows_an_individual(run: Path, show: Open) -> None:
    history = open_checkpoint(run).history
    page = show(run / "report.html")
    chart(page, "fitness").scroll_into_view_if_needed()
    dot = chart(page, "fitness").locator(".scatterlayer .trace .points path").first
    box = dot.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = hover_text(page, "fitness")
    known = [f"individual {m.uid}, {m.origin}" for members in history.survivors for m in members]
    assert any(told in text for told in known)
    assert "fitness" in text


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("fitness", "Generation 0: best ", "Generation 1: best "),
        ("diversity", "Generation 0: all ", "Generation 1: all "),
        ("seconds", "Generation 0: ", "Generation 1: SGD step "),
        ("settings", ", generation 1", ", generation "),
        ("family", "individual ", "child of "),
        ("figure1", "generation 0: ", "generation 1: "),
    ],
)
def test_arrow_keys_step_through_a_chart(
    run: Path, show: Open, kind: str, first: str, second: str
) -> None:
    page = show(run / "report.html")
    chart(page, kind).focus()
    spoken = page.locator("#spoken")
    page.keyboard.press("ArrowRight")
    before = spoken.text_content() or ""
    page.keyboard.press("ArrowRight")
    after = spoken.text_content() or ""
    assert first in before
    assert second in after
    assert before != after
    assert hover_text(page, kind)
    page.keyboard.press("ArrowLeft")
    assert spoken.text_content() == before
    page.keyboard.press("Escape")
    chart(page, kind).locator(".hoverlayer text").first.wait_for(state="detached")


def test_tab_reaches_every_chart_and_control(run: Path, show: Open) -> None:
    page = show(run / "report.html")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.dataset.kind || document.activeElement.tagName")
        )
    kinds = page.locator(".chart").evaluate_all("all => all.map(e => e.dataset.kind)")
    assert {*kinds, "BUTTON", "SELECT", "INPUT", "SUMMARY"} <= reached


def test_a_finger_on_a_chart_scrolls_the_page(run: Path, show: Open) -> None:
    page = show(run / "report.html", PHONE, has_touch=True, is_mobile=True)
    chart(page, "fitness").evaluate("e => e.scrollIntoView({block: 'center'})")
    before = page.evaluate("scrollY")
    touch = page.context.new_cdp_session(page)
    for kind, y in (("touchStart", 500), *(("touchMove", 500 - 20 * n) for n in range(1, 11))):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": 200, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    until(page, f"scrollY > {before} + 100")


# ---------------------------------------------------------------- safety


def test_hostile_texts_do_nothing_and_are_shown(show: Open) -> None:
    page = show({HOSTILE: make_run(hostile=HOSTILE), "other": make_run()})
    page.locator('[data-control="setting"]:visible').select_option(index=4)
    chart(page, "settings").focus()
    page.keyboard.press("ArrowRight")
    assert "http://owned.example/" in hover_text(page, "settings")
    assert page.evaluate("window.owned") is None
    assert page.locator("img, a").count() == 0
    assert HOSTILE.split("\u2028")[0] in page.locator(".run h2", has_text="owned").inner_text()


def test_the_policy_holds_even_if_a_script_got_in(browser: "Browser", run: Path) -> None:
    page = browser.new_page()
    page.goto((run / "report.html").as_uri())
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.owned = 1">');
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    assert page.evaluate("fetch('report.html').then(() => 'sent', () => 'refused')") == "refused"
    page.close()
