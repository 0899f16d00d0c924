"""Create the README's credit picture: `upslope credit` for an episode in which a half-trained agent took the key.

python docs/credit_picture.py

This script needs the extra `report`, Selenium, Chromium and ChromeDriver.
"""

import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.report.page import write_credit

PICTURE = Path(__file__).parent / "images" / "credit.png"
WIDTH, HEIGHT = 900, 900
STEPS = 12_000
"""Enough steps for the critic to learn the key's value, but too few for the policy to always take the key."""
COLOURS = 64


def main() -> None:
    """Train an agent, find an episode in which the key was taken, and take a screenshot of its page."""
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train("jax:Key-v0", "gae", steps=STEPS, num_envs=8, folder=folder, preset=False, quiet=True)
        episode = next(k for k in range(100) if credit_of(run.path, episode_seed=k).reward.sum() > 0)
        page = write_credit(run.path, episode_seed=episode)
        picture = photograph(page)
    picture.convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


def photograph(page: Path) -> Image.Image:
    """Take a screenshot of a credit page once it has been rendered."""
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "hide-scrollbars", f"window-size={WIDTH},{HEIGHT}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        ready = "return document.querySelector('.chart .main-svg') && document.querySelector('.frame img').complete"
        WebDriverWait(driver, 60).until(lambda d: d.execute_script(ready))
        corner = "const b = document.querySelector('.credit').getBoundingClientRect(); return [b.x, b.y, b.width]"
        x, y, width = driver.execute_script(corner)
        clip = {"x": x, "y": y, "width": width, "height": HEIGHT, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    finally:
        driver.quit()
    return Image.open(io.BytesIO(base64.b64decode(shot["data"])))


if __name__ == "__main__":
    main()
