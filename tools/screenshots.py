"""Photograph every page of the built book, wide and phone, light and dark.

    python tools/screenshots.py FOLDER [--book _build/html] [--only WORD]

Writes FOLDER/<page>-<width>-<theme>.png, each as tall as its page.
"""

import argparse
import base64
from pathlib import Path

import browser

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (1280, 390)
TALLEST = 16000  # Chromium's limit for one picture


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--book", type=Path, default=ROOT / "_build/html")
    parser.add_argument("--only", default="", help="part of a page's name")
    arguments = parser.parse_args()
    found = [
        p for p in browser.pages(arguments.book) if arguments.only in p.name
    ]
    if not found:
        parser.exit(1, f"no such page in {arguments.book}: run `make book`\n")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        with browser.browser() as chrome:
            for page in found:
                photograph(chrome, page, arguments.book, arguments.folder)
    except browser.NoBrowser as reason:
        parser.exit(1, f"{reason}\n")


def photograph(chrome, page, book, folder):
    """Write one page's pictures."""
    name = "-".join(page.relative_to(book).with_suffix("").parts)
    browser.open_page(chrome, page)
    for width in WIDTHS:
        browser.resize(chrome, width)
        for theme in ("light", "dark"):
            browser.theme(chrome, theme)
            target = folder / f"{name}-{width}-{theme}.png"
            target.write_bytes(full_page(chrome, width))
            print(target)


def full_page(chrome, width):
    """Return a PNG of the page from top to bottom."""
    tall = chrome.execute_script(
        "return document.documentElement.scrollHeight"
    )
    shot = chrome.execute_cdp_cmd(
        "Page.captureScreenshot",
        {
            "captureBeyondViewport": True,
            "clip": {
                "x": 0,
                "y": 0,
                "width": width,
                "height": min(tall, TALLEST),
                "scale": 1,
            },
        },
    )
    return base64.b64decode(shot["data"])


if __name__ == "__main__":
    main()
