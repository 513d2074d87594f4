"""A headless Chromium without a network, for tests and screenshots.

Debian's `chromium` and `chromium-driver` are enough; elsewhere set
DBLM_CHROMIUM and DBLM_CHROMEDRIVER. Nothing is downloaded: a browser that
is not there is an error with a reason, which the tests turn into a skip.
"""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    # The network is cut off: no name leads anywhere.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("file:", "data:", "blob:", "about:", "chrome:")
# The theme's own: it writes its Thebe settings into each page twice, and
# remarks on a first visit that no colour mode was chosen yet.
NOT_OURS = ("THEBE_JS_URL", "Got invalid theme mode")


class NoBrowser(RuntimeError):
    """Why there is no browser here."""


def find():
    """Return the paths of Chromium and its driver, or raise `NoBrowser`."""
    names = {"DBLM_CHROMIUM": CHROMIUM, "DBLM_CHROMEDRIVER": ["chromedriver"]}
    paths = []
    for variable, programs in names.items():
        found = [os.environ.get(variable)] + [*map(shutil.which, programs)]
        found = [path for path in found if path and Path(path).exists()]
        if not found:
            raise NoBrowser(f"no {programs[0]} here (set {variable})")
        paths.append(found[0])
    return paths


@contextmanager
def browser(*flags):
    """Run a browser and close it; its profile is new and thrown away."""
    chromium, driver = find()
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise NoBrowser("selenium is not installed") from None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        logs = {"browser": "ALL", "performance": "ALL"}
        options.set_capability("goog:loggingPrefs", logs)
        try:
            chrome = webdriver.Chrome(options, Service(driver))
        except WebDriverException as error:
            raise NoBrowser(f"Chromium did not start: {error.msg}") from None
        try:
            yield chrome
        finally:
            chrome.quit()


def resize(chrome, width, height=900):
    """Set the size of the page; a real window is at least 500 wide."""
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": False,
        },
    )


def open_page(chrome, path):
    """Open a file, forget what was logged before, wait for its maths."""
    for log in ("browser", "performance"):
        chrome.get_log(log)
    chrome.get(Path(path).resolve().as_uri())
    chrome.set_script_timeout(20)
    chrome.execute_async_script(
        """
        var done=arguments[arguments.length-1], tries=0;
        (function wait(){
          var wanted=document.querySelector('script[src*="mathjax"]')
            && document.querySelector('.math');
          var ready=window.MathJax&&MathJax.startup&&MathJax.startup.promise;
          if(ready)return MathJax.startup.promise.then(done,done);
          if(!wanted||++tries>100)return done();
          setTimeout(wait,50);
        })();
        """
    )


def theme(chrome, name):
    """Show the page as light or dark, as the theme's switch does."""
    chrome.execute_script(
        "document.documentElement.dataset.mode=arguments[0];"
        "document.documentElement.dataset.theme=arguments[0]",
        name,
    )


def console_errors(chrome):
    """Return the errors on the console since the page was opened."""
    return [
        entry["message"]
        for entry in chrome.get_log("browser")
        if entry["level"] == "SEVERE"
        and not any(known in entry["message"] for known in NOT_OURS)
    ]


def outside_requests(chrome):
    """Return the addresses that the page asked for beyond its folder."""
    asked = []
    for entry in chrome.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
        if message["method"] == "Network.webSocketCreated":
            asked.append(message["params"]["url"])
    return sorted({url for url in asked if not url.startswith(LOCAL)})


def pages(folder):
    """List the pages of a built book, chapters first."""
    folder = Path(folder)
    found = [
        path
        for path in folder.rglob("*.html")
        if path.relative_to(folder).parts[0] not in {"_static", "_sources"}
    ]
    return sorted(found, key=lambda p: (p.parent.name != "chapters", str(p)))
