"""The page in a real browser: what it shows is what the service answers, and everybody can use it.

Screenshots are kept in test-output/.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import time
import zoneinfo
from typing import Any

import pytest
from paths import REPO

from ctxrec.bundle.registry import find_bundle
from ctxrec.experiments import ab_test

SHOTS = REPO / "test-output"
NAMELESS = """
return [...document.querySelectorAll("input, select, button, output")].filter(e => e.offsetParent !== null)
  .filter(e => !(e.labels && e.labels.length) && !e.getAttribute("aria-label") && !e.textContent.trim())
  .map(e => e.outerHTML)
"""


@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no browser is installed (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1440,1000"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"intl.accept_languages": "en-US,en"})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


class Page:
    """The page, with what a person sees of it."""

    def __init__(self, browser: Any):
        self.browser = browser

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.all(selector)[0].text

    def ids(self) -> list[str]:
        return [item.get_attribute("data-item") for item in self.all("#list > li")]

    def scores(self) -> list[float]:
        """In full, as they stand in the titles of the rounded ones."""
        return [float(number.get_attribute("title")) for number in self.all("#list .score .number")]

    def until(self, condition, seconds: float = 180, says: str = "#status") -> None:
        """Wait for what must come; elements may be replaced while they are read."""
        from selenium.common.exceptions import StaleElementReferenceException

        stop_at = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except (StaleElementReferenceException, IndexError):
                pass
            assert time.monotonic() < stop_at, f"waited in vain; the page says {self.text(says)!r}"
            time.sleep(0.1)

    def keep(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        assert self.browser.save_screenshot(str(SHOTS / f"page-{name}.png"))


@pytest.fixture
def page(browser, client) -> Page:
    browser.get(str(client.base_url))
    made = Page(browser)
    made.until(lambda: len(made.ids()) == 12 and made.all("#history li"))
    return made


def moment(page: Page) -> int:
    script = 'return Date.parse(document.getElementById("moment").value + "Z") / 1000'
    return int(page.browser.execute_script(script))


def test_the_page_shows_what_the_service_answers(page, client):
    user = page.all("#user")[0].get_attribute("value")
    asked = {"user_id": user, "k": 12, "context": {"timestamp": moment(page)}}
    assert page.ids() == [i["item_id"] for i in client.ask(**asked)["items"]]
    history = client.get(f"/v1/users/{user}/history", params={"before": moment(page)}).json()["events"]
    assert len(page.all("#history li")) == len(history) > 0 and history[0]["title"] in page.text("#history li")
    page.until(lambda: page.text("#health") == "ready" and page.text("#latency").endswith(" ms"))
    stages = ["parse", "wait", "history", "filter", "tower", "memory", "search", "serialise"]
    page.until(lambda: [row.text for row in page.all("#stages tbody th") if row.text in stages] == stages)
    assert page.text("#version") == client.get("/readyz").json()["model_version"]
    page.keep("start")


def test_the_list_follows_the_context(page, client):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    before, hour = page.scores(), page.text("#hour-text")
    page.all("#hour")[0].send_keys(Keys.ARROW_LEFT if hour == "23:00" else Keys.ARROW_RIGHT)
    page.until(lambda: page.text("#hour-text") != hour and page.scores() != before)
    labels = {label.text: label.get_attribute("for") for label in page.all("#context label")}
    assert set(labels) == {"device", "basket_value", "query"}
    before = page.scores()
    Select(page.all(f"#{labels['device']}")[0]).select_by_visible_text("tv")
    page.until(lambda: page.scores() != before)
    before = page.scores()
    page.all(f"#{labels['query']}")[0].send_keys("red shoe")
    page.all(f"#{labels['basket_value']}")[0].send_keys("0.5")
    asked = {"user_id": page.all("#user")[0].get_attribute("value"), "k": 12}
    asked["context"] = {"timestamp": moment(page), "device": "tv", "query": "red shoe", "basket_value": 0.5}
    wanted = client.ask(**asked)["items"]
    page.until(lambda: page.scores() == pytest.approx([i["score"] for i in wanted], abs=1e-4))
    assert page.ids() == [i["item_id"] for i in wanted] and page.scores() != before
    Select(page.all("#filter-0")[0]).select_by_visible_text("group2")
    page.until(lambda: page.ids() and all(int(i[1:]) % 4 == 2 for i in page.ids()))
    page.all("#query")[0].send_keys("blue hat")
    wanted = client.ask(**asked, query="blue hat", filter={"category": ["group2"]})["items"]
    page.until(lambda: page.ids() == [i["item_id"] for i in wanted])
    page.keep("context")


def test_why_and_similar_open_by_keyboard(page, client):
    from selenium.webdriver.common.keys import Keys

    why, similar = page.all("#list .why")[0], page.all("#list .similar")[1]
    why.send_keys(Keys.ENTER)
    page.until(lambda: page.all(".effects"))
    assert why.get_attribute("aria-expanded") == "true"
    user = page.all("#user")[0].get_attribute("value")
    answer = client.ask(user_id=user, k=12, context={"timestamp": moment(page)}, explain=True)
    reasons = answer["items"][0]["why"]
    rows = page.all("#list > li:first-child .effects tr")
    counted = {part: [v for v in found.values() if abs(v) >= 0.005] for part, found in reasons.items()}
    assert len(rows) == sum(map(len, counted.values())), "what is nearer to zero would be a row of 0.00"
    numbers = [row.find_element("css selector", "td.number").text.replace("\u2212", "-") for row in rows]
    shown = sum(map(float, numbers[-len(counted["sources"]) :]))
    assert shown == pytest.approx(answer["items"][0]["score"], abs=0.05)
    similar.send_keys(Keys.SPACE)
    page.until(lambda: len(page.all(".plain li")) == 8)
    page.keep("why")
    why.send_keys(Keys.ENTER)
    assert why.get_attribute("aria-expanded") == "false" and not page.all(".effects")[0].is_displayed()


def test_a_stranger_and_nobody(page):
    page.all("#user")[0].clear()
    page.all("#user")[0].send_keys("never seen <b>before</b>")
    page.until(lambda: "the user is unknown" in page.text("#status"))
    page.until(lambda: "This user has no history" in page.text("#history-hint") and not page.all("#history li"))
    page.keep("stranger")
    page.all("#some-users button")[1].click()
    page.until(lambda: page.all("#history li") and page.text("#status") == "12 items")
    assert page.all("#some-users button")[1].get_attribute("aria-pressed") == "true"


def test_the_arm_of_a_test_is_shown(page, client, models, tiny_run, make_variant, tmp_path, wait_for):
    make_variant(find_bundle(tiny_run), tmp_path / "other", by=5)
    test = ab_test.start(str(tmp_path / "other"), models, name="shown", arm="b", share=0.5)
    try:
        wait_for(lambda: "experiment" in client.ask(user_id="u1"))
        for arm in ("b", "control"):
            user = next(
                u for u in (f"u{n}" for n in range(60)) if (test.arm_of(u).name if test.arm_of(u) else "control") == arm
            )
            version = client.ask(user_id=user)["model_version"]
            page.all("#user")[0].clear()
            page.all("#user")[0].send_keys(user)
            page.until(lambda wanted=f"{version} (shown: {arm})": page.text("#version") == wanted)
        page.keep("arm")
    finally:
        ab_test.end(models)
        wait_for(lambda: "experiment" not in client.ask(user_id="u1"))


def test_the_documentation_loads_nothing_from_elsewhere(browser, client, direct_port):
    page = Page(browser)
    for address in (str(client.base_url), f"http://127.0.0.1:{direct_port}"):
        browser.get(f"{address}/docs")
        page.until(lambda: page.all(".opblock-summary-path"), says="#docs")
        shown = {path.text.replace("\u200b", "") for path in page.all(".opblock-summary-path")}
        assert {"/v1/recommend", "/v1/events", "/v1/items/{item_id}/similar"} <= shown
        page.all(".opblock-summary-path")[0].click()
        page.until(lambda: page.all(".opblock-description-wrapper, .opblock-section"), says="#docs")
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert len(loaded) >= 4 and all(url.startswith((address, "data:")) for url in loaded)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        page.keep("docs")
    policy = client.get("/docs").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert client.get("/redoc").status_code == client.get("/docs/missing.js").status_code == 404
    assert client.get("/docs/..%2Fkeys.py").status_code == client.get("/page/docs.html").status_code == 404


# What a person can read: texts, hints, and names for those who do not see; without what the service itself has named.
VISIBLE = """
const found = [], theirs = "#data-name, #version, #zone, .title, .tags, .plain span:first-child, #history li, #some-users, " +
  "#languages button, #context label, #context option, #filters option:not([data-text]), option[value=''] ~ option, .effects th, #users";
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  if (element.closest("template, script") || element.closest(theirs)) continue;
  found.push(walk.currentNode.textContent.replace(element.dataset.column ?? "", "").trim());
}
for (const element of document.body.querySelectorAll("*")) {
  for (const name of ["placeholder", "title", "aria-label", "alt"]) {
    const text = element.getAttribute(name);
    if (text && !element.closest(".tags")) found.push(text.split("\\uff1a")[0]);
  }
}
return found.filter(Boolean);
"""
LATIN = re.compile(r"[A-Za-z]{2,}")


def chosen(page: Page) -> tuple[str, list[str]]:
    pressed = [button.text for button in page.all("#languages button[aria-pressed=true]")]
    return page.browser.execute_script("return document.documentElement.lang"), pressed


def switch(page: Page, name: str) -> None:
    next(button for button in page.all("#languages button") if button.text == name).click()
    page.until(lambda: chosen(page)[1] == [name])


def texts() -> dict[str, dict[str, Any]]:
    """The texts of the page by key and language; the file is JSON behind the names of its two parts."""
    source = (REPO / "serve" / "page" / "texts.js").read_text()
    return json.loads(re.search(r"export const TEXTS = ({.*});", source, re.DOTALL)[1])


@pytest.fixture
def in_chinese(page, client):
    switch(page, "\u4e2d\u6587")
    page.until(lambda: page.text("#status").startswith("\u5171") and len(page.ids()) == 12)
    yield page
    switch(page, "English")
    page.browser.execute_script("localStorage.clear()")


def test_both_languages_have_every_text_and_the_page_has_no_others():
    for key, languages in texts().items():
        assert set(languages) == {"en", "zh"}, key
        english, chinese = languages["en"], languages["zh"]
        forms = [english] if isinstance(english, str) else list(english.values())
        assert isinstance(english, str) or set(english) == {"one", "other"}, key
        assert isinstance(chinese, str) and chinese.strip() and all(form.strip() for form in forms), key
        named = {name for form in forms for name in re.findall(r"{(\w+)}", form)}
        assert named == set(re.findall(r"{(\w+)}", chinese)), key
        assert not LATIN.search(re.sub(r"{\w+}|API|ID", "", chinese)), chinese
    folder = REPO / "serve" / "page"
    markup = (folder / "index.html").read_text()
    words = [text.strip() for text in re.findall(r">([^<]*)<", markup.split("<body>")[1])]
    assert set(filter(None, words)) == {"ctxrec", "&ndash;"}, "every text of the markup has a key"
    assert not re.search(r'(?<![-\w])(placeholder|title|aria-label|alt|value)="[^"]*[A-Za-z]', markup)
    scripts = {name: (folder / f"{name}.js").read_text() for name in ("main", "view", "api", "language")}
    used = set(re.findall(r'data-(?:text|hint|label|title)="([^"]+)"', markup))
    for source in scripts.values():
        code = re.sub(r"^ *//.*$|\$\{[^}]*\}", "", source, flags=re.MULTILINE)
        prose = [
            text
            for text in re.findall(r'"([^"\n]*)"|`([^`]*)`', code)
            if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", "".join(text))
        ]
        assert not prose, "sentences lie among the texts, and not in the code"
        used |= {key for key in texts() if f'"{key}"' in source}
    groups = ("stage.", "source.", "time.", "part.", "move.", "service.ready")
    unused = {key for key in texts() if key not in used and not key.startswith(groups)}
    assert used <= set(texts()) and not unused, unused


def test_the_page_speaks_chinese_from_end_to_end(in_chinese):
    page = in_chinese
    assert chosen(page) == ("zh-CN", ["\u4e2d\u6587"])
    page.all("#list .why")[0].click()
    page.until(lambda: page.all(".effects"))
    page.all("#list .similar")[1].click()
    page.until(lambda: len(page.all(".plain li")) == 8)
    page.until(lambda: page.all("#stages tbody th"))
    for text in page.browser.execute_script(VISIBLE):
        assert not LATIN.search(re.sub("ctxrec|API|UTC|ID|^i[0-9]+", "", text)), text
    assert page.all("#weekday option")[0].text == "\u661f\u671f\u4e00"
    assert re.fullmatch(r"20\d\d\u5e74\d+\u6708\d+\u65e5\s\d\d:\d\d.*", page.text("#history .meta"))
    assert {th.text for th in page.all(".effects th")} >= {"\u70ed\u5ea6"}, "sources of the score have names"
    page.all("#user")[0].clear()
    page.all("#user")[0].send_keys("nobody knows")
    page.until(lambda: "\u6ca1\u6709\u8be5\u7528\u6237\u7684\u8bb0\u5f55" in page.text("#status"))
    page.keep("chinese")
    page.browser.set_window_size(420, 900)
    page.keep("chinese-narrow")
    wide = page.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    page.browser.set_window_size(1440, 1000)
    assert wide <= 0


def test_the_choice_is_remembered_and_what_was_asked_stays(in_chinese, client):
    page = in_chinese
    page.browser.get(str(client.base_url))
    page.until(lambda: len(page.ids()) == 12)
    assert chosen(page) == ("zh-CN", ["\u4e2d\u6587"])
    page.all("#query")[0].send_keys("red shoe")
    user = page.all("#user")[0].get_attribute("value")
    page.until(lambda: page.ids() == [i["item_id"] for i in client.ask(
        user_id=user, k=12, context={"timestamp": moment(page)}, query="red shoe")["items"]])  # fmt: skip
    before = page.ids()
    switch(page, "English")
    page.until(lambda: page.text("#status") == "12 items" and page.ids() == before)
    assert page.all("#query")[0].get_attribute("value") == "red shoe" and chosen(page)[0] == "en"
    assert page.text("#list-title") == "Recommendations"


@pytest.mark.parametrize(
    ("languages", "tag"),
    [(["zh-TW", "en"], "zh-CN"), (["fr", "zh"], "zh-CN"), (["de-AT", "en-GB", "zh"], "en"), (["sw"], "en")],
)
def test_the_first_language_of_the_browser_that_the_page_has(browser, client, languages, tag):
    script = (
        f"Object.defineProperty(navigator, 'languages', {{ get: () => {json.dumps(languages)} }}); localStorage.clear()"
    )
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        browser.get(str(client.base_url))
        made = Page(browser)
        made.until(lambda: len(made.ids()) == 12)
        assert chosen(made)[0] == tag
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_errors_that_the_page_makes_are_in_its_language(in_chinese):
    page = in_chinese
    page.browser.execute_script("window.fetch = () => Promise.reject(new TypeError('gone'))")
    page.all("#some-users button")[2].click()
    page.until(lambda: page.text("#status") == texts()["error.silent"]["zh"])
    page.browser.execute_script("window.fetch = () => Promise.resolve(new Response('', { status: 502 }))")
    page.all("#some-users button")[3].click()
    page.until(lambda: page.text("#status") == "\u670d\u52a1\u8fd4\u56de\u72b6\u6001\u7801 502")
    page.browser.refresh()
    page.until(lambda: len(page.ids()) == 12)


def test_the_moment_is_shown_in_the_zone_of_the_log(browser, client):
    """The page's clock against Python's zones, on the days on which clocks change too."""
    browser.get(str(client.base_url))
    zones = ["Asia/Shanghai", "America/New_York", "Australia/Lord_Howe"]
    begin = 1_710_000_000  # two days around a change in New York
    times = [begin + 1800 * n for n in range(200)] + [1_730_613_600 + 1800 * n for n in range(-4, 5)]
    found = browser.execute_async_script(
        """
        const [zones, times, done] = arguments;
        import("./page/clock.js").then(({ useZone, wall, instant }) =>
          done(zones.map((zone) => [useZone(zone), times.map((t) => [wall(t), instant(wall(t))])])));
        """,
        zones,
        times,
    )
    for (zone, pairs), wanted in zip(found, zones, strict=True):
        assert zone == wanted
        for at, (shown, back) in zip(times, pairs, strict=True):
            local = datetime.datetime.fromtimestamp(at, zoneinfo.ZoneInfo(zone)).replace(tzinfo=datetime.UTC)
            assert shown == local.timestamp()
            first = local.replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=0).timestamp()
            assert back == first, "a time that is shown twice is the first of the two"


def test_everything_has_a_name_and_nothing_comes_from_elsewhere(page, client):
    assert page.browser.execute_script(NAMELESS) == []
    loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(url.startswith(str(client.base_url)) for url in loaded)
    headers = client.get("/").headers
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and "unsafe" not in headers["content-security-policy"]
    )
    assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/page/..%2Fkeys.py").status_code == client.get("/page/missing.js").status_code == 404
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    page.browser.set_window_size(420, 900)
    wide = page.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    page.keep("narrow")
    page.browser.set_window_size(1440, 1000)
    assert wide <= 0, "a narrow window need not scroll sideways"
    cut = "return [...document.querySelectorAll('.tags')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.browser.execute_script(cut) == 0, "what is told of an item is not cut"
