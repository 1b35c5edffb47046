"""The architecture, as a test: who may import whom, and how long things may get."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_jax"
SIBLINGS = {"diffusion", "models", "data", "training", "evaluation"}
# layer -> the layers that it may import besides itself
ARROWS = {
    "types": set(),
    **{sibling: {"types"} for sibling in SIBLINGS},
    "weights": {"types", "models", "diffusion"},
    "tasks": {"types", "diffusion", "models"},
    "pipelines": {"types", "diffusion", "models"},
}
# the only files that see a config
ENTRY_POINTS = {
    "build",
    "command",
    "convert_pickle",
    "evaluate",
    "export",
    "finetuning",
    "frozen_towers",
    "inspect",
    "previews",
    "published",
    "published_unclip",
    "rank",
    "runs",
    "sample",
    "sampling",
    "train",
    "unclip_runs",
}
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
FIGURES = [path for path in SCRIPTS if path.name.startswith(("fig_", "table_"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
NOT_IN_THE_PACKAGE = {"torch", "torchvision", "tensorflow", "diffusers"}
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_LINES_OF_A_FIGURE = 120


def name_of(path):
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def layer_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_layers(path):
    """The layers of the package that the file imports."""
    for name in imports(path):
        package, *rest = name.split(".")
        if package == "diffusion_jax" and rest and rest[0] != "__version__":
            yield rest[0]


def check_arrows(path, layer):
    allowed = ARROWS[layer] | {layer}
    wrong = set(own_layers(path)) - allowed
    assert not wrong, f"{name_of(path)} may import {sorted(allowed)}, not {wrong}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path):
    layer = layer_of(path)
    if layer != "__init__" and layer not in ENTRY_POINTS:
        check_arrows(path, layer)


def test_every_layer_is_known():
    layers = {layer_of(path) for path in FILES} - {"__init__"}
    assert layers <= ARROWS.keys() | ENTRY_POINTS


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=name_of)
def test_no_torch_and_no_tensorflow(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & NOT_IN_THE_PACKAGE


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_entry_points_see_a_config(path):
    roots = {name.split(".")[0] for name in imports(path)}
    if layer_of(path) not in ENTRY_POINTS:
        assert "ml_collections" not in roots


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_configs_are_plain_data(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots <= {"ml_collections", "configs", "__future__"}


@pytest.mark.parametrize("path", FILES + SCRIPTS + CONFIGS, ids=name_of)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FIGURES, ids=name_of)
def test_scripts_of_figures_and_tables_are_shorter_still(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES_OF_A_FIGURE


@pytest.mark.parametrize("path", FILES + SCRIPTS + CONFIGS, ids=name_of)
def test_every_file_opens_with_a_docstring(path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_an_import_of_a_sibling_within_a_function_is_found(tmp_path):
    path = tmp_path / "diffusion_jax_file.py"
    path.write_text("def f():\n    from diffusion_jax.models import unet\n")
    with pytest.raises(AssertionError, match="may import"):
        check_arrows(path, "diffusion")
