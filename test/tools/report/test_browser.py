#!/usr/bin/env python3
"""The page of kvquant report in a browser without a screen, in light and in dark. Exits with 77 (skipped) where
Chromium or matplotlib is missing.
"""

import json
import re
import shutil
import subprocess
import sys
import unittest

from report_case import DRAWN, LISTED, PROGRAM, SKIPPED, ReportCase, plotting_python

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them

# Looks at the page from inside: what failed, sizes, and how text and lines stand out from the background (WCAG 2.1).
PROBE = """<script>
const failures = [];
addEventListener("error", it => failures.push(String(it.message)), true);
addEventListener("securitypolicyviolation", it => failures.push("blocked: " + it.violatedDirective + " " + it.blockedURI));
addEventListener("load", () => {
  const light = color => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(it => it / 255);
    return [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) =>
      sum + weight * (parts[i] <= 0.04045 ? parts[i] / 12.92 : ((parts[i] + 0.055) / 1.055) ** 2.4), 0);
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = color => (Math.max(paper, light(color)) + 0.05) / (Math.min(paper, light(color)) + 0.05);
  const least = (query, member) => Math.min(...[...document.querySelectorAll(query)]
    .map(it => getComputedStyle(it)[member]).filter(it => it.startsWith("rgb(")).map(contrast));
  const size = it => { const box = it.getBoundingClientRect(); return [box.width, box.height]; };
  const found = {
    failures, dark: matchMedia("(prefers-color-scheme: dark)").matches, paper,
    figures: [...document.querySelectorAll("figure")].map(it => [it.id, ...size(it)]),
    plots: [...document.querySelectorAll("svg")].map(size),
    text: Math.min(least("svg text", "fill"), least("body, figcaption, th, td, a, summary, code", "color")),
    markers: least("svg use", "fill"),
    wider: document.documentElement.scrollWidth - innerWidth,
  };
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>"""


class Browser(ReportCase):
    def look(self, scheme: str, width: int = 1000) -> dict:
        done = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run",
             f"--user-data-dir={self.folder}/profile", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
             f"--window-size={width},900", "--dump-dom", (self.folder / "probed.html").as_uri()],
            capture_output=True, text=True, timeout=60, env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"})
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        self.assertIsNotNone(found, done.stderr)
        self.assertEqual([line for line in done.stderr.splitlines() if "CONSOLE" in line], [])
        return json.loads(found[1])

    def test_light_and_dark(self) -> None:
        self.write_all()
        self.succeed("found", "-o", "r.html", python=PYTHON)
        page = (self.folder / "r.html").read_text(encoding="utf-8")
        policy = "default-src 'none';"  # the page runs no script; the probe is one
        self.assertIn(policy, page)
        page = page.replace(policy, f"{policy} script-src 'unsafe-inline';").replace("<title>", PROBE + "<title>")
        (self.folder / "probed.html").write_text(page, encoding="utf-8")
        for scheme, width in (("light", 1000), ("dark", 1000), ("dark", 500)):
            found = self.look(scheme, width)
            with self.subTest(scheme=scheme, width=width):
                self.assertEqual((found["failures"], found["dark"]), ([], scheme == "dark"))
                self.assertTrue(found["paper"] < 0.05 if scheme == "dark" else found["paper"] > 0.9, found["paper"])
                self.assertEqual(sorted(name for name, *_ in found["figures"]), sorted(DRAWN + LISTED))
                for name, across, down in found["figures"]:
                    self.assertTrue(across > 300 and down > 50, (name, across, down))
                self.assertEqual(len(found["plots"]), len(DRAWN))
                for across, down in found["plots"]:
                    self.assertTrue(across > 150 and down > 60, (across, down))
                self.assertGreaterEqual(found["text"], 4.5)
                self.assertGreaterEqual(found["markers"], 3)
                self.assertLessEqual(found["wider"], 0)  # what is wide scrolls in its own place


if __name__ == "__main__":
    PYTHON = plotting_python()
    if BROWSER is None or PYTHON is None:
        missing = ("Chromium", "browser") if BROWSER is None else ("Python with matplotlib", "plot")
        print("skipped: no {} (scripts/install_packages {})".format(*missing))
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
