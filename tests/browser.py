"""Chromium without a window, for tests of pages. Debian's packages chromium and chromium-driver, and selenium.

Tests that need it are skipped where it is missing, unless RCDM_REQUIRE_BROWSER is set, as in CI.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def chromium(profile: Path, width: int, height: int = 900) -> Iterator[Any]:
    """A selenium driver with a view of `width` x `height` pixels and an empty profile in `profile`."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if os.environ.get("RCDM_REQUIRE_BROWSER"):
        assert binary, "chromium is not installed"
        assert driver, "chromedriver is not installed"
    elif not (binary and driver):
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield found
    finally:
        found.quit()
