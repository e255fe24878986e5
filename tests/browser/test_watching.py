"""The page of a run that goes on, in a real browser, while somebody writes the run's files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from local_distill.report.reading import named
from local_distill.report.serving import open_server
from local_distill.runs.claim import LOCK, Holder
from local_distill.runs.records import RunFiles
from tests.browser.test_report import CONTRAST, SCHEMES
from tests.report.runs import make_evaluation, make_step, write_run
from tests.tiny_models import llama_config, make_tokenizer, save_model

ROOT = Path(__file__).parents[2]
SOON = 10_000  # milliseconds in which the page, which asks every two seconds, has seen what was written
LAST_STEP = "data.curves.runs[0].train.step.at(-1)"
SHOWN_STEP = "document.getElementById('tokens-step-shown').textContent"


class GrowingRun:
    """A run as its own process writes it; this process has the folder."""

    def __init__(self, folder, steps=40, tokens=30):
        folder.mkdir(parents=True)
        self.folder, self.tokens, self.done = folder, tokens, 0
        self.rng = random.Random(0)
        (folder / LOCK).write_text(json.dumps(asdict(Holder.here())))
        settings = {
            "student_model": "small",
            "teacher_model": "large",
            "steps": steps,
            "eval_every": 5,
            "eval_prompts": 2,
        }
        (folder / "config.yaml").write_text(json.dumps(settings))
        self.files = RunFiles(folder, None)

    def evaluates(self):
        self.files.evaluation(make_evaluation(self.rng, self.done, self.tokens))

    def steps(self, number):
        for _ in range(number):
            self.done += 1
            self.files.step(self.done, make_step(self.rng, self.done))


@pytest.fixture
def watched(browser):
    """``watched(folder, …, width=1280, scheme="light") -> page``: the page of these runs, opened."""
    opened = []

    def open_page(*folders, width=1280, scheme="light", **more):
        server = open_server(named([str(folder) for folder in folders]), 0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, locale="en-US", **more)
        opened.append((server, context))
        page = context.new_page()
        page.complaints, page.loads = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("framenavigated", lambda frame: page.loads.append(frame.url))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.server = server
        return page

    yield open_page
    for server, context in opened:
        context.close()
        server.shutdown()
        server.server_close()


def until(page, expression, value):
    """Wait until an expression has a value; the page's own policy forbids Playwright's way of waiting for that."""
    ends = time.monotonic() + 2 * SOON / 1000
    while (found := page.evaluate(expression)) != value:
        assert time.monotonic() < ends, f"{expression} is {found}, not {value}"
        page.wait_for_timeout(50)


def test_a_curve_grows_without_a_reload_from_before_the_run_begins(tmp_path, watched):
    page = watched(tmp_path / "run")
    assert page.is_visible("#no-curves")
    run = GrowingRun(tmp_path / "run")
    page.wait_for_selector("text=starting: it loads the models", timeout=SOON)
    run.evaluates()
    page.wait_for_selector(".after .token", timeout=SOON)
    assert page.is_hidden("#no-curves")
    run.steps(1)
    until(page, LAST_STEP, 1)
    page.wait_for_selector(".chart >> nth=3")
    first = page.locator(".chart canvas").first
    before = first.screenshot()
    run.steps(4)
    until(page, LAST_STEP, 5)
    assert first.screenshot() != before
    assert "evaluating after step 5 of 40" in page.inner_text(".progress")
    run.evaluates()
    page.wait_for_selector("text=step 6 of 40", timeout=SOON)
    until(page, SHOWN_STEP, "5")
    assert page.locator(".before .token").count() == 2 * 30
    (run.folder / LOCK).unlink()
    page.wait_for_selector("text=stopped after step 5 of 40", timeout=SOON)
    assert page.inner_text("#watching").startswith("nobody is at work")
    assert len(page.loads) == 1
    assert page.complaints == []


def test_what_the_reader_looks_at_stays_as_it_is(tmp_path, watched):
    run = GrowingRun(tmp_path / "run")
    run.evaluates(), run.steps(5), run.evaluates()
    page = watched(run.folder)
    page.locator("#tokens-step").fill("0")
    token = page.locator('.token[data-place="1"][data-index="7"]')
    token.scroll_into_view_if_needed()
    token.click()
    told, at = page.inner_text("#inspector"), token.bounding_box()["y"]
    page.locator(".u-legend .u-label").nth(1).click()
    page.select_option("#tokens-colour", "difference")
    page.locator("#settings summary").click()
    token.click()
    token.evaluate(
        "token => { scrollTo({ top: scrollY + token.getBoundingClientRect().top - 300, behavior: 'instant' }) }"
    )
    at, told = token.bounding_box()["y"], page.inner_text("#inspector")
    run.steps(5), run.evaluates()
    (run.folder / "config.yaml").write_text((run.folder / "config.yaml").read_text()[:-1] + ', "seed": 7}')
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "a/metric_that_is_new": 1.5}\nno record, which is told at the top of the page\n')
    (run.folder / "environment.json").write_text(json.dumps([{"python": str(i)} for i in range(3)]))
    until(page, LAST_STEP, 11)
    page.wait_for_selector("text=A: metric that is new")
    assert page.is_visible(".problem"), "and makes it longer"
    assert token.bounding_box()["y"] == pytest.approx(at, abs=1)
    assert page.inner_text("#inspector") == told
    assert page.inner_text("#tokens-step-shown") == "0"
    assert page.input_value("#tokens-colour") == "difference"
    assert page.get_attribute("#tokens-step", "max") == "2"
    assert "u-off" in page.locator(".u-series").nth(1).get_attribute("class")
    page.select_option("#x-axis", "tokens")
    assert "u-off" in page.locator(".u-series").nth(1).get_attribute("class"), "on another axis too"
    assert page.locator("#settings details").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.dataset.index") == "7"
    assert page.complaints == []


def test_a_chart_that_is_looked_at_closer_stays_so(tmp_path, watched):
    run = GrowingRun(tmp_path / "run")
    run.evaluates(), run.steps(20)
    page = watched(run.folder)
    box = page.locator(".u-over").first.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50, steps=5)
    page.mouse.up()
    ticks = page.locator("#first-chart canvas")
    page.mouse.move(5, 5)
    closer = ticks.screenshot()
    run.steps(3)
    until(page, LAST_STEP, 23)
    assert ticks.screenshot() == closer, "what is in view has not changed"
    page.locator(".u-over").first.dblclick()
    page.mouse.move(5, 5)
    assert ticks.screenshot() != closer


def test_the_newest_step_is_followed_and_the_last_values_stand_in_the_legend(tmp_path, watched):
    run = GrowingRun(tmp_path / "run")
    run.evaluates(), run.steps(4)
    page = watched(run.folder)
    legend = page.locator(".u-legend").first
    assert "0.750" in legend.inner_text(), "3 / 4"
    run.steps(1), run.evaluates()
    until(page, SHOWN_STEP, "5")
    assert "0.600" in legend.inner_text()
    assert "0.500 ± 0.05" in legend.inner_text()
    assert "−83 %" in page.inner_text("[data-part=outcome]")
    page.locator('.after .token[data-place="0"][data-index="3"]').focus()
    told = page.inner_text("#inspector")
    run.steps(5), run.evaluates()
    until(page, "data.evaluations.runs[0].length", 3)
    assert page.inner_text("#tokens-step-shown") == "5", "whose token is looked at"
    assert page.inner_text("#inspector") == told


@pytest.mark.parametrize("scheme", SCHEMES)
def test_several_runs_on_a_phone(tmp_path, watched, scheme):
    ended = write_run(tmp_path / "ended", steps=12, every=6, tokens=30, seed=1, top_p=0.5)
    run = GrowingRun(tmp_path / "going")
    page = watched(ended, run.folder, width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    run.evaluates(), run.steps(5), run.evaluates()
    until(page, "data.curves.runs[1].train.step.at(-1)", 5)
    page.wait_for_selector("text=step 6 of 40", timeout=SOON)
    assert page.locator("#tokens-run option").all_inner_texts() == ["ended", "going"]
    assert page.inner_text("#tokens-step-shown") == "12", "the run that was looked at"
    page.select_option("#tokens-run", "1")
    assert page.inner_text("#tokens-step-shown") == "5"
    for part in page.locator("table:visible, .chart:visible, nav, .controls, header").all():
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390, part.inner_text()[:80]
    assert (
        page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length")
        == 0
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    assert page.complaints == []


def test_a_watch_that_has_ended_leaves_its_page_and_one_that_begins_again_is_found(tmp_path, watched):
    run = GrowingRun(tmp_path / "run")
    run.evaluates(), run.steps(2)
    page = watched(run.folder)
    page.wait_for_selector("text=last line written", timeout=SOON)
    port = page.server.port
    page.server.shutdown()
    page.server.server_close()
    page.wait_for_selector("text=local-distill watch has ended", timeout=SOON)
    assert page.locator(".after .token").count() == 2 * 30
    run.steps(1)
    page.server = open_server(named([str(run.folder)]), port)
    threading.Thread(target=page.server.serve_forever, daemon=True).start()
    until(page, LAST_STEP, 3)
    page.server.shutdown()
    page.server.server_close()


def test_a_real_run_is_watched_from_its_start_to_its_end(tmp_path, watched):
    student, teacher = (
        save_model(tmp_path / name, llama_config(), make_tokenizer(), seed=seed)
        for seed, name in enumerate(("student", "teacher"))
    )
    page = watched(tmp_path / "run")
    words = ["--student_model", student, "--teacher_model", teacher, "--output_dir", tmp_path / "run", "--steps", "12"]
    small = {"batch_size": 2, "group_size": 1, "max_new_tokens": 6, "eval_prompts": 2, "eval_every": 4}
    words += [word for name, value in small.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "local_distill", "train", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as training:
        page.wait_for_selector("text=finished", timeout=120_000)
        assert training.wait() == 0
    until(page, LAST_STEP, 12)
    assert page.inner_text("#tokens-step-shown") == "12"
    assert "before → after" in page.inner_text("[data-part=outcome]")
    assert len(page.loads) == 1
    assert page.complaints == []
