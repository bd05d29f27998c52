"""The files of cluster/, as far as they can be checked without a cloud, Kubernetes or Docker."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from contrans_dist.pipeline.runs import open_recipe
from tests.heads import REPOSITORY
from tests.jobs.scripts import COMMANDS, flags

CLUSTER = REPOSITORY / "cluster"
KINDS = ("cpu", "gpu", "spot")
TO_CHANGE = sorted(path for path in CLUSTER.iterdir() if path.suffix in (".yaml", ".sh"))
PINNED = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (REPOSITORY / "constraints.txt").read_text()))
# Labels of a node, as the clouds give them to spot nodes and to others.
SPOT_NODES = [
    {"cloud.google.com/gke-spot": "true"},
    {"eks.amazonaws.com/capacityType": "SPOT"},
    {"karpenter.sh/capacity-type": "spot", "kubernetes.io/os": "linux"},
    {"kubernetes.azure.com/scalesetpriority": "spot"},
]
OTHER_NODES: list[dict[str, str]] = [
    {},
    {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    {"karpenter.sh/capacity-type": "on-demand"},
    {"kubernetes.azure.com/scalesetpriority": "regular"},
]


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / name).read_text()))


def checked_script(command: str) -> list[str]:
    """The words behind `python jobs/SCRIPT.py`: flags that there are, and a place for results that lasts."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert words[0] == "python"
    assert (REPOSITORY / "jobs" / Path(words[at]).name).is_file()
    arguments = words[at + 1 :]
    given = {word for word in arguments if word.startswith("-")}
    assert "--out" in given
    assert given <= flags(COMMANDS[Path(words[at]).stem])
    out = arguments[arguments.index("--out") + 1]
    assert "://" in out or out.startswith("/")
    return arguments


# -- all of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TO_CHANGE, ids=lambda path: path.name)
def test_three_lines_are_to_change(path: Path) -> None:
    text = path.read_text()
    assert len(re.findall(r"# CHANGE", text)) == 3
    assert "(marked CHANGE)" in text.partition("apiVersion")[0].replace("\n# ", " ")


def test_the_readme_says_which_file_is_for_whom() -> None:
    table = (CLUSTER / "README.md").read_text().partition("\n## ")[0]
    told = set(re.findall(r"(?m)^\| \[?`([\w.-]+)`", table))
    assert told == {path.name for path in CLUSTER.iterdir()} - {"README.md", "Dockerfile.dockerignore"}
    for line in re.findall(r"(?m)^\| `[\w-]+\.(?:yaml|sh)` .*$", table):
        assert len(line.split("|")[3].split(";")) == 3, line


def test_versions_are_those_of_the_constraints() -> None:
    for path in CLUSTER.iterdir():
        text = path.read_text()
        for found in re.findall(r"ray[:-](\d+\.\d+\.\d+)|rayVersion: \"(.*?)\"", text):
            assert PINNED["ray"] in found, path
        for package, version in re.findall(r"([\w.-]+)==([\w.]+)", text):
            assert PINNED.get(package, version) == version, (path, package)


@pytest.mark.parametrize("path", TO_CHANGE, ids=lambda path: path.name)
def test_every_ray_asks_for_a_token_and_none_is_written_down(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"authOptions:\s+mode: token|RAY_AUTH_MODE(=|: )token", text)
    for start in re.findall(r"(?m)^.*\bray start\b(?!`).*$", text):
        if path.suffix == ".yaml":
            assert re.search(r"RAY_AUTH_MODE=token ray start", start), start
    assert not re.search(r"\b[0-9a-f]{32,}\b|\bhf_\w{8}|AKIA\w{8}", text)
    assert "dashboard-host=0.0.0.0" not in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (Debian has it)")
def test_the_shell_script_has_no_slips() -> None:
    subprocess.run(["shellcheck", CLUSTER / "slurm.sh"], check=True)


# -- the image ---------------------------------------------------------------------------------------


def test_the_image_is_made_of_what_is_sent_and_runs_for_no_superuser() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    sent = {
        line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == sent
    assert all((REPOSITORY / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert lines.index("USER 1000") > max(i for i, line in enumerate(lines) if line.startswith("RUN "))
    installed = [line for line in lines if "pip install" in line]
    assert installed
    assert all("--constraint constraints.txt" in line for line in installed)
    assert not [line for line in lines if re.match(r"(ENV|ARG).*(TOKEN|SECRET|KEY)", line)]
    assert any(line.startswith("ENV RAY_AUTH_MODE=token") for line in lines)
    stages = {line.split()[-1] for line in lines if line.startswith("FROM ")}
    assert {"torch-cpu", "torch-cuda", "torch-${DEVICE}"} <= stages
    (python,) = re.findall(r"FROM python:(\d+\.\d+)-slim", "\n".join(lines))
    assert f'python_version = "{python}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_the_image_has_no_slips() -> None:
    linter, text = Path(sys.executable).with_name("hadolint"), (CLUSTER / "Dockerfile").read_text()
    subprocess.run([linter, "-"], input=text, text=True, check=True)
    wrong = text.replace("--no-cache-dir ", "")
    assert "DL3042" in subprocess.run([linter, "-"], input=wrong, text=True, capture_output=True).stdout


# -- KubeRay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
class TestKubeRay:
    """What KubeRay's and Kubernetes' schemas do not know; test_cluster_schemas.py has those."""

    @pytest.fixture
    def job(self, kind: str) -> dict[str, Any]:
        return read(f"rayjob-{kind}.yaml")

    @pytest.fixture
    def cluster(self, job: dict[str, Any]) -> dict[str, Any]:
        return dict(job["spec"]["rayClusterSpec"])

    @pytest.fixture
    def pods(self, cluster: dict[str, Any]) -> list[dict[str, Any]]:
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [group["template"]["spec"] for group in groups]

    def test_a_job_makes_the_cluster_that_can_also_stay(self, kind: str, job: dict[str, Any]) -> None:
        stays = read(f"raycluster-{kind}.yaml")
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert (stays["apiVersion"], stays["kind"]) == ("ray.io/v1", "RayCluster")
        assert stays["metadata"] == job["metadata"] == {"name": f"contrans-{kind}"}
        assert stays["spec"] == job["spec"]["rayClusterSpec"]

    def test_a_job_is_made_of_fields_that_exist(self, kind: str, job: dict[str, Any]) -> None:
        known = {
            *("entrypoint", "runtimeEnvYAML", "submissionMode", "backoffLimit", "activeDeadlineSeconds"),
            *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "submitterConfig", "rayClusterSpec"),
        }
        spec = job["spec"]
        assert (
            {"entrypoint", "rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes"} <= set(spec) <= known
        )
        assert spec["submissionMode"] == "K8sJobMode"
        assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}

    def test_workers_have_the_gpus_that_the_recipe_asks_for(
        self, kind: str, job: dict[str, Any], cluster: dict[str, Any]
    ) -> None:
        recipe = open_recipe(Path(checked_script(job["spec"]["entrypoint"])[0]))
        (group,) = cluster["workerGroupSpecs"]
        (worker,) = group["template"]["spec"]["containers"]
        gpus = int(worker["resources"]["limits"].get("nvidia.com/gpu", 0))
        if kind == "cpu":
            assert gpus == 0
            assert not recipe.cluster.gpus_per_actor
        else:
            assert gpus >= (recipe.cluster.gpus_per_actor or 1) >= 1
            assert {"nvidia.com/gpu"} <= {each["key"] for each in group["template"]["spec"]["tolerations"]}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert worker["image"].endswith("-cpu" if kind == "cpu" else "-cuda")

    def test_every_node_runs_one_image_and_sees_one_storage(
        self, kind: str, cluster: dict[str, Any], pods: list[dict[str, Any]]
    ) -> None:
        assert len({pod["containers"][0]["image"] for pod in pods}) == 1
        assert cluster["rayVersion"] in pods[0]["containers"][0]["image"]
        for pod in pods:
            volumes = {volume["name"] for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            assert set(mounts.values()) <= volumes
            assert "/shared" in mounts
            assert pod["securityContext"]["runAsUser"] == 1000
        # The head's working directory is the job's: relative paths of the recipe start there.
        assert pods[0]["containers"][0]["workingDir"] == "/shared"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def admitted(pod: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether Kubernetes would put a pod on a node with these labels: one term holds, with all in it."""
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    holds = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
    }
    return any(
        all(holds[each["operator"]](each["key"], each["values"]) for each in term["matchExpressions"])
        for term in affinity["nodeSelectorTerms"]
    )


def test_spot_nodes_are_for_workers_alone() -> None:
    spec = read("raycluster-spot.yaml")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]
    assert [admitted(head, labels) for labels in SPOT_NODES + OTHER_NODES] == [False] * 4 + [True] * 4
    assert [admitted(worker, labels) for labels in SPOT_NODES + OTHER_NODES] == [True] * 4 + [False] * 4
    assert worker["terminationGracePeriodSeconds"] < 30


# -- the clouds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_launcher_takes_its_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = read(f"{name}.yaml")
    whole = prepare_config(content)
    validate_config(whole)
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**whole, "max_worker": 3})
    assert content["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    # The hub's token is looked for where the line that is commented out would bring it.
    (brought,) = re.findall(
        r"(?m)^  # (\S+): ~/\.cache/huggingface/token$", (CLUSTER / f"{name}.yaml").read_text()
    )
    assert f"--env HF_TOKEN_PATH={brought}" in content["docker"]["run_options"]
    head, worker = (content["available_node_types"][kind] for kind in ("head", "worker"))
    assert head["resources"]["CPU"] == 0
    assert worker["min_workers"] == worker["max_workers"] == content["max_workers"]
    start = content["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_aws_knows_what_a_node_is_made_of() -> None:
    """By botocore's own description of the call that makes a node."""
    session = pytest.importorskip("botocore.session")
    validate = pytest.importorskip("botocore.validate")
    model = session.get_session().get_service_model("ec2").operation_model("RunInstances")
    nodes = read("aws.yaml")["available_node_types"]
    for node in nodes.values():
        call = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        assert not validate.ParamValidator().validate(call, model.input_shape).has_errors()
        wrong = {**call, "InstanceMarketOption": {}}
        assert validate.ParamValidator().validate(wrong, model.input_shape).has_errors()
    assert nodes["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]


def test_skypilot_runs_the_script_on_the_first_node_alone() -> None:
    task = read("sky.yaml")
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert task["envs"]["RAY_AUTH_MODE"] == "token"
    (command,) = re.findall(r"(?m)^ *RAY_ADDRESS=127.0.0.1:6379 (python .*)$", task["run"])
    named = command.replace('"$RECIPE"', task["envs"]["RECIPE"]).replace('"$OUT"', task["envs"]["OUT"])
    assert open_recipe(Path(checked_script(named)[0])).target.id
    subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True, check=True)
