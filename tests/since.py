"""Tests that need more than the oldest libraries the engine runs with: skipped there with that reason, so that they are counted.

`since("pillow", "10.1", "...")` marks a test. With --oldest, as `.ci/old` runs them, a test that ends because an optional package or a part
of a newer library is missing is skipped too; without it such a test fails, since everything has to be there.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import pytest
from packaging.version import Version

OPTIONAL = {
    "bitsandbytes", "datasets", "lycoris", "mypy", "pillow_heif", "prodigyopt", "pyarrow", "pytorch_optimizer", "schedulefree", "tensorboard",
}  # fmt: skip
HEADLESS = {"diffusers", "peft", "transformers"}  # whose models only headless runs use
MISSING = {
    "file.unsafe_torch",
    "optimizer.package_missing",
    "package.too_old",
    "trackers.not_installed",
}  # codes of our own errors


def since(package: str, version: str, why: str) -> pytest.MarkDecorator:
    """Skips where an older `package` is installed than `version`, since when `why`."""
    installed = importlib.metadata.version(package)
    reason = f"{package} {installed}: {why} since {version}"
    return pytest.mark.skipif(Version(Version(installed).base_version) < Version(version), reason=reason)


def options(parser: pytest.Parser) -> None:
    parser.addoption("--oldest", action="store_true", help="skip what optional or newer packages are missing for")


def missing(error: BaseException | None) -> str:
    """Which package a test was missing; empty where it failed for another reason."""
    return next((reason for one in _chain(error) if (reason := _reason(one))), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    if getattr(getattr(error, "message", None), "code", "") in MISSING:
        return str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ImportError) and name in OPTIONAL | HEADLESS:
        return text
    lacks = isinstance(error, AttributeError) and any(
        f"module {top} has no" in text.replace("'", "") for top in HEADLESS
    )
    return text if lacks else ""


class Oldest:
    """The plugin behind --oldest."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item):
        self._skip((yield))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        self._skip((yield))

    @staticmethod
    def _skip(outcome) -> None:
        error = outcome.excinfo[1] if outcome.excinfo else None
        if reason := missing(error):
            outcome.force_exception(pytest.skip.Exception(f"needs more than the oldest packages: {reason}"))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector):
        outcome = yield
        report = outcome.get_result()
        if report.failed and report.call.excinfo and (reason := missing(report.call.excinfo.value)):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: needs more than the oldest packages: {reason}")
