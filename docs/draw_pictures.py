"""Draws the picture of the README: parts of a report's page, as a browser shows them.

    python docs/draw_pictures.py runs/tutorial/alexnet_mini

takes the folder of a finished run (the one above is what the tutorial leaves) and writes
`docs/images/report.png`. Chromium has to be installed, and playwright, which comes with the `dev`
extra.
"""

import argparse
import pathlib
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = pathlib.Path(__file__).parent / "images" / "report.png"
WIDTH = 1100  # pixels
# What is shown: the numbers and what to know before reading them, the figures, the worst errors.
LEFT_OUT = """
section:not(#results, #patches), #results > :not(h2, .figures), #patches > .patches ~ *,
#results figure:nth-child(n + 4), #patches figure:nth-child(n + 4) { display: none }
section { margin-top: 1rem }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of the README.")
    parser.add_argument("run", type=pathlib.Path, help="the folder of a finished run")
    page = parser.parse_args().run.resolve() / "report" / "report.html"
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    PICTURE.parent.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 100})
        opened.goto(page.as_uri())
        opened.add_style_tag(content=LEFT_OUT)
        opened.screenshot(path=PICTURE, full_page=True)
        browser.close()
    # 256 colours make the file a third as large, and so chosen keep the bright ones of maps.
    picture = Image.open(PICTURE).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    picture.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
