"""The report, in a real browser: drawn, answering, and harmless."""

from __future__ import annotations

import json
import math
import re

import pytest

from local_distill.report.page import write_report
from local_distill.report.reading import read_run, read_runs
from tests.report.runs import records_of, write_run

WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")

# How many colours a canvas holds: a blank one has one.
COLOURS = """canvas => {
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels).size;
}"""

# The lowest contrast (WCAG) of any text on what is painted behind it, and where.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (below, colour) => {
    canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const ground = element => {
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    return chain.reduce(over, [255, 255, 255]);
  };
  const light = rgb => rgb.map(c => c / 255).map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    if (!element.checkVisibility() || element.closest("option, canvas, script, noscript")) continue;
    const below = ground(element), text = over(below, getComputedStyle(element).color);
    const [low, high] = [light(below), light(text)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    const where = `${element.tagName}.${element.className}: ${element.textContent.slice(0, 40)}`;
    if (contrast < worst[0]) worst = [contrast, where];
  }
  return worst;
}"""


class Report:
    """A page that was opened, and what it did besides: console messages, errors, requests."""

    def __init__(self, page, url):
        self.page = page
        self.complaints, self.requests = [], []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("canvas")

    def data(self):
        return json.loads(self.page.text_content("#data"))

    def token(self, place, index):
        return self.page.locator(f'.after .token[data-place="{place}"][data-index="{index}"]')

    def inspected(self):
        return self.page.inner_text("#inspector")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", steps=20, every=5, tokens=40)


@pytest.fixture(scope="module")
def pages(folder, tmp_path_factory):
    """URLs: of one run, and of two."""
    other = write_run(tmp_path_factory.mktemp("more") / "other", steps=12, every=6, tokens=30, seed=1, top_p=0.5)
    one = write_report([read_run(folder)], folder / "report.html")
    two = write_report(read_runs([str(folder), str(other)]), folder / "two.html")
    return {"one": one.as_uri(), "two": two.as_uri()}


@pytest.fixture
def opened(browser, pages):
    """``opened("one", width=1440, scheme="light") -> Report``"""
    contexts = []

    def open_page(which="one", width=1440, scheme="light", **more):
        viewport = {"width": width, "height": 900}
        # In the POSIX locale some Chromiums call their language en-US@posix, which their own Intl refuses.
        context = browser.new_context(viewport=viewport, color_scheme=scheme, locale="en-US", **more)
        contexts.append(context)
        return Report(context.new_page(), pages[which])

    yield open_page
    for context in contexts:
        context.close()


def nats(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_drawn_at_any_width_in_any_theme(opened, which, width, scheme):
    report = opened(which, width, scheme)
    page = report.page
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing to scroll sideways"
    charts = page.locator(".chart canvas")
    assert charts.count() == len(report.data()["curves"]["charts"])
    for canvas in charts.all():
        assert canvas.evaluate(COLOURS) > 5
    assert page.locator(".before .token").count() == page.locator(".after .token").count() == 2 * 40
    report.token(0, 3).click()
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert report.complaints == []
    assert all(url.startswith("file:") for url in report.requests)
    assert len(report.requests) == 1, "the page itself and nothing else"


def test_pointing_at_a_token_shows_its_numbers(opened, folder):
    report = opened()
    pieces = records_of(folder / "completions.jsonl")[-1]["completions"][1]["pieces"]
    for index in (0, 7, 39):
        piece = pieces[index]
        report.token(1, index).hover()
        shown = report.inspected()
        assert nats(re.search(r"reverse KL (\S+) nats", shown)[1]) == pytest.approx(piece["reverse_kl"], abs=6e-4)
        for who in ("student", "teacher"):
            share, value = re.search(rf"{who}\s+(\S+) %\s+(\S+)", shown).groups()
            assert nats(value) == pytest.approx(piece[who], abs=6e-4)
            assert float(share) == pytest.approx(100 * math.exp(piece[who]), rel=6e-3)
        choices = [float(text.split()[0]) for text in report.page.locator("#inspector .chance").all_inner_texts()]
        assert choices == pytest.approx([100 * math.exp(value) for _, value in piece["top"]], rel=6e-3)


def test_the_keyboard_walks_from_token_to_token(opened):
    report = opened()
    report.token(0, 0).focus()
    before = report.inspected()
    report.page.keyboard.press("ArrowRight")
    assert report.inspected() != before
    assert report.page.evaluate("document.activeElement.dataset.index") == "1"
    report.page.keyboard.press("ArrowLeft")
    assert report.inspected() == before
    report.page.keyboard.press("Escape")
    assert report.page.is_hidden("#inspector")


def test_a_tap_shows_them_too_without_covering_the_token(opened):
    report = opened(width=360, has_touch=True, is_mobile=True)
    report.token(0, 5).evaluate("token => token.scrollIntoView({ block: 'end' })")
    report.token(0, 5).tap()
    assert report.page.is_visible("#inspector")
    token, box = report.token(0, 5).bounding_box(), report.page.locator("#inspector").bounding_box()
    assert token["y"] + token["height"] <= box["y"] + 1


def test_the_slider_goes_from_step_to_step(opened, folder):
    report = opened()
    last = report.page.inner_text("#heat")
    report.page.locator("#tokens-step").fill("1")
    assert report.page.inner_text("#tokens-step-shown") == "5"
    assert report.page.inner_text("#heat") != last
    report.token(0, 4).hover()
    piece = records_of(folder / "completions.jsonl")[1]["completions"][0]["pieces"][4]
    assert f"reverse KL {piece['reverse_kl']:.3f} nats" in report.inspected()


def test_the_worst_tokens_lead_to_their_places(opened, folder):
    report = opened()
    pieces = [
        (piece["reverse_kl"], evaluation["step"])
        for evaluation in records_of(folder / "completions.jsonl")
        for completion in evaluation["completions"]
        for piece in completion["pieces"]
    ]
    rows = report.page.locator("#worst tbody tr")
    assert rows.count() == 20
    assert {row.locator("td").nth(1).inner_text() for row in rows.all()} == {"20"}, "of the last step"
    report.page.uncheck("#worst-here")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    expected = sorted(pieces, reverse=True)[:20]
    assert [float(cell[0]) for cell in cells] == pytest.approx([worst for worst, _ in expected], abs=6e-4)
    rows.nth(2).locator("button").click()
    worst, step = expected[2]
    assert report.page.inner_text("#tokens-step-shown") == str(step)
    assert f"reverse KL {worst:.3f} nats" in report.inspected()
    assert report.page.evaluate("document.activeElement.classList.contains('token')")
    report.page.check("#worst-here")
    assert {row.locator("td").nth(1).inner_text() for row in rows.all()} == {str(step)}


def test_the_colour_of_a_token_grows_with_its_number(opened, folder):
    report = opened()
    pieces = records_of(folder / "completions.jsonl")[-1]["completions"][0]["pieces"]
    share = "token => parseFloat(token.style.getPropertyValue('--share'))"
    shares = [report.token(0, i).evaluate(share) for i in range(40)]
    order = sorted(range(40), key=lambda i: pieces[i]["reverse_kl"])
    assert [shares[i] for i in order] == sorted(shares)
    report.page.select_option("#tokens-colour", "difference")
    for i in range(40):
        surer = "more" if pieces[i]["student"] > pieces[i]["teacher"] else "less"
        assert surer in report.token(0, i).get_attribute("class").split()


def test_the_button_changes_the_theme_and_the_charts_with_it(opened):
    report = opened(scheme="light")
    light = report.page.screenshot()
    report.page.click("#theme")
    dark = report.page.screenshot()
    assert light != dark
    assert report.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    ticks = "uPlot => getComputedStyle(document.querySelector('.u-series .u-marker')).backgroundColor"
    assert report.page.evaluate(ticks)
    report.page.click("#theme")
    assert report.page.screenshot() == light


def test_the_x_axis_counts_what_it_is_asked_to(opened):
    report = opened()
    first = report.page.locator(".chart canvas").first
    steps = first.screenshot()
    report.page.select_option("#x-axis", "seconds")
    assert first.screenshot() != steps
    over = report.page.locator(".chart .u-over").first
    over.hover(position={"x": over.bounding_box()["width"] - 2, "y": 20})
    legend = report.page.locator(".u-legend").first.inner_text()
    assert re.search(r"time in steps \(s\)\s*40\D", legend), "20 steps of 2 s"


def test_the_legend_tells_the_number_under_the_cursor(opened, folder):
    report = opened()
    over = report.page.locator(".chart .u-over").first
    box = over.bounding_box()
    over.hover(position={"x": box["width"] - 2, "y": 20})
    legend = report.page.locator(".u-legend").first
    last = records_of(folder / "completions.jsonl")[-1]
    assert f"{last['reverse_kl']:.3f} ± {last['standard_error']:.2g}" in legend.inner_text().replace("\n", " ")
    over.hover(position={"x": box["width"] * 0.55, "y": 20})
    assert re.search(r"steps\s*11\D", legend.inner_text())
    nearest = records_of(folder / "completions.jsonl")[2]["reverse_kl"]
    assert f"{nearest:.3f} ±" in legend.inner_text(), "that of step 10, the evaluation beside it"


def test_another_run_can_be_chosen(opened):
    report = opened("two")
    assert report.page.inner_text("#tokens-step-shown") == "20"
    report.page.select_option("#tokens-run", "1")
    assert report.page.inner_text("#tokens-step-shown") == "12"
    assert report.page.locator(".after .token").count() == 2 * 30


def test_what_a_model_wrote_stays_text(opened):
    report = opened()
    for step in range(5):
        report.page.locator("#tokens-step").fill(str(step))
    assert report.page.title().startswith("run")
    assert report.page.locator("img, main b b").count() == 0
    assert "</script><img src=x" in report.page.inner_text("#heat")
    assert report.complaints == []


def test_the_policy_stops_what_would_get_in_all_the_same(opened):
    report = opened()
    report.page.evaluate("""() => {
        const image = document.createElement("img"); image.src = "https://example.org/x.png";
        document.body.append(image);
        const script = document.createElement("script"); script.textContent = "document.title = 'attacked'";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<i onclick=\\"document.title='attacked'\\" id=bad>x</i>");
        document.getElementById("bad").click();
    }""")
    report.page.wait_for_timeout(100)
    assert report.page.title() != "attacked"
    assert len(report.complaints) >= 3, "each is refused aloud"


def test_it_prints_in_light_colours(opened, tmp_path):
    report = opened(scheme="dark")
    ground = "getComputedStyle(document.body).colorScheme"
    pixels = "document.querySelector('.chart canvas').toDataURL()"
    light, dark = opened(scheme="light").page.evaluate(pixels), report.page.evaluate(pixels)
    report.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert report.page.evaluate(ground) == "light"
    assert report.page.evaluate(pixels) == light
    report.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert report.page.evaluate(pixels) == dark
    assert len(report.page.pdf(path=tmp_path / "report.pdf", print_background=True)) > 20_000
    assert report.complaints == []
