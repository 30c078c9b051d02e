"""The page in a browser, from a file, without a network: what it shows, that it can be used, that nothing is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.report.fixture import make_summary, write
from tests.report.test_page import NASTY

from coterie.report import write_report

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def show(shown, tmp_path: Path):
    """Opens the page of a summary."""

    def opened(summary: dict, viewport: dict = DESKTOP, **options):
        return shown(write_report(write(tmp_path, summary)), viewport, **options)

    return opened


def column(page, section: str, place: int) -> list[str]:
    cells = page.locator(f"#evaluation-{section} tbody tr > *:nth-child({place})")
    return [t.strip().split("\n")[0].strip() for t in cells.all_inner_texts()]


def test_the_table_has_every_model_and_sorts(show) -> None:
    summary = make_summary()
    page = show(summary)
    names = column(page, "losses", 1)
    table = summary["evaluation"]["losses"]
    assert names == sorted(table, key=lambda m: table[m]["all"]["nll"])
    head = page.locator("#evaluation-losses thead th", has_text="code")
    head.get_by_role("button").click()
    assert column(page, "losses", 1) == sorted(names, key=lambda m: table[m]["code"]["nll"])
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column(page, "losses", 1)[0] == max(names, key=lambda m: table[m]["code"]["nll"])
    assert head.get_attribute("aria-sort") == "descending"
    page.locator("#evaluation-losses thead th", has_text="model").get_by_role("button").click()
    assert column(page, "losses", 1) == sorted(names)
    assert page.locator("#evaluation-losses td.best").count() == 4


def test_perplexity_is_one_click_away(show) -> None:
    page = show(make_summary())
    first = page.locator("#evaluation-losses tbody tr", has_text="learned").locator("td.main")
    assert first.inner_text().startswith("3.010")
    page.get_by_label("perplexity").check()
    assert first.inner_text().startswith("20.29")


def test_heat_maps_have_a_cell_for_each_group_and_expert(show) -> None:
    page = show(make_summary(experts=5, groups=4))
    maps = page.locator("table.heat")
    assert maps.count() == 2
    cells = maps.nth(1).locator("tbody td")
    assert cells.count() == 5 * (4 + 1)
    first = maps.nth(1).locator("tbody tr").first.locator("td")
    strong, weak = (first.nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in (0, 1))
    assert strong != weak


def test_curves_are_read_with_pointer_keys_and_legend(show) -> None:
    page = show(make_summary())
    chart, readout = page.locator("figure.curves svg"), page.locator(".readout")
    assert chart.locator(".line path").count() == 5
    assert chart.locator(".line circle").count() == 3 * 6
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7)
    assert "nats a token after" in readout.inner_text()
    page.mouse.move(0, 0)
    assert readout.inner_text() == ""
    chart.focus()
    page.keyboard.press("ArrowRight")
    first = readout.inner_text()
    assert first.startswith("meetings: 2.4")
    page.keyboard.press("ArrowDown")
    assert readout.inner_text().startswith("code")
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text().startswith("code")
    before = chart.locator(".line path").first.get_attribute("d")
    page.get_by_label("logarithmic").check()
    assert chart.locator(".line path").first.get_attribute("d") != before
    assert page.locator(".ticks.x text").all_text_contents() == ["10 k", "100 k", "1 M"]
    button = page.locator("figure.curves .legend button", has_text="code")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert chart.locator(".line.on").get_attribute("data-name") == "code"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_nothing_is_cut_off_at_any_width(show, size: str, viewport: dict, scheme: str, tmp_path: Path) -> None:
    mixtures = ("average", "learned" if size == "small" else "a-long-name-" * 5)
    summary = make_summary(mixtures=mixtures) if size == "small" else make_summary(experts=40, groups=12, mixtures=mixtures)
    page = show(summary, viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    if shots := os.environ.get("COTERIE_SCREENSHOTS"):
        page.screenshot(path=Path(shots) / f"report-{size}-{viewport['width']}-{scheme}.png", full_page=True)


LOW_CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m.slice(0, 3), m[3] ?? 1]; };
  const over = ([top, alpha], below) => top.map((v, i) => alpha * v + (1 - alpha) * below[i]);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => c.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const style = (e) => getComputedStyle(e);
  const behind = (e) => (e ? over(parse(style(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255]);
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const [e, text] = [walk.currentNode.parentElement, walk.currentNode.textContent.trim()];
    if (!text || !e.checkVisibility() || e.closest("script, style, svg, .unseen")) continue;
    const back = behind(e);
    const [a, b] = [light(over(parse(style(e).color), back)), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${((a + 0.05) / (b + 0.05)).toFixed(2)} ${e.tagName} ${text}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(show, scheme: str) -> None:
    """Contrast of at least 4.5 to 1 of all text against what is behind it."""
    assert show(make_summary(experts=5, groups=4), color_scheme=scheme).evaluate(LOW_CONTRAST) == []


def test_every_control_can_be_reached_with_the_keyboard(show) -> None:
    page = show(make_summary())
    number = "e => [...document.querySelectorAll('*')].indexOf(e)"
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"({number})(document.activeElement)"))
    wanted = page.evaluate(f"[...document.querySelectorAll('button, a, summary, svg[tabindex]')].map({number})")
    assert len(wanted) > 20
    assert set(wanted) <= reached


def test_it_is_whole_on_paper_and_without_script(show) -> None:
    page = show(make_summary(), java_script_enabled=False)
    assert page.locator(".line path").first.get_attribute("d").startswith("M")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#evaluation-losses table").is_visible()


def test_names_made_to_do_harm_are_shown_and_do_nothing(show) -> None:
    plain = json.dumps(make_summary())
    renamed = json.loads(plain.replace('"meetings"', json.dumps(NASTY)).replace('"learned"', json.dumps(NASTY + "m")))
    page = show({**renamed, "name": NASTY, "notes": [NASTY]})
    page.on("dialog", lambda dialog: pytest.fail(f"it ran: {dialog.message}"))
    page.add_script_tag(content="window.alert = message => { document.title = 'it ran'; }")
    assert NASTY in page.locator("#evaluation-losses").inner_text()
    for button in page.get_by_role("button").all():
        if button.is_visible():
            button.click()
    assert page.locator("img").count() == 0
    assert page.title() != "it ran"
    assert page.evaluate("document.querySelectorAll('script').length") == 2, "the page's own, and this test's"
