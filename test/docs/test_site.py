#!/usr/bin/env python3
"""The documentation as a site: built whole, which checks every link and that every public symbol is documented, and in
a browser in light and dark. Exits with 77 (skipped) where Doxygen or mkdocs with its theme is missing; the browser's
part is left out, and says so, where Chromium is.

Usage: test_site.py ROOT
"""

import http.server
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from urllib.parse import unquote

ROOT = pathlib.Path(sys.argv[1]).resolve()
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them

# Looks at a page from inside: errors, the scheme, and how text and links stand out from the background (WCAG 2.1).
PROBE = """<script>
const failures = [];
addEventListener("error", it => failures.push(String(it.message || it.target.outerHTML)), true);
addEventListener("load", () => setTimeout(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = parts => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * (parts[i] / 255 <= 0.04045 ?
    parts[i] / 255 / 12.92 : ((parts[i] / 255 + 0.055) / 1.055) ** 2.4), 0);
  const paper = numbers(getComputedStyle(document.body).backgroundColor);
  const contrast = color => {
    const [r, g, b, alpha = 1] = numbers(color);
    const ink = light([r, g, b].map((it, i) => alpha * it + (1 - alpha) * paper[i]));
    return (Math.max(light(paper), ink) + 0.05) / (Math.min(light(paper), ink) + 0.05);
  };
  const least = query => Math.min(...[...document.querySelectorAll(query)]
    .map(it => contrast(getComputedStyle(it).color)));
  const found = {
    failures, paper: light(paper), scheme: document.body.dataset.mdColorScheme,
    text: least(".md-typeset p, .md-typeset td, .md-typeset h2"),
    links: least(".md-typeset p a, .md-typeset td a"), wider: document.documentElement.scrollWidth - innerWidth,
  };
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 1500));
</script>"""


# Tells the server what a search has found: it runs in a worker, which nothing else waits for.
SEARCH_PROBE = """<script>
const asked = setInterval(() => {
  const links = [...document.querySelectorAll("a.md-search-result__link")].map(it => it.getAttribute("href"));
  if (links.length == 0) return;
  clearInterval(asked);
  fetch("/found?" + encodeURIComponent(JSON.stringify(links)));
}, 100);
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    found: "queue.Queue[list[str]]" = queue.Queue()

    def do_GET(self) -> None:
        if self.path.startswith("/found?"):
            Quiet.found.put(json.loads(unquote(self.path.partition("?")[2])))
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Site(unittest.TestCase):
    folder: pathlib.Path
    server: http.server.ThreadingHTTPServer

    @classmethod
    def setUpClass(cls) -> None:
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name) / "site"
        done = subprocess.run([sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(cls.folder)],
                              capture_output=True, text=True,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)
        handler = lambda *given: Quiet(*given, directory=str(cls.folder))  # noqa: E731
        cls.server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.shutdown()
        cls.temporary.cleanup()

    def test_guides_are_numbered_without_gaps(self) -> None:
        numbers = sorted(int(it.name[:2]) for it in (ROOT / "docs").glob("[0-9][0-9]_*.md"))
        self.assertEqual(numbers, list(range(len(numbers))))

    def test_api_has_what_a_reader_looks_for(self) -> None:
        cache = (self.folder / "api" / "cache.html").read_text(encoding="utf-8")
        for anchor in ("kv_cache", "kv_cache-append", "cache_options-max_tokens", "load_sequence", "pagelayout"):
            self.assertIn(f'id="{anchor}"', cache)
        self.assertNotIn("kvquant::detail", cache)

    def test_search_finds_guides_and_symbols(self) -> None:
        index = json.loads((self.folder / "search" / "search_index.json").read_text(encoding="utf-8"))
        places = {it["location"] for it in index["docs"]}
        for place in ("03_cache.html#drop", "api/attend.html#attend_as_decoded", "artifact_format.html#artifact"):
            self.assertIn(place, places)

    def address_of(self, page: str, probe: str) -> str:
        """Of a page with a probe in it."""
        path = self.folder / page
        probed = path.with_name(f"probed_{path.name}")
        probed.write_text(path.read_text(encoding="utf-8").replace("<head>", "<head>" + probe), encoding="utf-8")
        return f"http://localhost:{self.server.server_port}/{probed.relative_to(self.folder)}"

    def browser(self, scheme: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             f"--user-data-dir={self.temporary.name}/{scheme}",
             f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--window-size=1300,900", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={"HOME": self.temporary.name, "PATH": "/usr/bin:/bin"})

    def look(self, scheme: str, page: str) -> dict:
        with self.browser(scheme, "--virtual-time-budget=8000", "--dump-dom", self.address_of(page, PROBE)) as browser:
            said, _ = browser.communicate(timeout=120)
        found = re.search(r'<pre id="found">(.*?)</pre>', said, re.DOTALL)
        self.assertIsNotNone(found)
        return json.loads(found[1])

    def search(self, words: str) -> list[str]:
        """Where the links of a search lead."""
        address = self.address_of("index.html", SEARCH_PROBE)
        with self.browser("light", "--remote-debugging-port=0", f"{address}?q={words}") as browser:
            try:
                return Quiet.found.get(timeout=120)
            finally:
                browser.terminate()

    def test_browser(self) -> None:
        if BROWSER is None:
            self.skipTest("Chromium is missing (scripts/install_packages browser)")
        for scheme, page, dark in (("light", "09_troubleshooting.html", False), ("dark", "api/cache.html", True)):
            with self.subTest(scheme=scheme, page=page):
                found = self.look(scheme, page)
                self.assertEqual(found["failures"], [])
                self.assertEqual((found["scheme"] == "slate", found["paper"] < 0.5), (dark, dark), found)
                self.assertGreaterEqual(found["text"], 4.5)
                self.assertGreaterEqual(found["links"], 4.5)
                self.assertLessEqual(found["wider"], 0)
        self.assertTrue(any("api/attend.html" in link for link in self.search("attend_as_decoded")))


def missing() -> str:
    """What the site cannot be built without, or nothing."""
    for program in ("doxygen", "mkdocs"):
        if shutil.which(program) is None:
            return program
    themes = subprocess.run(["mkdocs", "build", "--help"], capture_output=True, text=True).stdout
    return "" if "material" in themes else "mkdocs-material"


if __name__ == "__main__":
    if lacking := missing():
        print(f"{lacking} is missing (scripts/install_packages docs)")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
