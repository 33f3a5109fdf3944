"""The page of a run as Chromium shows it, where there is one."""

import browser
import pytest
from report_toys import HOSTILE, NAMES


@pytest.fixture(scope="module")
def chromium():
    program = browser.find_chromium()
    if program is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(browser.NAMES)} is on the PATH")
    tab = browser.Browser(program)
    yield tab
    tab.close()


# Texts of drawings that stick out of them, by more than a pixel
CLIPPED = """[...document.querySelectorAll(".chart > svg text")].filter((text) => {
  const t = text.getBoundingClientRect(), s = text.ownerSVGElement.getBoundingClientRect();
  return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1;
}).map((text) => text.textContent)"""
# The least contrast of a colour with the surfaces it stands on, as WCAG defines it
CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const least = (names, grounds) => Math.min(...names.flatMap((a) => grounds.map((b) => ratio(a, b))));
  return [
    least(["--ink"], ["--paper", "--card", "--bar", "--shade"]),
    least(["--muted", "--accent", "--good", "--warn"], ["--paper", "--card"]),
    least(["--before", ...[0, 1, 2, 3, 4, 5, 6].map((i) => "--c" + i)], ["--card"]),
  ];
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_in_chromium(pages, chromium, name, width, dark):
    chromium.open(pages[name], width, dark)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert chromium.value("document.images.length") == (6 if name == "detector" else 0)
    assert chromium.value(CLIPPED) == []
    of_text, of_notes, of_curves = chromium.value(CONTRAST)
    assert of_text >= 4.5 and of_notes >= 4.5 and of_curves >= 3
    shade = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert (shade == "rgb(16, 19, 23)") == dark
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []
    assert chromium.faults == []


def test_what_the_script_adds(pages, chromium):
    chromium.open(pages["detector"], 1280)
    shown = "[...document.querySelectorAll('.picture:not([hidden]) b')].map((b) => b.textContent)"
    set_to = (
        "((s, v, e) => { const x = document.querySelector(s); x.value = v; x.dispatchEvent(new Event(e)); })"
    )
    chromium.value(f"{set_to}('select', '-1', 'change')")
    assert chromium.value(shown) == ["c", "b", HOSTILE]
    chromium.value(f"{set_to}('input', '0.6', 'input')")
    assert chromium.value(shown) == ["c"]
    chromium.value("document.querySelector('.zoom').click()")
    assert chromium.value("document.querySelector('dialog').open")
    chromium.open(pages["unet"], 1280)
    patients = "[...document.querySelectorAll('section table')].at(-1).querySelectorAll('tbody tr')"
    column = f"[...{patients}].map((row) => row.cells[1].textContent)"
    chromium.value(
        "[...document.querySelectorAll('th button')].find((b) => b.textContent === 'patient').click()"
    )
    assert chromium.value(column) == ["p60.0", "p70.0", "p90.0"]
    key = "new KeyboardEvent('keydown', {key: 'ArrowLeft'})"
    chromium.value(f"document.querySelector('#curves .chart > svg').dispatchEvent({key})")
    assert chromium.value("document.querySelector('#curves .at').textContent") == "at 19"
    assert chromium.value("document.querySelector('#curves .legend b').textContent") == "0.1"  # 2 / 20
    assert chromium.faults == []


def test_without_script_all_is_there(pages, chromium):
    chromium.open(pages["detector"], 390, script=False)
    assert (
        chromium.value("document.querySelectorAll('button, select, input').length") == 1
    )  # of the closed dialog
    assert chromium.value("document.querySelectorAll('.chart > svg .curve').length") > 2
    assert chromium.value("document.querySelector('dialog').open") is False
