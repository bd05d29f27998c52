"""The files of cluster/, held against the schemas and the code of those who read them."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.heads import REPOSITORY
from tests.packages import environment_of, python, without_dependencies

pytestmark = pytest.mark.slow
jsonschema = pytest.importorskip("jsonschema")  # moto brings it

CLUSTER = REPOSITORY / "cluster"
CRDS = "CONTRANS_KUBERAY_CRDS"
KUBERNETES = ["kubernetes-validate==1.37.0", "importlib-resources==7.1.0"]
SKYPILOT = ["skypilot==0.14.1"]


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(), yaml.CSafeLoader))


def slips(schema: dict[str, Any], content: Any) -> list[str]:
    """Where, and what is wrong there."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(content)
    return [f"{error.json_path}: {error.message}" for error in found]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without fields that it does not name, which `kubectl apply` refuses."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: closed(field) for name, field in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for of in ("items", "additionalProperties"):
        if isinstance(schema.get(of), dict):
            made[of] = closed(schema[of])
    return made


# -- KubeRay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_kuberay_knows_every_field(kind: str) -> None:
    """By its definitions, which are not on the package index: those of its repository or of its chart."""
    name = f"ray.io_ray{kind}s.yaml"
    folder = os.environ.get(CRDS)
    if folder is None:
        pytest.skip(
            f"{CRDS} names no folder with {name}, as helm-chart/kuberay-operator/crds of KubeRay's repository"
        )
    definition = read(Path(folder) / name)["spec"]
    (version,) = (each for each in definition["versions"] if each["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    paths = sorted(CLUSTER.glob(f"ray{kind}-*.yaml"))
    assert len(paths) == 3
    for path in paths:
        content = read(path)
        assert content["apiVersion"] == f"{definition['group']}/v1"
        assert content["kind"] == definition["names"]["kind"]
        # Its schema leaves these to Kubernetes.
        assert set(content.pop("metadata")) == {"name"}
        assert slips(schema, content) == [], path
        content["spec"] |= {"rayversion": "1", "suspend": "no"}
        assert len(slips(schema, content)) == 2


@pytest.mark.network
def test_kubernetes_takes_the_pods(tmp_path: Path) -> None:
    """By its own schemas, with nothing in them that those do not name."""
    clusters = [read(path)["spec"] for path in sorted(CLUSTER.glob("raycluster-*.yaml"))]
    groups = [group for spec in clusters for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert len(groups) == 6
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    (tmp_path / "pods.json").write_text(json.dumps([pod | group["template"] for group in groups]))
    python(
        without_dependencies(tmp_path / "packages", KUBERNETES),
        "import json, kubernetes_validate\n"
        f"pods = json.load(open({str(tmp_path / 'pods.json')!r}))\n"
        "for pod in pods:\n"
        "    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)\n"
        "    pod['spec']['containers'][0]['securityContext']['privilege'] = False\n"
        "    try:\n"
        "        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)\n"
        "    except kubernetes_validate.ValidationError as error:\n"
        "        assert \"'privilege' was unexpected\" in error.message\n"
        "    else:\n"
        "        raise AssertionError('a field that Kubernetes does not know')\n",
    )


# -- the clouds --------------------------------------------------------------------------------------


def of_discovery(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of Google's in the words of JSON Schema: they name others by their id, and what takes 64 bits
    may be a number too."""
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    return schema | {"type": ["string", "integer"]} if schema.get("format") in ("int64", "uint64") else schema


@pytest.mark.network
def test_google_cloud_knows_what_a_node_is_made_of(tmp_path: Path) -> None:
    """By the description of its API that its own client brings, in the version that the head installs."""
    path = CLUSTER / "gcp.yaml"
    (client,) = re.findall(r"google-api-python-client==[\d.]+", path.read_text())
    folder = without_dependencies(tmp_path / "packages", [client])
    text = (folder / "googleapiclient/discovery_cache/documents/compute.v1.json").read_text()
    schemas = json.loads(text, object_hook=of_discovery)["schemas"]
    schema = {"$defs": {name: closed(each) for name, each in schemas.items()}, "$ref": "#/$defs/Instance"}
    for node in read(path)["available_node_types"].values():
        assert slips(schema, node["node_config"]) == []
        wrong = node["node_config"] | {"scheduling": {"provisioningMode": "SPOT", "onHostMaintenance": "END"}}
        assert len(slips(schema, wrong)) == 2


@pytest.mark.network
@pytest.mark.timeout(1200)
def test_skypilot_takes_its_file(tmp_path: Path) -> None:
    """By its own parser, in an environment of its own, without a cloud."""
    path = CLUSTER / "sky.yaml"
    code = (
        "import json, sys, sky\n"
        "content = json.load(sys.stdin)\n"
        "take = lambda **more: sky.Task.from_yaml_config(\n"
        "    {**content, **more}, secrets_overrides=[('RAY_AUTH_TOKEN', 'x')])\n"
        "task = take()\n"
        "(resources,) = task.resources\n"
        "try:\n"
        "    take(resources={**content['resources'], 'spot': True})\n"
        "except sky.exceptions.InvalidSkyPilotConfigError:\n"
        "    print(json.dumps([task.num_nodes, resources.accelerators, sorted(task.secrets)]))\n"
    )
    done = subprocess.run(
        [environment_of(tmp_path / "environment", SKYPILOT), "-c", code],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        input=json.dumps(read(path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [2, {"A100-80GB": 1}, ["RAY_AUTH_TOKEN"]]
