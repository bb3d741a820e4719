"""The rooms of dco_core and the imports between them run one way, as ARCHITECTURE.md draws them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "dco_core"
GROUND = ("errors", "schedules", "guidance", "suggested_scales", "losses", "sampling")


def rooms() -> list[str]:
    """From the ground up, as the table of rooms in ARCHITECTURE.md lists them."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("| room | subject |") :]
    table = table[: table.index("\n\n")]
    return re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)


def imports(file: Path) -> set[str]:
    """The places at the top of dco_core that a file imports, also inside functions."""
    found = set()
    package = list(file.relative_to(CORE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module.split(".") if node.module else [])]
            found |= {target[0]} if target else {alias.name for alias in node.names}
    return found


def test_every_folder_is_in_the_table_and_every_row_is_a_folder():
    folders = {p.name for p in CORE.iterdir() if (p / "__init__.py").is_file()}
    assert folders == set(rooms())


def test_the_root_holds_what_the_paper_says():
    assert {p.stem for p in CORE.glob("*.py")} - {"__init__", "__main__"} <= set(GROUND)


@pytest.mark.parametrize("room", rooms())
def test_no_import_runs_back_up(room):
    order = rooms()
    above = set(order[order.index(room) + 1 :])
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (CORE / room).rglob("*.py")
        for name in imports(file) & above
    }
    assert not wrong


def test_places_are_few_and_so_are_the_imports_between_them():
    """A room or a file at the root is a place; __init__ and __main__ only show what there is."""
    places = {*rooms(), *(p.stem for p in CORE.glob("*.py") if not p.stem.startswith("__"))}
    found = set()
    for place in places:
        files = [CORE / f"{place}.py"] if place in GROUND else (CORE / place).rglob("*.py")
        found |= {(place, name) for file in files for name in imports(file) & places - {place}}
    assert len(places) <= 21 and len(found) <= 90


def test_what_the_paper_says_imports_no_room():
    for name in GROUND:
        file = CORE / f"{name}.py"
        if file.is_file() and name != "sampling":  # sampling needs a Denoiser
            assert imports(file) <= {*GROUND}, file
    for file in (CORE / "sampling.py",):
        assert not file.is_file() or imports(file) <= {*GROUND, "network", "training"}
