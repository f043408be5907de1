"""The page in a browser: what a person sees of an image, and of an error."""

import pytest
from conftest import encode

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def child(start_child):
    return start_child()


@pytest.fixture
def page(browser, child):
    """The page, opened; nothing may have been complained of or asked of others when it closes."""
    context = browser.new_context(viewport={"width": 900, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(child.url)
    yield page
    # That a request was refused is shown on the page, and Chromium's console says it too.
    assert [text for text in said if "Failed to load resource" not in text] == []
    assert [url for url in asked if not url.startswith((child.url, "blob:", "data:"))] == []
    context.close()


def choose(page, content, name="image.png", kind="image/png"):
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def drop(page, content):
    """Drops a file as a person does."""
    page.evaluate(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
          const options = {dataTransfer: data, bubbles: true, cancelable: true};
          document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
        }""",
        list(content),
    )


def test_an_image_in_distribution(page, even):
    choose(page, encode(even))
    sync_api.expect(page.locator("#name")).to_have_text("silver")
    sync_api.expect(page.locator("#verdict")).to_have_text("like the training images")
    assert float(page.locator("#score").inner_text()) < 1e-5
    assert page.locator("#threshold").inner_text() == "0.2"
    nearest = page.locator("#nearest li").all_inner_texts()
    assert nearest == [
        "silver at 0",
        "silver at 0.25",
        "silver at 0.5",
        "pearl at 0.75",
        "pearl at 1",
    ]
    width = page.locator("#image").evaluate("image => image.naturalWidth")
    assert width == even.shape[1]


def test_an_image_dropped_that_is_out_of_distribution(page, noisy):
    drop(page, encode(noisy))
    sync_api.expect(page.locator("#verdict")).to_have_text("out of distribution")
    assert "this image's score is 0.4967" in page.locator("#histogram").get_attribute("aria-label")
    # The mark lies beyond the threshold, and that beyond most bars.
    positions = {
        name: float(page.locator(f"#histogram line.{name}").get_attribute("x1"))
        for name in ("score", "threshold")
    }
    bars = [float(bar.get_attribute("x")) for bar in page.locator("#histogram rect").all()]
    assert len(bars) == 40 and bars == sorted(bars)
    assert bars[20] < positions["threshold"] < positions["score"] <= 900


def test_an_error_is_told_in_words_and_the_next_image_replaces_it(page, even):
    choose(page, b"no image")
    status = page.locator("#status")
    sync_api.expect(status).to_contain_text("The server refused (400)")
    sync_api.expect(status).to_contain_text("no readable PNG, JPEG")
    sync_api.expect(page.locator("#result")).to_be_hidden()
    choose(page, b"text", "notes.txt", "text/plain")
    sync_api.expect(status).to_contain_text("The server refused (415)")
    choose(page, encode(even))
    sync_api.expect(page.locator("#result")).to_be_visible()
    sync_api.expect(status).to_have_text("")


def test_a_server_that_is_gone(page, even):
    page.context.set_offline(True)
    choose(page, encode(even))
    sync_api.expect(page.locator("#status")).to_contain_text("The server does not answer")


def test_the_keyboard_reaches_the_choice_of_a_file(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable(page, noisy, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    choose(page, encode(noisy))
    sync_api.expect(page.locator("#result")).to_be_visible()
    # Nothing sticks out to the right.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pairs = [
        ("body", "color", "body"),
        (".dim", "color", "body"),
        ("#verdict", "color", "#verdict"),
    ]
    for element, style, ground in pairs:
        ratio = page.evaluate(CONTRAST, [element, style, ground])
        assert ratio >= 4.5, (element, ratio)


CONTRAST = """([element, style, ground]) => {
  const luminance = (selector, name) => {
    const found = getComputedStyle(document.querySelector(selector))[name];
    const [r, g, b] = found.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const pair = [luminance(element, style), luminance(ground, "backgroundColor")];
  return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
}"""
