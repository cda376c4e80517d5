"""A page as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FRAME = """<!doctype html><body style="margin:0">
<iframe id="frame" src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<script>
const frame = document.getElementById('frame');
frame.onload = () => {{
  const page = frame.contentDocument;
  const inside = (node) => node.getBoundingClientRect().right <= {width} + 0.5;
  document.title = JSON.stringify({{
    ready: page.body.dataset.ready,
    width: page.documentElement.scrollWidth,
    plots: page.querySelectorAll('.js-plotly-plot svg.main-svg').length,
    heatmaps: page.querySelectorAll('.heatmaplayer image').length,
    lines: page.querySelectorAll('.scatterlayer .trace').length,
    rows: page.querySelectorAll('#results tbody tr').length,
    outside: [...page.querySelectorAll('section, table, pre, .chart, .grid > div, select')]
      .filter((node) => !inside(node)).map((node) => node.id || node.tagName),
    images: page.querySelectorAll('img').length,
    samples: [...page.querySelectorAll('pre.sample b')].map((node) => node.textContent),
    tokens: page.getElementById('map-text')?.textContent,
    text: page.body.innerText,
  }});
}};
</script>
"""


def look_at_page(page: Path, width: int) -> dict[str, Any]:
    """What stands on the page after its script has run, in a window `width` pixels wide."""
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.format(width=width, page=page.name))
    command = [
        *(
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
        ),
        *(
            "--window-size=1400,1000",
            "--virtual-time-budget=20000",
            "--dump-dom",
            frame.as_uri(),
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    frame.unlink()
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(title.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
