"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from coterie import progress
from coterie.models import device
from coterie.store import Store

slow_start = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("coterie", deadline=None, max_examples=20, suppress_health_check=slow_start)
settings.load_profile("coterie")


if (forced := os.environ.get("COTERIE_TEST_PRECISION")) is not None:
    # What precision `auto` means on this CPU, as if it had AMX or had not; any CPU can compute bf16 autocast, only slower.
    # Processes that tests start decide for themselves: a test that compares with them names the precision.
    if forced not in ("fp32", "bf16", "other"):
        raise pytest.UsageError(f"COTERIE_TEST_PRECISION is fp32, bf16 or other (than on this CPU), not {forced!r}")
    if forced == "other":
        forced = "fp32" if device._has_amx() else "bf16"
    device._has_amx = lambda: forced == "bf16"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for jobs in the background of a shell: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress lines among the tests' own."""
    monkeypatch.setattr(progress, "QUIET", True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a byte-level BPE tokenizer with 96 tokens, `<eos>` the first of them."""
    from tests.tiny import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.fail("needs Debian's chromium (apt install chromium), or its path in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def shown(browser) -> Iterator:
    """Opens a page from a file; at the end nothing may have been asked of a network, and no error printed."""
    wrong: list[str] = []
    contexts = []

    def opened(path: Path, viewport: dict, **options):
        context = browser.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith("file:") else wrong.append(f"asked for {r.url}"))
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
