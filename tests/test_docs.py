"""Every block of code in the documentation runs, and prints what the page says it prints."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

import anyloader.testing
from anyloader._batch import TRANSITIONS
from support import BACKENDS, backend_options
from support.programs import PYTEST

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LIBRARIES = [name for name in ("asyncio", "trio") if name in BACKENDS]

#: What only one of the libraries can run.
ONLY_ON = {
    "how-to/group_asyncio": "asyncio",
    "how-to/group_trio": "trio",
    "how-to/pydantic_resolve_app": "asyncio",
    "how-to/sqlalchemy_async": "asyncio",
    "how-to/sqlalchemy_request": "asyncio",
    "how-to/compat_before": "asyncio",
    "how-to/compat_step": "asyncio",
    "how-to/strawberry_before": "asyncio",
    "how-to/strawberry_step": "asyncio",
    "how-to/synchronous": "asyncio",  # it runs event loops of its own
    "how-to/web_quart": "asyncio",
    "how-to/worker_taskiq": "asyncio",
}

SNIPPETS = {
    str(path.relative_to(DOCS).with_suffix("")): path
    for path in sorted(DOCS.rglob("*.py"))
    if "_build" not in path.parts and "_ext" not in path.parts and path.name != "conf.py"
}
PROGRAMS = {name: path for name, path in SNIPPETS.items() if path.with_suffix(".out").exists()}
#: Run in test_frameworks.py, test_shared_scope.py and test_ariadne.py.
IN_SERVERS = [
    *("how-to/aiohttp_app", "how-to/strawberry_fastapi", "how-to/web_django"),
    *("how-to/web_shared", "how-to/sqlalchemy_fastapi", "how-to/graphql_ariadne_socket"),
]
APPS = [name for name in SNIPPETS if name.startswith("how-to/web_") and name not in IN_SERVERS]
TESTS = [name for name in SNIPPETS if Path(name).name.startswith("test_")]
#: Imported by other snippets.
MODULES = ["how-to/sqlalchemy_models", "tutorial/library"]
#: Need a server, and are run where there is one: in test_redis.py and test_postgres.py.
WITH_SERVER = ["how-to/value_cache_redis", "how-to/sqlalchemy_asyncpg"]
#: These leave hanging tasks behind, which is what they are there to show.
OTHERS = ["explanation/failures", "explanation/on_trio"]

#: The modules that users import, and what they export for the package's own use.
PUBLIC: dict[str, set[str]] = {
    "anyloader": {"hooks", "schedules"},
    "anyloader.compat": set(),
    "anyloader.compat_strawberry": set(),
    "anyloader.hooks": {"Hooks"},
    "anyloader.integrations.asgi": set(),
    "anyloader.integrations.django": set(),
    "anyloader.integrations.graphql": set(),
    "anyloader.integrations.memory": set(),
    "anyloader.integrations.opentelemetry": set(),
    "anyloader.integrations.prometheus": set(),
    "anyloader.integrations.redis": {"Serializer"},  # said of its parameter
    "anyloader.integrations.redis_py": set(),
    "anyloader.integrations.sqlalchemy": set(),
    "anyloader.integrations.strawberry": set(),
    "anyloader.schedules": set(),
    "anyloader.testing": set(),
    "anyloader.trace": set(),
}

PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [*sorted(DOCS.rglob("*.rst")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    if "_build" not in path.parts
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a snippet as its reader would: with the modules beside it within reach."""
    before = dict(sys.modules)

    def load(name: str) -> dict[str, Any]:
        path = SNIPPETS[name]
        monkeypatch.syspath_prepend(str(path.parent))
        try:
            return runpy.run_path(str(path), run_name=Path(name).name)
        except ModuleNotFoundError as exc:
            if exc.name in ("anyloader", "library") or str(exc.name).startswith("anyloader."):
                raise
            pytest.skip(f"{exc.name} is not installed")

    yield load
    for name in set(sys.modules) - set(before):
        if str(DOCS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    if sys.modules.get("aiodataloader") is not before.get("aiodataloader"):
        for name in list(sys.modules):
            if name.split(".")[0] in ("aiodataloader", "pydantic_resolve"):
                del sys.modules[name]


def expected(name: str) -> str:
    return PROGRAMS[name].with_suffix(".out").read_text()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - {*OTHERS, *WITH_SERVER}))
def test_a_program_prints_what_the_page_says(
    name: str, backend: str, load: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if not backend.startswith(ONLY_ON.get(name, "")):
        pytest.skip(f"for {ONLY_ON[name]}")
    if name == "how-to/group_asyncio" and sys.version_info < (3, 11):
        pytest.skip("asyncio.TaskGroup came with Python 3.11")
    main = load(name)["main"]
    library, options = backend_options(backend)
    if inspect.iscoroutinefunction(main):
        anyio.run(main, backend=library, backend_options=options)
    elif "+" not in backend:
        main()
    else:
        pytest.skip("it runs event loops of its own")
    assert capsys.readouterr().out == expected(name)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", APPS)
def test_a_web_application_sends_one_batch_for_each_request(
    name: str, library: str, load: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if ONLY_ON.get(name, library) != library:
        pytest.skip(f"for {ONLY_ON[name]}")
    httpx: Any = pytest.importorskip("httpx")
    app = load(name)["app"]

    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(2):
                response = await client.get("/")
                assert response.json() == ["user 1", "user 2", "user 1"]

    backend, options = backend_options(library)
    anyio.run(ask, backend=backend, backend_options=options)
    assert capsys.readouterr().out == "batch [1, 2]\n" * 2


@pytest.mark.parametrize("name", TESTS)
def test_tests_in_the_documentation_pass(name: str, tmp_path: Path) -> None:
    command = [*PYTEST, "-q", "-c", "empty.ini", "--rootdir", "."]
    (tmp_path / "empty.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [*command, str(SNIPPETS[name])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    tests = len(re.findall("^async def test_", SNIPPETS[name].read_text(), re.MULTILINE))
    assert f"{tests * len(LIBRARIES)} passed" in done.stdout


def installed(library: str) -> bool:
    module = {"Strawberry": "strawberry"}.get(library, library)
    return importlib.util.find_spec(module) is not None


#: In virtual time, as a second without an answer counts as a hang.
WITHOUT_WAITING = """
import asyncio, runpy, sys
from support import VirtualTimeLoop
asyncio.new_event_loop = VirtualTimeLoop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", OTHERS)
def test_other_loaders_fail_as_the_explanation_says(name: str) -> None:
    if name == "explanation/on_trio":
        pytest.importorskip("trio")
    elif sys.version_info < (3, 11):
        pytest.skip("asyncio.TaskGroup came with Python 3.11")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_WAITING, str(SNIPPETS[name])],
        cwd=Path(__file__).parent,  # where the support is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line
        for line in expected(name).splitlines()
        if len(line.split()) < 2 or installed(line.split()[0])
    ]
    assert done.stdout.splitlines() == lines


def test_every_snippet_is_tested() -> None:
    tested = {*PROGRAMS, *APPS, *IN_SERVERS, *TESTS, *MODULES}
    assert set(SNIPPETS) - tested == set()
    assert set(ONLY_ON) <= set(SNIPPETS)


@pytest.mark.parametrize("name", [name for name in SNIPPETS if name not in OTHERS])
def test_every_snippet_is_on_a_page(name: str) -> None:
    path = SNIPPETS[name]
    pages = [page for page in path.parent.glob("*.rst") if path.name in page.read_text()]
    assert pages, f"no page beside {path} shows it"


# --- pages ---


#: Drawings; all other text on a page is the output of a program.
DRAWN = ["docs/explanation/how-a-batch-leaves.rst"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".rst")])
def test_code_on_a_page_comes_from_a_file_but_for_commands(page: str) -> None:
    text = PAGES[page].read_text()
    languages = set(re.findall(r"^ *\.\. (?:code|code-block|sourcecode):: *(.*)$", text, re.M))
    assert languages <= ({"sh", "text"} if page in DRAWN else {"sh"})
    assert (
        re.findall(r"^ *(?:>>>|\.\. (?:parsed-literal|prompt|doctest|testcode)::)", text, re.M)
        == []
    )
    assert re.findall(r"::$", re.sub(r"^ *\.\. .*$", "", text, flags=re.MULTILINE), re.M) == []


def readme_programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_program_in_the_readme_prints_one_batch(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = readme_programs()
    module = ModuleType("readme")
    # Run by the test, on either backend, instead of by its last line.
    exec(
        compile(re.sub(r"^anyio\.run.*$", "", program, flags=re.M), "README", "exec"), vars(module)
    )
    backend, options = backend_options(library)
    assert inspect.iscoroutinefunction(module.main)
    anyio.run(module.main, backend=backend, backend_options=options)
    assert capsys.readouterr().out.splitlines() == [
        "one query for [1, 2]",
        "user 1 user 2 user 1",
    ]


# --- examples in docstrings, which the reference shows ---


def docstring_examples() -> dict[str, str]:
    """Those of the core; those of the integrations need servers and other libraries."""
    found: dict[str, str] = {}
    for module in PUBLIC:
        if "integrations" not in module:
            public: Any = importlib.import_module(module)
            for name in public.__all__:
                doc = inspect.getdoc(getattr(public, name)) or ""
                for code in re.findall(r"::\n\n((?:    .*\n|\n)+)", doc + "\n"):
                    found[f"{module}.{name}"] = code
    return found


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", docstring_examples())
def test_an_example_in_the_reference_runs(name: str, library: str) -> None:
    code = re.sub(r"(?m)^( *async def .*): \.\.\.$", r"\1: return ids", docstring_examples()[name])

    async def fetch_users(ids: list[int]) -> list[int]:
        return ids

    class client:
        @staticmethod
        async def get(path: str) -> None:
            """Takes no batch."""

    names: dict[str, Any] = {**vars(anyloader), **vars(anyloader.testing), "User": int}
    names.update(fetch_users=fetch_users, client=client)
    exec(f"async def main():\n{code}", names)
    backend, options = backend_options(library)
    anyio.run(names["main"], backend=backend, backend_options=options)


# --- tables ---


def test_the_map_of_the_code_names_every_module() -> None:
    text = PAGES["CONTRIBUTING.md"].read_text()
    package = ROOT / "anyloader"
    names = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert {name for name in names if not re.search(rf"[ /]{name}[ ,]", text)} == set()
    named = re.findall(r"^  ([\w.]+\.py)", text, re.MULTILINE)
    assert set(named) <= names


def test_the_drawing_of_a_batch_shows_every_state_and_every_move() -> None:
    pytest.importorskip("docutils")
    draw = runpy.run_path(str(DOCS / "_ext" / "batch_states.py"))["draw"]
    shown = re.findall(r"<text [^>]*>([^<]*)</text>", draw(TRANSITIONS))
    states, moves = list(TRANSITIONS), [event for m in TRANSITIONS.values() for event in m]
    assert sorted(", ".join(shown).split(", ")) == sorted([*states, *moves])


def reference() -> dict[str, list[tuple[str, str | None]]]:
    """By module: the names that are described, each with its signature if that is written out."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for page in [*(p for p in PAGES if "/reference/" in p), "docs/how-to/graphql.rst"]:
        module = ""
        blocks = re.findall(
            r"^\.\. (\w+):: *(.*)((?:\n +.*)*)", PAGES[page].read_text(), re.MULTILINE
        )
        for kind, rest, options in blocks:
            if kind in ("currentmodule", "automodule"):
                module = rest
            if kind == "automodule":
                names = re.sub(r"^ *:(?!members).*$|:members:|,", "", options, flags=re.MULTILINE)
                found.setdefault(module, []).extend((name, None) for name in names.split())
            elif kind in ("autoclass", "autofunction", "autoexception", "data"):
                name, _, signature = rest.partition("(")
                found.setdefault(module, []).append((name, signature or None))
    return found


def public_module(name: str) -> Any:
    # An integration may need what is not installed.
    return pytest.importorskip(name) if "integrations" in name else importlib.import_module(name)


def test_every_module_for_users_is_known_here() -> None:
    package = ROOT / "anyloader"
    paths = [path.relative_to(ROOT).with_suffix("") for path in package.rglob("[!_]*.py")]
    assert {".".join(path.parts) for path in paths} == PUBLIC.keys() - {"anyloader"}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    found = public_module(module)
    described = {name for name, _ in reference()[module]}
    assert set(found.__all__) - PUBLIC[module] <= described


@pytest.mark.parametrize("module", PUBLIC)
def test_signatures_that_are_written_out_are_those_of_the_code(module: str) -> None:
    found = public_module(module)
    for name, written in reference()[module]:
        thing = getattr(found, name)
        parameters = re.findall(r"(?:^|, )\*?(\w+)(?==|,|\)$)", written or "")
        if parameters and "**" not in str(written):
            assert parameters == [p for p in inspect.signature(thing).parameters if p != "self"]


def test_the_picture_of_the_saving_is_what_its_script_draws() -> None:
    path = DOCS / "_ext" / "saving.py"
    saving = runpy.run_path(str(path))
    assert (DOCS / "_static" / "saving.svg").read_text(encoding="utf-8") == saving["draw"]()
    total = sum(count for _, count, _ in saving["STATEMENTS"])
    assert f"({total} SQL statements) and with it ({len(saving['STATEMENTS'])})" in PAGES[
        "README.md"
    ].read_text().replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("compat", "aiodataloader", "anyloader.compat"),
        ("strawberry", "strawberry.dataloader", "anyloader.compat_strawberry"),
    ],
)
def test_moving_takes_one_import_and_one_scope(name: str, theirs: str, ours: str) -> None:
    before, after = (
        {line.strip() for line in SNIPPETS[f"how-to/{name}_{when}"].read_text().splitlines()}
        for when in ("before", "step")
    )
    assert before - after == {f"from {theirs} import DataLoader"}
    assert {line.partition("  #")[0] for line in after - before} == {
        "from anyloader import LoaderScope",
        f"from {ours} import DataLoader",
        "async with LoaderScope():",
    }
    assert expected(f"how-to/{name}_before") == expected(f"how-to/{name}_step")


def test_the_page_on_moving_names_every_argument_of_aiodataloader() -> None:
    aiodataloader: Any = pytest.importorskip("aiodataloader")
    text = (DOCS / "how-to" / "move-from-aiodataloader.rst").read_text()
    for name in inspect.signature(aiodataloader.DataLoader).parameters:
        assert f"``{name}``" in text


def test_the_page_on_moving_names_every_argument_of_strawberry() -> None:
    strawberry: Any = pytest.importorskip("strawberry.dataloader")
    text = (DOCS / "how-to" / "move-from-strawberry.rst").read_text()
    for name in inspect.signature(strawberry.DataLoader).parameters:
        assert f"``{name}``" in text
