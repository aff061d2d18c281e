"""Every Python block of the README and docs runs as pasted, and prints what it says.

A `print` is followed by what it prints: a comment behind it, or comment lines below it, where
`...` stands for anything. A block marked `python continued` goes on where the last one ended.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import tokenize
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import Any

import pytest

from tests.house.source import ROOT
from throughtime import cells
from throughtime.cli.commands.train import NUMBERS
from throughtime.compiler.plan import why_unplanned
from throughtime.laws import LAWS
from throughtime.tasks import available
from throughtime.tasks.recipe import Recipe, recipe_from

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```python( continued)?\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of a page, with those it continues, and the line its last one starts at."""

    page: Path
    line: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCED.finditer(text):
        before = found[-1].parts if match[1] else ()
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page, line, (*before, match[2])))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def promised(code: str) -> str:
    """What a block says it prints."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    lines, said = code.splitlines(), []
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Expr)]
    for statement in sorted(calls, key=lambda n: n.lineno):
        if ast.unparse(statement).startswith("print("):
            number = statement.end_lineno
            here = [comments[number]] if number in comments else []
            while number < len(lines) and lines[number].startswith("#"):
                number += 1
                here.append(lines[number - 1])
            said += here or ["# (nothing: write down what this prints)"]
    return "".join(f"{line[1:].removeprefix(' ')}\n" for line in said)


def printed(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(code, "<block>", "exec"), names)
    return shown.getvalue()


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's word on its own kernel
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # on its own torch.func
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_and_prints_what_it_says(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in block.parts:
        shown = printed(code, names)
    expected = promised(block.parts[-1])
    assert OutputChecker().check_output(expected, shown, ELLIPSIS), (
        f"it says\n{expected}and prints\n{shown}"
    )


def test_the_readme_carries_itself_in_its_first_screen() -> None:
    """One sentence, install, a cell, the swap, speed, a picture, what it does and does not."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    text = "\n".join(lines[:42])
    order = ["# throughtime", "pip install", "make train", "```python", "from_torch", "| measured",
             "docs/pictures/", "**It does**", "**It does not yet**"]  # fmt: skip
    places = [text.find(word) for word in order]
    assert -1 not in places and places == sorted(places)
    (code,) = FENCED.findall(text)
    assert len([line for line in code[1].splitlines() if line]) <= 10


def test_the_readmes_counts_are_those_of_the_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = ("no one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
             "fifteen sixteen seventeen eighteen nineteen twenty").split()  # fmt: skip
    assert f"{words[len(cells.available())]} [cells](docs/cells.md)" in text
    assert f"random weights, odd sizes | {len(LAWS)} |" in text


def test_the_compilers_page_says_that_all_cells_compile_and_they_do() -> None:
    text = (ROOT / "docs" / "compiler.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| cells \| .*$", text, re.M)
    known = cells.available()
    built = {n: kind(2) if n in ("LSTMProjected", "Skip") else kind() for n, kind in known.items()}
    assert {n for n, cell in built.items() if why_unplanned(cell) is None} == set(known)
    assert row.startswith("| cells | all in `cells/`, and yours")


COMMANDS = re.findall(r"throughtime ((?:train|predict|evaluate|cells)\b[^`\n]*)", "".join(
    page.read_text(encoding="utf-8") for page in PAGES
))  # fmt: skip


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_a_command_shown_has_only_options_there_are(command: str) -> None:
    """And only values that the recipe takes; choices are written A|B."""
    named = [kind.options for name, kind in available().items() if name in command.split()]
    options = named[0] if named else Recipe
    flags = {f.name.replace("_", "-"): f for f in dataclasses.fields(options)}
    for name, said in re.findall(r"--([\w-]+)(?: ([\w.|/]+))?", command.partition("#")[0]):
        if name in ("out", "resume", "debug", "watch", "on", "address"):  # of the command
            continue
        if name in {number for number, *_ in NUMBERS}:
            assert said.isdecimal()
            continue
        for value in said.split("|"):
            kind = {"int": int, "float": float}.get(str(flags[name].type), str)
            if not value.isupper():  # a placeholder
                recipe_from({flags[name].name: kind(value)}, options)


def test_every_face_of_make_that_is_shown_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^ {4}|`)make (\w+)", page.read_text(encoding="utf-8"), re.M):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, heading = target.partition("#")
            other = (page.parent / file).resolve() if file else page
            if target.startswith("http"):
                continue
            if not other.exists() or (heading and heading not in headings(other)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(1)  # 1\n", "1\n"),
        ("x = 2  # a reason\nprint(x)\n# 2\n# 3\n\n# prose\n", "2\n3\n"),
        ("print(1)\n", "(nothing: write down what this prints)\n"),
    ],
)
def test_what_a_block_promises_is_read(code: str, expected: str) -> None:
    assert promised(code) == expected
