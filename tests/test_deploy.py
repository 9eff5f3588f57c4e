"""What is in `deploy/`, as far as that goes without a cloud: schemas, linters, a played cloud."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
KUBERAY = sorted(DEPLOY.glob("kuberay-*.yaml"))
KUBERNETES = "1.31"


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_aws_cluster_fits_rays_own_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = loaded(DEPLOY / "aws.yaml")
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**found, "max_worker": 3}, schema)


def test_the_aws_cluster_is_locked_and_its_workers_are_spot() -> None:
    found = loaded(DEPLOY / "aws.yaml")
    head, spot = (found["available_node_types"][name] for name in ("head", "spot"))
    assert found["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for kind in (head, spot):
        assert kind["node_config"]["IamInstanceProfile"]  # so that no key is on any machine
        # What Ray puts its own image in place of, or an image; EC2 takes no other name.
        assert re.fullmatch(r"latest_dlami|ami-[0-9a-f]{8,17}", kind["node_config"]["ImageId"])
    starts = [*found["head_start_ray_commands"], *found["worker_start_ray_commands"]]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert found["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in line for line in found["setup_commands"])
    [install] = [line for line in found["setup_commands"] if "pip install" in line]
    assert "./diptych-" in install  # a file: no package index has it
    for place in found["file_mounts"].values():
        assert place.startswith("~") or (DEPLOY.parent / place).exists()


def record(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


TEXT, WHOLE, YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
WORDS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": WORDS, "template": record(["spec"], metadata={}, spec={})}
CLUSTER = record(
    ["headGroupSpec", "workerGroupSpecs", "authOptions", "rayVersion"],
    rayVersion=TEXT,
    authOptions=record(["mode"], mode={"const": "token"}, secretName=TEXT),
    enableInTreeAutoscaling=YES,
    autoscalerOptions=record([], idleTimeoutSeconds=WHOLE, resources={}),
    headGroupSpec=record(["rayStartParams", "template"], serviceType=TEXT, **GROUP),
    workerGroupSpecs={
        "type": "array",
        "minItems": 1,
        "items": record(
            ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            **GROUP,
        ),
    },
)
JOB = record(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=WHOLE,
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=WHOLE,
    rayClusterSpec=CLUSTER,
)
"""Those fields of KubeRay 1.6 (ray.io/v1) that are used here, each with its type."""


def of(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    named = record(["name"], name={"type": "string", "pattern": "^[a-z][a-z0-9-]*$"})
    return record(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=named,
        spec=spec,
    )


SCHEMAS = {"RayCluster": of("RayCluster", CLUSTER), "RayJob": of("RayJob", JOB)}


def cluster_of(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"].get("rayClusterSpec", found["spec"])


def groups(found: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(found)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_kuberay_manifest_has_kuberays_fields(path: Path) -> None:
    found = loaded(path)
    jsonschema.validate(found, SCHEMAS[found["kind"]])
    cluster_of(found)["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(found, SCHEMAS[found["kind"]])


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_its_pods_are_pods(path: Path) -> None:
    """Against the schema of Kubernetes itself, nothing unknown in it."""
    found = loaded(path)
    for group in groups(found):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        named = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert {one["name"] for one in container.get("volumeMounts", [])} <= named
            limits, asked = (container["resources"][name] for name in ("limits", "requests"))
            assert limits == asked  # else Ray counts what it does not have
        pod["spec"]["container"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_kuberay_job_runs_a_command_that_there_is() -> None:
    words = loaded(DEPLOY / "kuberay-job.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["diptych", "train"]
    from diptych.__main__ import app

    command: Any = __import__("typer").main.get_command(app)
    command.commands["train"].make_context("train", words[2:])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    for words in (["bash", "-n"], [shellcheck]):
        done = subprocess.run([*words, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for commands that only write down how they were called."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def pretend(tools: Path, name: str, then: str = "") -> None:
    file = tools / name
    file.write_text(f'#!/bin/bash\necho "{name} $*" >> {tools.parent}/said\n{then}\n')
    file.chmod(0o755)


def said(tools: Path) -> list[str]:
    return (tools.parent / "said").read_text().splitlines()


class Metadata(http.server.BaseHTTPRequestHandler):
    """EC2's metadata: a token first, then 404 twice, then the notice."""

    asked = 0

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200, "key")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "key"
        Metadata.asked += 1
        self._answer(200 if Metadata.asked > 2 else 404, '{"action": "terminate"}')

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_spot_notice_drains_the_node(tools: Path, metadata: str) -> None:
    pretend(tools, "ray")
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "METADATA": metadata, "EVERY_S": "0.1"}
    words = ["bash", str(DEPLOY / "spot_watch.sh"), "10.0.0.1:6379"]
    subprocess.run(words, env=env, check=True, timeout=30)
    [line] = said(tools)
    assert line.startswith("ray drain-node --address 10.0.0.1:6379 --reason DRAIN_NODE_REASON_PREE")
    assert "--deadline-remaining-seconds 110" in line
    assert Metadata.asked == 3


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_pod_that_is_taken_drains_its_node_and_waits_for_hosts(path: Path, tools: Path) -> None:
    [container] = groups(loaded(path))[1]["template"]["spec"]["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    pretend(tools, "ray")
    cmdline = tools.parent / "proc" / "17" / "cmdline"
    cmdline.parent.mkdir(parents=True)
    cmdline.write_bytes(b"ray::Host\0")
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "PROC": str(tools.parent / "proc")}
    waiting = subprocess.Popen(hook, env=env)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    cmdline.write_bytes(b"")
    assert waiting.wait(20) == 0
    [line] = said(tools)
    assert line.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    pretend(tools, "ray", "exit 1")  # there is no cluster any more
    cmdline.write_bytes(b"ray::Host\0")
    assert subprocess.run(hook, env=env, timeout=20).returncode == 0


def slurm(tools: Path, *words: str, hosts: str, **env: str) -> subprocess.Popen[str]:
    pretend(tools, "scontrol", f"printf '{hosts}'")
    pretend(tools, "srun")
    pretend(tools, "getent", "echo '10.0.0.1 STREAM one'")
    known = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "71234", "HOME": str(tools.parent)}
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", **known, **env}
    return subprocess.Popen(
        ["bash", str(DEPLOY / "slurm.sh"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_job_is_a_head_nodes_and_a_run(tools: Path) -> None:
    pretend(tools, "diptych", '[ "$1" != train ] || exit 7')
    job = slurm(tools, "my.yaml", "--runs", "s3://b/r", hosts=r"n1\nn2\nn3\n")
    out = job.communicate(timeout=30)[0]
    assert job.returncode == 7, out  # that of the run
    lines = said(tools)
    assert "diptych up --ip 10.0.0.1 --port 21234 --dashboard-port 31234" in lines
    [step] = [line for line in lines if line.startswith("srun")]
    assert "--nodes=2 --ntasks=2 --nodelist=n2,n3" in step
    assert "diptych join 10.0.0.1:21234 && exec sleep infinity" in step
    assert "diptych train my.yaml --runs s3://b/r --ray 10.0.0.1:21234" in lines
    assert lines[-1] == "diptych down"


def test_a_slurm_job_that_is_taken_ends_its_run_in_order(tools: Path) -> None:
    """SIGTERM goes on to the run, whose own exit code is that of the job."""
    keep = "[ \"$1\" = train ] || exit 0\ntrap 'exit 130' TERM\ntouch $HOME/on\nsleep 20 & wait"
    pretend(tools, "diptych", keep)
    job = slurm(tools, "my.yaml", hosts=r"n1\n")
    while not (tools.parent / "on").exists():
        assert job.poll() is None
    job.terminate()
    assert job.wait(timeout=15) == 130
    assert job.stdout is not None
    job.stdout.close()
    lines = said(tools)
    assert not [line for line in lines if line.startswith("srun")]
    assert lines[-1] == "diptych down"


def test_a_slurm_job_without_a_recipe_says_how(tools: Path) -> None:
    pretend(tools, "diptych")
    job = slurm(tools, hosts=r"n1\n")
    assert "usage: sbatch" in job.communicate(timeout=15)[0]
    assert job.returncode == 2
