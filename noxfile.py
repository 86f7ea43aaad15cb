#!/usr/bin/env -S uv run --script
# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""Development tasks of this repository as sessions: `nox -l` lists them, `nox` runs the default ones.

Sessions use the Python that runs nox, unless their name contains another version. The tables below list what they
install. The three packages always come from this tree, even if one of them depends on another.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = [
    "lint",
    "types",
    "contracts",
    "tests-core",
    "tests-otel",
    "tests-xenna",
    "integration",
    "wheels",
]

ROOT = Path(__file__).parent
PACKAGES = ("curator-core", "curator-xenna", "curator-otel")
SOURCES = [f"packages/{name}/src" for name in PACKAGES]
INCLUDE = ["--include=*.py", "--include=*.md"]

# How the packages are installed. Core is installed by path whenever another package needs it, so that none of our
# packages is ever requested from an index.
CORE = ["curator-core[compression,parquet,testing]"]
OTEL = [*CORE, "curator-otel[otlp,instrument]"]
XENNA = [*CORE, "curator-xenna"]
ALL = [*CORE, "curator-xenna", "curator-otel[otlp,instrument]"]
CHAOS = ["curator-core", "curator-xenna"]

# What the sessions install beside them. Linters are pinned, so that a new release of a linter does not break an
# unrelated change.
PYTEST = [
    "pytest>=8.3,<9.2",  # with 9.2, pytest-xdist 3.8 distributes the tests of a group as if they had none
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.8",  # the first with --no-loadscope-reorder
    "hypothesis>=6.100",
    "psutil>=6.0",  # finds what a run leaves behind
    "loguru>=0.7",  # loggers that scripts keep in globals
    "structlog>=24.1",
]
OTEL_TOOLS = ["oteltest>=0.40", "trustme>=1.2"]  # a real OTLP receiver, and certificates for it
CORE_TOOLS = [
    "zstandard>=0.22",  # also reads zstd, if the package of the extra is missing
    "duckdb>=1.1.3",  # with pandas, reads the files of ParquetWriter; the first with wheels for 3.13
    "pandas>=2.2.3",
]
XENNA_TOOLS = ["numpy>=2.1"]  # arrays that travel
PACKAGING_TOOLS = ["build>=1.2", "hatchling>=1.27", "packaging>=24.2"]
TOOLS = {
    "lint": ["ruff==0.17.*"],
    "types": ["mypy==2.4.*", "pytest>=8.3"],
    "contracts": ["import-linter==2.16"],
    "tests-core": [*PYTEST, *CORE_TOOLS],
    "tests-otel": [*PYTEST, *OTEL_TOOLS],
    "tests-xenna": [*PYTEST, *XENNA_TOOLS],
    "tests-all": [*PYTEST, *CORE_TOOLS, *OTEL_TOOLS, *XENNA_TOOLS, *PACKAGING_TOOLS],
    "wheels": [*PYTEST, *PACKAGING_TOOLS],
    "coverage": [*PYTEST, *CORE_TOOLS, *OTEL_TOOLS, "coverage[toml]>=7.10.3"],
    "docs": ["mkdocs-material==9.*", "mkdocstrings[python]==1.*", "ruff==0.17.*"],  # ruff formats signatures
    "release": [*PACKAGING_TOOLS, "twine>=6.1"],
    "chaos": PYTEST,
    "bench": ["matplotlib>=3.9", "psutil>=6.0"],
    "phoenix": [*PYTEST, "arize-phoenix==20.*", "httpx>=0.27", "pillow>=11"],
}

# The cosmos-xenna versions for each Python: the newest that it supports, and 0.2.0, which other projects pin.
NEWEST = {"3.11": "0.3.0", "3.12": "0.5.12", "3.13": "0.5.12"}
COMPAT = [
    *(nox.param(*pair, id="{}-xenna-{}".format(*pair), tags=["newest"]) for pair in NEWEST.items()),
    nox.param("3.11", "0.2.0", id="3.11-xenna-0.2.0"),
]

# Faults are tested once on each of the newest Xenna versions: on the oldest Python that supports it.
OLDEST = {xenna: python for python, xenna in reversed(NEWEST.items())}
FAULTY = [pair for pair in COMPAT if pair.args[0] == OLDEST.get(pair.args[1])]

# The tests that each pair except the default one must pass before a change is merged: the contract, the conformance kit
# on every executor, recovery from the death of a worker, which differs between versions of Xenna, and a smoke test of
# each package. All other tests run the same code on every pair: `whole` runs them.
ON_EACH_PAIR = (
    "packages/curator-core/tests/test_public.py",
    "packages/curator-core/tests/test_conformance.py",
    "packages/curator-otel/tests/test_package.py",
    "packages/curator-otel/tests/otlp/test_fields.py",
    "packages/curator-xenna/tests/test_contract.py",
    "packages/curator-xenna/tests/test_conformance.py",
    "packages/curator-xenna/tests/test_restarts.py",
    "tests/integration/test_readme.py",
)

# NeMo Curator, whose pipelines run on our executors, and with which the benchmarks compare us. It requires many
# packages that CPU runs do not need; these are the ones that they do need.
NEMO_CURATOR = ["nemo-curator==1.4.0"]
NEMO_CURATOR_ON = [
    nox.param("3.11", "0.2.0", id="3.11-xenna-0.2.0"),  # the Xenna that it requires
    nox.param("3.12", NEWEST["3.12"], id=f"3.12-xenna-{NEWEST['3.12']}"),
]
NEMO_CURATOR_NEEDS = [
    "ray[default,data]>=2.57",
    "absl-py",
    "fsspec",
    "hydra-core",
    "lmdb",
    "loguru",
    "numpy",
    "omegaconf",
    "openai",
    "pandas",
    "pyarrow",
    "tqdm",
]
NEMO_CURATOR_TEXT = ["ftfy", "regex"]  # its stages for text need these too
NEMO_CURATOR_STAGES = [*NEMO_CURATOR_TEXT, "av", "pillow", "soundfile"]  # and the others these
ITS_PAGE = "test_the_python_on_a_page_prints_the_output_that_it_shows[guides/coming-from-nemo-curator.md]"

# Turn off Ray's usage reports. Allow bytecode: without it, every Ray worker would compile its imports, which takes
# longer than the tests.
TEST_ENV: dict[str, str | None] = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": None}


def from_tree(packages: list[str]) -> list[str]:
    """Return installer arguments for packages (with extras) of this tree."""
    return [argument for name in packages for argument in ("-e", f"{ROOT}/packages/{name}")]


# Tests run in parallel. Without an engine each test is distributed individually, unless it names a group (xdist_group).
# With Ray they are distributed by module or class, because their shared fixtures take seconds to create, and in the
# order in which they were collected.
BY_ITSELF = ("--numprocesses=logical", "--maxprocesses=8", "--dist=loadgroup")
BY_MODULE = ("--numprocesses=2", "--dist=loadscope", "--no-loadscope-reorder")

# Faults take from a second to two minutes each, most of which is waiting.
BY_STEALING = ("--numprocesses=2", "--dist=worksteal")

# For the long session: the tests that take too long for every change, and many examples on one pair of versions.
WHOLE = ("--hypothesis-profile=whole",)
EVERYTHING = ("--hypothesis-profile=everything",)


def run_tests(session: nox.Session, *paths: str, runner: tuple[str, ...] = ("pytest",)) -> None:
    session.run(*runner, *paths, *session.posargs, env=TEST_ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting and lint rules of the whole tree, including bandit's; `-- --fix` fixes what can be fixed."""
    # Ruff's rules "S" are bandit's. pip-audit queries a service, so it is not run here: a test in tests/packaging
    # compares the lower bounds of the requirements with releases that have known vulnerabilities.
    session.install(*TOOLS["lint"])
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check", "--diff"]), ".")
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    # Phrases that a translation leaves behind, in what users read; grep succeeds if it finds one.
    phrases = "|".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["curator"]["banned-phrases"])
    session.run("grep", "-rnwEi", *INCLUDE, phrases, *SOURCES, "docs", "README.md", external=True, success_codes=[1])


@nox.session
def types(session: nox.Session) -> None:
    """Check the types (mypy, strict) of the three packages and of example user code in tests/typing."""
    session.install(*from_tree(ALL), *TOOLS["types"])
    session.run("mypy", "--strict", *SOURCES, "tests/typing", *session.posargs)


@nox.session
def contracts(session: nox.Session) -> None:
    """Check imports: xenna and otel import core but not each other; core imports neither of them and no engine."""
    session.install(*TOOLS["contracts"])
    # The linter reads the sources without running them: nothing else must be installed.
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": os.pathsep.join(SOURCES)})


@nox.session(name="tests-core")
def tests_core(session: nox.Session) -> None:
    """Run curator-core's tests, in an environment without engines and telemetry."""
    session.install(*from_tree(CORE), *TOOLS["tests-core"])
    run_tests(session, *BY_ITSELF, "packages/curator-core/tests")


@nox.session(name="tests-otel")
def tests_otel(session: nox.Session) -> None:
    """Run curator-otel's tests, in an environment without engines."""
    session.install(*from_tree(OTEL), *TOOLS["tests-otel"])
    run_tests(session, *BY_ITSELF, "packages/curator-otel/tests")


@nox.session(name="tests-xenna")
def tests_xenna(session: nox.Session) -> None:
    """Run curator-xenna's tests, on the newest cosmos-xenna for this Python and an embedded Ray."""
    session.install(*from_tree(XENNA), *TOOLS["tests-xenna"])
    run_tests(session, *BY_MODULE, "packages/curator-xenna/tests")


@nox.session
def integration(session: nox.Session) -> None:
    """Run tests/: the packages together, the docs, the demo, packaging. `wheels` runs the README's programs."""
    session.install(*from_tree(ALL), *TOOLS["tests-all"])
    run_tests(session, *BY_MODULE, "--ignore=tests/integration/test_readme.py", "tests")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the wheels, install them in a fresh environment, and test them without access to the sources."""
    session.install(*TOOLS["wheels"])
    with tempfile.TemporaryDirectory() as temporary:
        there = Path(temporary)
        built = {name: build(session, name, there / "dist") for name in PACKAGES}
        for name in ("tests/integration", "tests/packaging"):
            shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("conftest.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, there)
        # Core alone first: it must work with only its three requirements.
        session.install(str(built["curator-core"]))
        session.run("python", "-I", "-c", "import curator_core, curator_core.io, curator_core._local.executor")
        # By file, never by name: an index could contain a package with the same name.
        session.install(*(f"{name} @ {built[name.partition('[')[0]].as_uri()}" for name in ALL))
        with session.chdir(there):
            # Their metadata, and the README's programs, which use all three. `integration` tests everything else in the
            # tree, including that every module is in its wheel.
            paths = ("tests/integration/test_readme.py", "tests/packaging")
            run_tests(session, *paths, runner=("pytest", "-m", "not tree"))


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Run the demo: curate the docs of installed packages on Xenna; `-- --executor local` to compare."""
    session.install(*from_tree(ALL))
    output = ROOT / "build" / "demo"
    chosen = any(argument.split("=")[0] == "--output" for argument in session.posargs)
    where = [] if chosen else ["--output", str(output)]
    script = ROOT / "docs" / "examples" / "curate_package_docs.py"
    session.run("python", str(script), *where, *session.posargs, env=TEST_ENV)
    if not chosen:
        session.log(f"the output and trace.json are in {output}")


@nox.session(default=False)
def phoenix(session: nox.Session) -> None:
    """Test the demo with Arize Phoenix: its API, and its page, saved in build/phoenix/. Installs 0.8 GB."""
    session.install(*from_tree(OTEL), *TOOLS["phoenix"])
    # Phoenix installs a pytest plugin that raises warnings when it is imported.
    run_tests(session, "-p", "no:phoenix", *EVERYTHING, "tests/phoenix")


@nox.session(venv_backend="uv", default=False)
def bench(session: nox.Session) -> None:
    """Compare with alternatives and write docs/benchmarks.*; `-- --workloads tiny` for a part. Needs uv."""
    session.install(*TOOLS["bench"])
    chosen = [f"--environment={name}={python}" for name, python in bench_environments(session).items()]
    env = {**TEST_ENV, "PYTHONPATH": str(ROOT / "tests" / "benchmarks")}
    session.run("python", "-m", "curator_bench", *chosen, *session.posargs, env=env)


def bench_environments(session: nox.Session) -> dict[str, Path]:
    """Create the environments of the contenders: one for each pair of Python and Xenna, and one for NeMo Curator."""
    found = {}
    for python, xenna in NEWEST.items():
        if f"xenna-{xenna}" not in found and (path := environment(session, f"xenna-{xenna}", python)):
            ours = from_tree(["curator-core[parquet]", "curator-xenna", "curator-otel[otlp]"])
            install_into(session, path, *ours, f"cosmos-xenna=={xenna}", "numpy")
            found[f"xenna-{xenna}"] = path
    for python in NEWEST:
        if "nemo-curator" not in found and (path := environment(session, "nemo-curator", python)):
            install_into(session, path, "--no-deps", *NEMO_CURATOR)
            ours = from_tree(["curator-core", "curator-xenna"])  # its stages run on our executors too
            _, xenna = NEMO_CURATOR_ON[0].args
            install_into(session, path, f"cosmos-xenna=={xenna}", *NEMO_CURATOR_NEEDS, *NEMO_CURATOR_TEXT, *ours)
            found["nemo-curator"] = path
    return found


def environment(session: nox.Session, name: str, python: str) -> Path | None:
    """Create an empty environment beside the session's own; return None if that Python is not available."""
    path = Path(session.create_tmp()) / name
    shutil.rmtree(path, ignore_errors=True)
    options = ("--quiet", "--no-python-downloads", "--python", python)
    # pyenv provides only interpreters that are named here.
    session.run("uv", "venv", *options, str(path), env={"PYENV_VERSION": python}, success_codes=[0, 1, 2], silent=True)
    interpreter = path / "bin" / "python"
    if not interpreter.exists():
        session.warn(f"skipped: no Python {python}")
        return None
    return interpreter


def install_into(session: nox.Session, python: Path, *what: str) -> None:
    session.run("uv", "pip", "install", "--quiet", "--python", str(python), *what)


@nox.session(venv_backend="uv", default=False)
@nox.parametrize(("python", "xenna"), NEMO_CURATOR_ON)
def nemo(session: nox.Session, xenna: str) -> None:
    """Test pipelines of NeMo Curator on all executors, beside NeMo Curator's own. Needs uv."""
    needs = [f"cosmos-xenna=={xenna}", *NEMO_CURATOR_NEEDS, *NEMO_CURATOR_STAGES]
    session.install(*from_tree(ALL), *TOOLS["tests-all"], *needs)
    session.install("--no-deps", *NEMO_CURATOR)
    paths = ("tests/nemo", f"tests/integration/test_docs_snippets.py::{ITS_PAGE}")
    run_tests(session, *BY_MODULE, *paths)


@nox.session(python="3.11", venv_backend="uv", default=False)
def minimums(session: nox.Session) -> None:
    """Test the oldest Python with the oldest release of every dependency, to check the lower bounds. Needs uv."""
    session.install("--resolution=lowest-direct", *from_tree(ALL), *TOOLS["tests-all"])
    session.run("uv", "pip", "list")
    run_tests(session, *BY_MODULE, *(f"packages/{name}/tests" for name in PACKAGES))


@nox.session(default=False)
@nox.parametrize(("python", "xenna"), COMPAT)
def compat(session: nox.Session, xenna: str) -> None:
    """Run the tests that each pair of Python and cosmos-xenna must pass for every change; `-p 3.12` for one Python."""
    session.install(*from_tree(ALL), f"cosmos-xenna=={xenna}", *TOOLS["tests-all"])
    run_tests(session, *BY_MODULE, *ON_EACH_PAIR)


@nox.session(default=False)
@nox.parametrize(("python", "xenna"), COMPAT)
def whole(session: nox.Session, xenna: str) -> None:
    """Run all tests of the packages and tests/ on each supported pair, including those that take long."""
    session.install(*from_tree(ALL), f"cosmos-xenna=={xenna}", *TOOLS["tests-all"])
    run_tests(session, *BY_MODULE, *WHOLE, *(f"packages/{name}/tests" for name in PACKAGES), "tests")


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Run the faults of `chaos` that every change must survive, on this Python: killed processes, full disks."""
    session.install(*from_tree(CHAOS), *TOOLS["chaos"])
    run_tests(session, *BY_STEALING, "tests/chaos")


@nox.session(default=False)
@nox.parametrize(("python", "xenna"), FAULTY)
def chaos(session: nox.Session, xenna: str) -> None:
    """Run real faults: killed processes, full disks. Writes results to docs, unless there are arguments after `--`."""
    session.install(*from_tree(CHAOS), f"cosmos-xenna=={xenna}", *TOOLS["chaos"])
    # With arguments, only some of the faults are run.
    into = [] if session.posargs else [f"--page={ROOT / 'docs' / 'guides' / 'reliability.md'}"]
    run_tests(session, *BY_STEALING, *EVERYTHING, *into, "tests/chaos")


@nox.session(default=False)
def everything(session: nox.Session) -> None:
    """Run everything that can be tested here, for hours: must pass before an issue is closed as resolved."""
    for name in ("lint", "types", "contracts", "wheels", "minimums", "docs", "demo", "phoenix"):
        session.notify(name)
    for name in ("tests-core", "tests-otel", "tests-xenna", "integration"):  # each in a separate environment
        session.notify(name, EVERYTHING)
    here = "{}.{}".format(*sys.version_info)
    for pair in COMPAT:
        if pair.args != (here, NEWEST.get(here)):  # the four above have tested this pair
            session.notify(f"whole({pair.id})")
    for pair in NEMO_CURATOR_ON:
        session.notify(f"nemo({pair.id})", EVERYTHING)
    for pair in FAULTY:
        session.notify(f"chaos({pair.id})", ["-v"])  # with an argument, the page is not changed


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Show what the tests of core and otel cover, in all processes. No minimum is required: it shows where to look."""
    session.install(*from_tree(OTEL), *TOOLS["coverage"])
    paths = ("packages/curator-core/tests", "packages/curator-otel/tests")
    run_tests(session, *BY_ITSELF, *paths, runner=("coverage", "run", "-m", "pytest"))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the docs into site/; fail on a broken link or reference."""
    session.install(*TOOLS["docs"])
    # MkDocs requires its file outside the docs directory, and the top level of this tree should not contain it.
    config = Path(session.create_tmp()) / "mkdocs.yml"
    paths = {"INHERIT": f"{ROOT}/docs/mkdocs.yml", "docs_dir": f"{ROOT}/docs", "site_dir": f"{ROOT}/site"}
    handlers = {"python": {"paths": [str(ROOT / source) for source in SOURCES]}}
    config.write_text(json.dumps({**paths, "plugins": {"mkdocstrings": {"handlers": handlers}}}))
    session.run(
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        *session.posargs,
        env={"NO_MKDOCS_2_WARNING": "1"},
    )


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build one package into dist/ if tag, changelog, and version agree: `-- curator-core`. No upload."""
    if len(session.posargs) != 1 or session.posargs[0] not in PACKAGES:
        session.error(f"name one package to release: nox -s release -- {{{','.join(PACKAGES)}}}")
    name = session.posargs[0]
    check_release(session, name)
    session.install(*TOOLS["release"])
    target = ROOT / "dist" / name
    shutil.rmtree(target, ignore_errors=True)
    build(session, name, target, sdist=True)
    session.run("twine", "check", "--strict", *map(str, sorted(target.iterdir())))


def check_release(session: nox.Session, name: str) -> None:
    """Stop unless HEAD is clean and tagged, and the changelog has a date for the version to build."""
    version = version_of(name)
    tag = f"{name}-v{version}"
    changelog = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        session.error(f"packages/{name}/CHANGELOG.md has no heading '## {version} - YYYY-MM-DD'")
    if session.run("git", "status", "--porcelain", external=True, silent=True):
        session.error("the tree has changes that are not committed")
    tags = session.run("git", "tag", "--points-at", "HEAD", external=True, silent=True)
    if tag not in str(tags).split():
        session.error(f"HEAD is not tagged {tag}: git tag {tag}")


def version_of(name: str) -> str:
    """Return the version in a package's __about__.py without importing it."""
    about = ROOT / "packages" / name / "src" / name.replace("-", "_") / "__about__.py"
    for node in ast.parse(about.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise LookupError(f"{about} sets no __version__")


def build(session: nox.Session, name: str, target: Path, *, sdist: bool = False) -> Path:
    """Build a package's wheel (from its sdist, if that is requested too); return the wheel."""
    formats = [] if sdist else ["--wheel"]
    # The session has hatchling already: builds need no environment of their own.
    package = str(ROOT / "packages" / name)
    session.run("python", "-m", "build", "--no-isolation", *formats, "--outdir", str(target), package, silent=True)
    return next(target.glob(f"{name.replace('-', '_')}-*.whl"))


if __name__ == "__main__":
    nox.main()
