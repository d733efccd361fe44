"""The page in Chromium: texts that are long, hostile or cut short, and people with a keyboard alone.

Not in the main job: `apt-get install chromium`, `pip install '.[browser]'`, `pytest -m long tests/serve`.
SHOTS=folder keeps screenshots.
"""

import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.long, pytest.mark.slow]
UNTESTED = "nothing tests reload, restart, two tabs, 100K tokens, keyboard and hostile text in the page: "
WORDS = ("road", "village", "white", "with", "frost", "and", "nobody", "had", "walked", "since", "night", "fell", "the")
LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push(Math.round(entry.duration));
}).observe({ type: "longtask", buffered: true });
"""


@pytest.fixture(scope="module")
def browser():
    program = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(UNTESTED + "there is no Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip(UNTESTED + "playwright is not installed")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def tab(browser):
    """Opens tabs of one window; an error in a page fails the test."""
    context, errors = browser.new_context(viewport={"width": 1280, "height": 800}), []

    def opened(address, script=None, **media):
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        page.on("request", lambda asked: errors.append(asked.url) if not own(asked.url, address) else None)
        if media:
            page.emulate_media(**media)
        if script:
            page.add_init_script(script)
        page.goto(address)
        return page

    yield opened
    context.close()
    assert not errors


def own(url, address):
    return url.startswith((address.split("#")[0].rstrip("/"), "blob:", "data:"))


@pytest.fixture
def written():
    """Makes servers of written runs."""
    from written import Written

    made = []

    def make(pieces, **changes):
        made.append(Written(pieces, **changes))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def book(tokens, seed=0):
    """The tokens of a book with chapters and paragraphs."""
    chance, pieces = random.Random(seed), []
    while len(pieces) < tokens:
        if len(pieces) % 2000 < 2:
            pieces += ["\n\n", "## ", f"Chapter {len(pieces) // 2000 + 1}", "\n\n"]
        pieces.append(
            chance.choice([" ", " ", " ", ". ", "\n\n"] if len(pieces) % 40 == 0 else [" "]) + chance.choice(WORDS)
        )
    return pieces[:tokens]


def shown(page):
    return page.evaluate("[...document.querySelectorAll('#text > div')].map((each) => each.textContent).join('')")


def until(page, condition, seconds=30):
    """Waits for a condition; playwright's own way evaluates a string in the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def arrived(page, text, seconds=30):
    """Waits until the page has so much text."""
    length = "[...document.querySelectorAll('#text > div')].reduce((sum, each) => sum + each.textContent.length, 0)"
    until(page, f"{length} >= {len(text.encode('utf-16-le')) // 2}", seconds)


def complete(page, text, seconds=30):
    """Waits until the page has so much text, and compares it."""
    arrived(page, text, seconds)
    assert shown(page) == text


def shoot(page, name):
    if os.environ.get("SHOTS"):
        folder = Path(os.environ["SHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png")


def test_100k_tokens_leave_the_main_thread_free(tab, written):
    """All at once, as after a reload, with colours, and while a person scrolls, searches and jumps."""
    pieces = book(100_000)
    server = written(pieces)
    page = tab(server.address, LONG_TASKS)
    page.check("#colours")
    arrived(page, "".join(pieces))
    page.fill("#search", "nobody")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#search-count').textContent.startsWith('1 of')")
    page.locator("#outline button").nth(25).click()
    page.mouse.move(640, 600)
    for _ in range(10):
        page.mouse.wheel(0, 900)
        page.wait_for_timeout(30)
    page.wait_for_timeout(300)
    assert page.locator("#outline button").count() == 50
    tasks = page.evaluate("window.longTasks")
    assert not [task for task in tasks if task > 50], tasks
    assert shown(page) == "".join(pieces)
    assert int(re.sub(r"\D", "", page.inner_text("#words"))) == len("".join(pieces).split())


def test_a_reload_in_the_middle_goes_on(tab, written):
    pieces = book(2400)
    server = written(pieces, delay=0.01, state="running", finish_reason=None)
    page = tab(server.address)
    until(page, "document.querySelector('#text').textContent.length > 1500")
    page.reload()
    complete(page, "".join(pieces))
    assert server.joined == [-1, -1]


def test_a_lost_stream_is_joined_again_after_the_last_event(tab, written):
    pieces = book(2400)
    server = written(pieces, delay=0.01, state="running", finish_reason=None)
    whole, server.events = server.events, server.events[:40]
    page = tab(server.address)
    until(page, f"document.querySelector('#text').textContent.length >= {whole[40]['offset']}")
    server.events = whole
    complete(page, "".join(pieces))
    assert server.joined[:2] == [-1, 39]


HOSTILE = {
    "markup": ["<script>window.broken = 1</script>", "<img src=x onerror='window.broken=1'>", "</textarea></div><h1>x"],
    "directions": ["\u202eevil", "\u200f", "\u0645\u0631\u062d\u0628\u0627", "\u2066x", "\n", "left again"],
    "controls": ["a\x00b", "\x1b[31m", "\r\n", "\x07", "\u2028", "\ufffe", "tail"],
    "characters": ["\U0001f600", "e\u0301", "\U0001f469\u200d\U0001f469", "\U0001d538", "\ud7ff", "\u8a9e", "end"],
    "a huge line": ["word" * 5] * 3000,
    "headings": ["# <b>x</b>\n", "\n" * 50, "# " + "x" * 5000 + "\n", "Chapter 1\n"],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_text(tab, written, kind):
    pieces = HOSTILE[kind]
    server = written(pieces, name=pieces[0][:150])
    page = tab(server.address)
    page.check("#colours")
    complete(page, "".join(pieces))
    assert page.evaluate("window.broken") is None
    assert page.locator("#text script, #text img, #text h1, #outline b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#token-number", str(len(pieces)))
    page.press("#token-number", "Enter")
    page.wait_for_selector("#token table")
    chosen = page.evaluate(
        "[...CSS.highlights.get('chosen')].map((r) => r.startContainer.data.slice(r.startOffset, r.endOffset)).join('')"
    )
    assert chosen == pieces[-1]


def test_a_click_names_the_token_and_branches_there(tab, written):
    pieces = ["😀 ", "one", " two", " three", "\n"] * 4
    server = written(pieces)
    page = tab(server.address)
    complete(page, "".join(pieces))
    place = "".join(pieces).index("three") + 1  # UTF-16: one more for the character before
    box = page.evaluate(
        """(at) => { const range = document.createRange(), node = document.querySelector('#text > div').firstChild;
        range.setStart(node, at); range.setEnd(node, at + 1); const box = range.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; }""",
        place + 1,
    )
    page.mouse.click(*box)
    page.wait_for_selector("#token table")
    assert page.input_value("#token-number") == "4"
    page.locator("#token button").first.click()
    assert page.input_value("#branch-form [name=at]") == "3"
    page.fill("#branch-form [name=seed]", "5")
    page.click("#branch-form [type=submit]")
    page.wait_for_selector("#branch-dialog", state="hidden")
    assert server.asked == [("branch", {"at": 3, "seed": 5, "max_tokens": 20, "append": [6]})]


def test_a_loop_is_shown_and_branched_before(tab, written):
    pieces = [*book(300), *[" again", " and"] * 30]
    loop = {"start": 300, "period": 2, "end": 348}
    server = written(pieces, loops=[loop], state="paused", finish_reason=None)
    for event in server.events:
        event.update(state="running", finish_reason=None)
    page = tab(server.address)
    complete(page, "".join(pieces))
    page.wait_for_selector("#loop:not([hidden])")
    assert "2 tokens, again and again from token 301 on" in page.inner_text("#loop-text")
    page.click("#loop-show")
    page.wait_for_timeout(200)
    shoot(page, "loop")
    page.click("#loop-branch")
    assert page.input_value("#branch-form [name=at]") == "300"
    page.click("#branch-form [type=submit]")
    page.wait_for_selector("#branch-dialog", state="hidden")
    (asked,) = server.asked
    assert asked[1]["at"] == 300
    assert asked[1]["seed"] != 7


def test_a_keyboard_is_enough(tab, written):
    """Begin a run, search, look at a token, branch: with keys alone, and the focus is always seen."""
    pieces = book(900)
    server = written(pieces)
    page = tab(server.address)
    complete(page, "".join(pieces))

    def reach(selector, key="Tab"):
        for _ in range(80):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                seen = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert seen != "none", selector
                return
            page.keyboard.press(key)
        raise AssertionError(f"no key reaches {selector}")

    reach("#new-button")
    page.keyboard.press("Enter")
    reach("#create-form [name=prompt]")
    page.keyboard.type("It was late")
    reach("#create-form [name=seed]")
    page.keyboard.type("11")
    reach("#create-form button[type=submit]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#create", state="hidden")
    assert server.asked == [("runs", {"prompt": "It was late", "seed": 11, "on_repetition": "pause"})]
    reach("#search")
    page.keyboard.type("frost")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#search-count').textContent.startsWith('1 of')")
    reach("#colours")
    page.keyboard.press("Space")
    assert page.is_checked("#colours")
    reach("#text")
    page.keyboard.press("End")
    reach("#token-number")
    page.keyboard.type("17")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token table")
    reach("#token-branch")
    page.keyboard.press("Enter")
    assert page.input_value("#branch-form [name=at]") == "16"
    page.keyboard.press("Escape")
    page.wait_for_selector("#branch-dialog", state="hidden")
    reach("#delete", "Shift+Tab")


def test_a_server_with_a_key_asks_for_it(tab, written):
    server = written(book(200), keys=["secret"])
    page = tab(server.address)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-form [name=key]", "wrong")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#key-form .error').textContent !== ''")
    page.fill("#key-form [name=key]", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-dialog", state="hidden")
    complete(page, shown_of(server))
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
    page.reload()
    complete(page, shown_of(server))


def shown_of(server):
    return "".join(event["text"] for event in server.events)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 400])
def test_it_fits_the_window_and_has_contrast(tab, written, scheme, width):
    pieces = book(3000)
    server = written(pieces, loops=[{"start": 2900, "period": 2, "end": 2960}])
    page = tab(server.address, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    if width == 400:
        page.locator("#runs button").first.click()
    page.check("#colours")
    complete(page, "".join(pieces))
    page.fill("#token-number", "2950")
    page.press("#token-number", "Enter")
    page.wait_for_selector("#token table")
    page.locator("#settings-box summary").click()
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("ink", "dim", "risk", "head", "ngram", "accent"):
        assert contrast(page, name, "panel") >= 4.5, name
    assert contrast(page, "warn-ink", "warn-back") >= 4.5
    assert contrast(page, "on-accent", "accent") >= 4.5
    shoot(page, f"{scheme}-{width}")
    if width == 400:
        page.evaluate("document.querySelector('#side').scrollIntoView()")
        shoot(page, f"{scheme}-{width}-side")
    page.evaluate("scrollTo(0, 0)")
    page.click("#new-button")
    page.wait_for_timeout(200)
    shoot(page, f"{scheme}-{width}-new")


def contrast(page, one, other):
    """WCAG's ratio of two colours of the page."""
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"

    def luminance(name):
        value = page.evaluate(style.format(name))
        parts = [int(value[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


PROMPT = "It was late in the autumn, and the road"


def test_two_tabs_show_one_run(tab, live):
    """The real server: one tab begins, pauses and resumes, both have the text of `generate`."""
    address = f"http://127.0.0.1:{live.port}/"
    first = tab(address)
    first.click("#new-button")
    first.fill("#create-form [name=prompt]", PROMPT)
    first.fill("#create-form [name=max_tokens]", "180")
    first.fill("#create-form [name=seed]", "5")
    first.click("#create-form [type=submit]")
    until(first, "document.querySelector('#text').textContent.length > 20")
    second = tab(first.url)
    until(second, "document.querySelector('#text').textContent.length > 20")
    text = live.alone(PROMPT, 180, seed=5).text
    complete(first, text)
    complete(second, text)
    until(first, "document.querySelector('#run-state').textContent.startsWith('finished')")
    first.locator("#settings-box summary").click()
    until(first, "document.querySelector('#command').textContent.includes('--seed 5')")
    first.fill("#token-number", "40")
    first.press("#token-number", "Enter")
    first.wait_for_selector("#token tr.drawn")
    shoot(first, "real")


def test_a_greedy_run_pauses_at_its_loop_and_goes_on(tab, live):
    page = tab(f"http://127.0.0.1:{live.port}/")
    page.click("#new-button")
    page.fill("#create-form [name=prompt]", PROMPT)
    page.fill("#create-form [name=max_tokens]", "120")
    page.fill("#create-form [name=temperature]", "0")
    page.fill("#create-form [name=repetition_penalty]", "1")
    page.click("#create-form [type=submit]")
    until(page, "document.querySelector('#loop-text').textContent.includes('paused there')")
    page.click("#resume")
    until(page, "document.querySelector('#run-state').textContent.startsWith('finished')")
    complete(page, live.alone(PROMPT, 120, temperature=0.0, repetition_penalty=1.0).text)
    page.click("#more")
    page.fill("#more-form [name=max_tokens]", "150")
    page.click("#more-form [type=submit]")
    complete(page, live.alone(PROMPT, 150, temperature=0.0, repetition_penalty=1.0).text)


def test_a_killed_server_comes_back_and_the_page_goes_on(tab, tmp_path):
    """The next process has the same port; nobody touches the page."""
    import signal
    import socket

    from test_killed import SMALL, Process

    import tokenswift_jax as ts
    from tokenswift_jax.sampling import resolve_sampling
    from tokenswift_jax.speculation import SpeculationConfig

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = [*SMALL[: SMALL.index("--port")], "--port", port]
    server = Process(tmp_path / "state", flags)
    page = tab(f"http://127.0.0.1:{port}/")
    page.click("#new-button")
    page.fill("#create-form [name=prompt]", PROMPT)
    page.fill("#create-form [name=max_tokens]", "400")
    page.fill("#create-form [name=seed]", "9")
    page.click("#create-form [type=submit]")
    until(page, "document.querySelector('#text').textContent.length > 40")
    server.kill(signal.SIGKILL)
    server = Process(tmp_path / "state", flags)
    model = ts.load()
    plain = SpeculationConfig(mode="autoregressive")
    sampling = resolve_sampling({"seed": 9}, model.generation_config)
    complete(page, ts.generate(model, PROMPT, sampling, plain, max_new_tokens=400).text, 120)
    server.kill(signal.SIGTERM)
