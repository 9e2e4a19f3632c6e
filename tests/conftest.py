"""What every test runs under: a CPU that looks like eight devices, no rank promotion, a compilation cache.

And which tests are slow, and which quick; a browser; and what the processes of some tests cost.
"""

import collections
import gc
import os
import resource
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

# In the environment, so that the processes that tests start have the same. Programs as small as these take longer to
# optimize than to run; `XLA_FLAGS= pytest` runs them as they are compiled for users, which .ci/run does.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
# The smallest programs too, of which there are most: 30 ms to compile, 7 to read.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # Its other emitters compile in half the time; later versions have none.
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles, which no deadline could tell from a slow one.
# The same examples in every run; others are looked for on purpose (`--hypothesis-profile=default`), not as code lands.
settings.register_profile("optlab", deadline=None, derandomize=True)
settings.load_profile("optlab")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_thinned(items)
    files = set()
    for item in items:
        if item.path not in files and not item.get_closest_marker("slow"):
            files.add(item.path)
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs leave their curves undrawn but in tests marked `drawn`: so short a training takes little longer."""
    if not request.node.get_closest_marker("drawn"):
        monkeypatch.setattr("optlab.training.folder.plot_curves", lambda folder: None)


@pytest.fixture
def uncached():
    """No program goes into the compilation cache: it would be cut short there, or have no dump when it is read."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, before)


@pytest.fixture
def opened(tmp_path):
    """A function that opens a page in headless Chromium, without a message on its console, and returns its DOM."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")

    def opened(html, *flags):
        file = tmp_path / "page.html"
        file.write_text(html)
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom",
                   file.as_uri()]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
        return ran.stdout

    return opened


@pytest.fixture
def processor_seconds(record_property):
    """Notes the processor time of the processes that the test starts, which are printed at the end of the tests."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # the user's and the system's
    before = used()
    yield
    record_property("processor seconds", used() - before)


def pytest_terminal_summary(terminalreporter):
    files = collections.defaultdict(dict)
    for report in terminalreporter.getreports(""):  # of what a test leaves behind, where fixtures end
        for name, seconds in report.user_properties:
            if name == "processor seconds":
                file, _, test = report.nodeid.partition("::")
                files[file][test.partition("[")[2].rstrip("]") or test] = seconds
    for file, tests in files.items():
        each = ", ".join(f"{test} {seconds:.0f}" for test, seconds in tests.items())
        terminalreporter.write_line(f"processor seconds of {file}: {sum(tests.values()):.0f} ({each})")


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: no collection looks at it again


def mark_thinned(items):
    """Keeps a few cases of every thinned test, in which each value of each parameter occurs; the rest is slow.

    Each case kept has as many values that none had before as there can be, and of those that had some the rarest.
    """
    families = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("thinned"):
            families[item.nodeid.partition("[")[0]].append(item)
    for cases in families.values():
        seen, kept = collections.Counter(), []
        values = {case: {(name, id(value)) for name, value in case.callspec.params.items()} for case in cases}
        new = lambda case, seen=seen, values=values: sum(not seen[value] for value in values[case])
        old = lambda case, seen=seen, values=values: sum(seen[value] for value in values[case])
        while new(case := max(cases, key=lambda case: (new(case), -old(case)))):
            kept.append(case)
            seen.update(values[case])
        for case in cases:
            if case not in kept:
                case.add_marker("slow")
