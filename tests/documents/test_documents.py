"""What the documents say is there: commands, files, links."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from flows.cli.verbs import app
from flows.plan.fit import CommonFit, FitGrid, RareFit
from flows.plan.promotion import Guards
from heads.spec import Fit

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "infra").glob("*.md"))]
COMMAND = typer.main.get_command(app)


def _commands() -> list[tuple[str, list[str]]]:
    """Every `headstart ...` line of a shell block, with the page it stands on."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                words = line.split("#")[0].strip().removeprefix("$ ").split()
                if words and words[0].endswith("headstart"):
                    found.append((page.name, words[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), _commands(), ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_every_command_in_the_documents_is_one_that_parses(page: str, words: list[str]) -> None:
    command: click.Command = COMMAND
    while isinstance(command, click.Group):
        assert words, f"{page}: a verb is missing"
        assert words[0] in command.commands, f"{page}: headstart has no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    command.make_parser(click.Context(command)).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_make_target_in_the_documents_exists() -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    used = {word for page in PAGES for word in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M)}
    assert used <= known


def test_the_plan_of_the_example_deployments_is_the_demo() -> None:
    example = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    demo = yaml.safe_load((ROOT / "flows" / "plans" / "demo.yaml").read_text())
    assert [deployment["parameters"] for deployment in example["deployments"]] == [{"plan": demo}] * 2


def test_every_imported_distribution_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[\[<>=~ ]", line)[0].lower() for line in project["dependencies"] + project["optional-dependencies"]["flows"]
    }
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "botocore": "boto3"}
    names["pydantic_settings"] = "pydantic-settings"
    code = "\n".join(path.read_text() for room in ("heads", "flows") for path in (ROOT / room).rglob("*.py"))
    imported = {
        m for pair in re.findall(r"^\s*(?:from ([a-zA-Z_]\w*)[\w.]* import|import ([a-zA-Z_]\w*))", code, re.M) for m in pair if m
    }
    outside = imported - set(sys.stdlib_module_names) - {"flows", "heads"}
    assert {names.get(name, name).lower() for name in outside} <= declared


def _allowed(schema: dict[str, Any]) -> str:
    """What a field of the fit takes, from its JSON schema."""
    parts = [part for part in schema.get("anyOf", [schema]) if part.get("type") not in ("null", "array")]
    (part,) = parts
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if part["type"] == "boolean":
        return "`true`, `false`"
    least = f"from {part['minimum']:g}" if "minimum" in part else f"above {part['exclusiveMinimum']:g}"
    most = f" to {part['maximum']:g}" if "maximum" in part else ""
    return least + (most or (f" to below {part['exclusiveMaximum']:g}" if part.get("exclusiveMaximum", 1e9) < 1e9 else ""))


def _fit_table() -> list[str]:
    """The README's table of fit options, from the model that plans are read by: common ones first."""
    schemas = RareFit.model_json_schema()["properties"] | Fit.model_json_schema()["properties"]
    names = sorted(FitGrid.model_fields, key=lambda name: name not in CommonFit.model_fields)
    rows = []
    for name in names:
        field = FitGrid.model_fields[name]
        default = "empty" if field.default is None else f"`{field.default}`".lower()
        rows.append(f"| `{name}` | {default} | {_allowed(schemas[name])} | {field.description} |")
    return ["| option | default | allowed | what it is |", "| --- | --- | --- | --- |", *rows]


def test_the_readmes_table_of_fit_options_is_the_models() -> None:
    told = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    start = told.index("| option | default | allowed | what it is |")
    assert told[start : start + 2 + len(FitGrid.model_fields)] == _fit_table(), "the lines should be:\n" + "\n".join(_fit_table())


def test_the_readmes_table_of_guards_has_each_that_a_plan_may_set() -> None:
    table = (ROOT / "README.md").read_text().partition("| guard | passes unless |\n")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.M)) == sorted(Guards.model_fields)


def test_every_file_that_contributors_are_sent_to_is_there() -> None:
    named = set(re.findall(r"`((?:flows|heads|tests|infra)/[a-z_/.]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


MOST_FILES = 30
# The program that Ray starts: who orders it names it by a command.
STARTED_AS_A_PROCESS = {ROOT / "flows/job/__main__.py"}


def _way_of_a_retraining() -> list[Path]:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    part = text.partition("## One retraining, file by file")[2].partition("\n## ")[0]
    return [ROOT / target for target in re.findall(r"^\d+\. \[[^\]]+\]\(([^)]+)\)", part, re.M)]


def _imported(file: Path) -> set[Path]:
    """The files that a file names in its imports, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{each.name}" for each in node.names)):
                place = ROOT.joinpath(*name.split("."))
                found |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
    return found


def test_the_way_of_a_retraining_is_short_enough_to_be_read() -> None:
    way = _way_of_a_retraining()
    assert 0 < len(way) <= MOST_FILES
    assert len(set(way)) == len(way)


def test_each_file_on_the_way_of_a_retraining_is_imported_by_one_before_it() -> None:
    known: set[Path] = set()
    for number, file in enumerate(_way_of_a_retraining(), start=1):
        assert file.is_file(), f"{number}. {file} is not there"
        assert number == 1 or file in known | STARTED_AS_A_PROCESS, f"{number}. {file} is imported by none before it"
        named = _imported(file)
        # What is asked of a room is asked of its face, which hands it on.
        known |= named.union(*(_imported(face) for face in named if face.name == "__init__.py"))
