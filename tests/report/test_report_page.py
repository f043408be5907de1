"""The report in a browser: on a screen light and dark, on a phone, on paper."""

import io

import numpy as np
import pytest
from example_report import SETS, example

from grood_jax.evaluation import tables
from grood_jax.evaluation.report import figures

pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytest.importorskip("matplotlib", reason="needs pip install -e '.[report]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made, folder = example(), tmp_path_factory.mktemp("report")
    made.write(folder)
    return made, folder / "report.html"


@pytest.fixture
def page(browser, written):
    """The page, opened; nothing may have been complained of or asked of others when it closes."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written[1].as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [written[1].as_uri()]
    context.close()


def column(page, number):
    """What a column of the first table shows, without intervals."""
    rows = page.locator("table").first.locator("tbody tr")
    texts = [row.locator("th, td").nth(number).inner_text() for row in rows.all()]
    return [text.split("±")[0].strip() for text in texts]


def test_the_table_sorts(page, written):
    rows = tables.rows(written[0].results, "auroc")
    head = page.locator("table").first.get_by_role("columnheader", name="far", exact=False).first
    values = [f"{row[1].value:.4f}" for row in rows.values()]
    expected = sorted(values, key=float)
    assert column(page, 2) == values
    for order, wanted in (("descending", expected[::-1]), ("ascending", expected)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(page, 2) == wanted
    # Words from A, and by the keyboard.
    first = page.locator("table").first.get_by_role("columnheader", name="detector")
    first.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, 0) == ["grood", "msp"]
    # The other table is as it was.
    assert page.locator("table").nth(1).locator("[aria-sort=none]").count() == len(rows["msp"]) + 1


def test_figures_are_in_view_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    box = page.locator("table").first.locator("tbody td").first.bounding_box()
    assert box["x"] + box["width"] <= 390


def test_one_detector_is_shown_at_a_time(page):
    shown = page.locator(".detector:visible h3")
    assert shown.all_inner_texts() == ["grood"]
    page.select_option("#detector", "msp")
    assert shown.all_inner_texts() == ["msp"]
    assert page.locator("svg:visible").count() == 4


def test_without_scripts_all_detectors_are_shown(browser, written):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written[1].as_uri())
    assert page.locator(".detector:visible").count() == 2
    context.close()


def test_images_are_shown_pixel_by_pixel(page):
    images = page.locator("li img")
    assert images.count() == 16 * len(SETS)
    assert images.evaluate_all("images => images.every(i => i.complete && i.naturalWidth === 8)")
    first = images.first
    assert first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def luminance(colour):
    channels = np.array(colour[:3], float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


COLOURS = """names => {
  const rgb = (element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).map(Number);
  const card = rgb(document.querySelector("figure"), "backgroundColor");
  const at = selector => document.querySelector(selector);
  const resolve = name => {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = rgb(probe, "color");
    probe.remove();
    return found;
  };
  return {
    text: [
      [rgb(document.body, "color"), rgb(document.body, "backgroundColor")],
      [rgb(at("p.dim"), "color"), rgb(document.body, "backgroundColor")],
      [rgb(at("figcaption"), "color"), card],
      [rgb(at("svg text"), "fill"), card],
    ],
    sets: names.map(name => [resolve(name), card]),
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_is_readable(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    # Nothing sticks out to the right: what is too wide scrolls by itself.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    names = [f"inside-{i}" for i in range(len(figures.INSIDE))]
    names += [f"outside-{i}" for i in range(len(figures.OUTSIDE))]
    found = page.evaluate(COLOURS, names)
    for pair in found["text"]:
        assert contrast(*pair) >= 4.5, pair
    assert len({str(colour) for colour, _ in found["sets"]}) == len(names)
    for name, pair in zip(names, found["sets"], strict=True):
        assert contrast(*pair) >= 3, name
    sizes = page.locator(".detector:visible svg text").evaluate_all(
        "texts => texts.map(text => text.getBoundingClientRect().height)"
    )
    assert min(size for size in sizes if size) >= 9
    bright = np.median(screenshot(page))
    assert bright > 230 if scheme == "light" else bright < 40


def screenshot(page):
    from PIL import Image

    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        return np.asarray(image.convert("L"))


def test_on_paper(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#detector").is_visible()
    page.set_viewport_size({"width": 700, "height": 900})
    table = page.locator(".rows").first.evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert table[0] <= table[1]
    assert page.pdf(format="A4").startswith(b"%PDF")
