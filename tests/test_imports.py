"""`diptych.data` on a laptop: no ray, no deepspeed, no process groups, and quick to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(f"diptych.data.{path.stem}" for path in (ROOT / "data").glob("[!_]*.py"))
REPORT = """
import json, resource, sys
{imports}
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, sorted(sys.modules)]))
"""


def imported(*modules: str, path: str | None = None) -> tuple[float, set[str]]:
    """(CPU seconds of a fresh interpreter, the modules that it ended up with)."""
    code = REPORT.format(imports="\n".join(f"import {module}" for module in modules))
    environment = {"PATH": "/usr/bin:/bin"} | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seconds, names = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(names)


def test_data_imports_no_cluster() -> None:
    _, bare = imported("torch")
    _, ours = imported("torch", "diptych.data", *MODULES)
    tops = {name.partition(".")[0] for name in ours - bare}
    assert "diptych" in tops
    assert not tops & {"ray", "deepspeed", "transformers", "diffusers", "open_clip"}
    assert not {name for name in ours - bare if name.startswith("torch.distributed")}


def test_a_command_imports_no_deepspeed_and_a_rank_no_ray() -> None:
    """DeepSpeed takes seconds and writes to stdout; Ray would be imported at every fork."""
    _, driver = imported("diptych.__main__", "diptych.cluster.train", "diptych.cluster.run_verbs")
    assert "diptych.cluster.worker" in driver
    assert "deepspeed" not in driver
    _, rank = imported("diptych.cluster.birth", "diptych.cluster.worker", "diptych.cluster.engine")
    assert "deepspeed" in rank
    assert "ray" not in rank


def test_a_command_that_trains_nothing_imports_no_torch() -> None:
    """`--help`, `jobs`, `logs` and `data index` answer while torch would still be imported."""
    _, names = imported("diptych.__main__", "diptych.cluster.jobs", "diptych.data.index")
    assert "torch" not in names


def test_data_imports_quickly() -> None:
    """CPU time, the best of three, so that a busy machine does not decide."""
    bare = min(imported("torch")[0] for _ in range(3))
    ours = min(imported("torch", "diptych.data", *MODULES)[0] for _ in range(3))
    assert ours - bare < 2.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install .` of the committed and added files, without dependencies, in a fresh place."""
    place = tmp_path_factory.mktemp("installed")
    tree, target = place / "source", place / "site"
    subprocess.run(["git", "checkout-index", "-a", f"--prefix={tree}/"], cwd=ROOT, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(tree)], check=True, capture_output=True)
    return target


def test_the_installed_package_has_every_module(installed: Path) -> None:
    for folder in ("data", "pretrain", "finetune", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (installed / "diptych" / path.relative_to(ROOT)).exists(), path
    assert not (installed / "data").exists()


def test_the_installed_package_imports_alone(installed: Path) -> None:
    _, names = imported("diptych.data.loader", path=str(installed))
    assert not {"ray", "deepspeed"} & names
