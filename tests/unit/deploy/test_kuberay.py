"""deploy/kuberay: every field is known, Ray's autoscaler can read the groups, and what the settings ask for fits the nodes.

CLIPSAN_KUBERAY_CRDS may name a folder with KubeRay's own definitions (ray.io_rayjobs.yaml, ray.io_rayclusters.yaml); the files are then
checked against these as well.
"""

import copy
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from kubernetes_validate.utils import schema_contents
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from referencing import Registry, Resource

from tests.unit.deploy.helpers import DEPLOY, Bundle, commands, demands, misspellings, places, settings_of
from tests.unit.deploy.kuberay_schema import RESOURCES

FILES = sorted((DEPLOY / "kuberay").glob("*.yaml"))
JOBS = [path for path in FILES if path.name.startswith("rayjob-")]
KUBERNETES = "kubernetes-json-schema/v1.34.0-local-strict"
FREE = re.compile(r"^data\.|\.matchLabels\.|\.(requests|limits)\.|(resources|rayStartParams|labels)\.[\w-]+$")
"""Paths whose last key is the user's own. `resources.requests` is no such path, and is checked by its schema."""


def documents(file: Path) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all(file.read_text()) if tree]


def spec_of(tree: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's spec, of a RayCluster or within a RayJob."""
    return tree["spec"]["rayClusterSpec"] if tree["kind"] == "RayJob" else tree["spec"]


@cache
def kubernetes(kind: str) -> Any:
    definitions = Resource.from_contents(schema_contents(f"{KUBERNETES}/_definitions.json", "1.34"))
    schema = schema_contents(f"{KUBERNETES}/{kind}.json", "1.34")
    return jsonschema.validators.Draft202012Validator(schema, registry=definitions @ Registry())


def check(tree: dict[str, Any]) -> None:
    """Raise ValidationError for a field that KubeRay or Kubernetes does not know, or a value of another type."""
    if tree.get("kind") not in RESOURCES:
        group = "networking-" if tree["kind"] == "NetworkPolicy" else ""
        kubernetes(f"{tree['kind'].lower()}-{group}v1").validate(tree)
        return
    jsonschema.validate(tree, RESOURCES[tree["kind"]])
    spec = spec_of(tree)
    for group in [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]:
        kubernetes("podtemplate-v1").validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        )
        check_start(group["rayStartParams"])


def check_start(parameters: dict[str, str]) -> None:
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    if unknown := set(parameters) - known:
        raise jsonschema.ValidationError(f"`ray start` has no {', '.join(sorted(unknown))}")


def node_types(tree: dict[str, Any]) -> dict[str, Any]:
    """Node types as Ray's autoscaler reads them from the resource."""
    cluster = {"metadata": tree["metadata"], "spec": spec_of(tree)}
    types: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return types


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_fields_are_known(file: Path) -> None:
    for tree in documents(file):
        check(tree)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_misspelled_field_is_refused(file: Path) -> None:
    wrong = [(path, tree) for good in documents(file) for path, tree in misspellings(good, FREE)]
    assert len(wrong) >= (60 if file.name.startswith("ray") else 8)
    assert [path for path, tree in wrong if accepted(tree)] == []


def accepted(tree: dict[str, Any]) -> bool:
    try:
        check(tree)
    except (jsonschema.ValidationError, KeyError):
        return False
    return True


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_against_the_definitions_of_kuberay(file: Path) -> None:
    folder = os.environ.get("CLIPSAN_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KubeRay's definitions are not here; CLIPSAN_KUBERAY_CRDS names a folder that has them")
    for tree in documents(file):
        if tree["kind"] not in RESOURCES:
            continue
        text = (Path(folder) / f"ray.io_{tree['kind'].lower()}s.yaml").read_text()
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        validator = jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
        validator.validate(tree)
        assert [path for path, wrong in misspellings(tree, FREE) if validator.is_valid(wrong)] == []


def strict(schema: Any) -> Any:
    """The API server prunes unknown fields; here they are errors. `metadata` is described elsewhere."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if (
        isinstance(found.get("properties"), dict)
        and "type" in found
        and not found.get("x-kubernetes-preserve-unknown-fields")
    ):
        found.setdefault("additionalProperties", False)
    if found.get("type") == "object" and "apiVersion" in found.get("properties", {}):
        found["properties"]["metadata"] = RESOURCES["RayJob"]["properties"]["metadata"]
        found["required"] = [*found.get("required", []), "apiVersion", "kind", "metadata", "spec"]
    return found


@pytest.mark.parametrize("file", [path for path in FILES if path.name.startswith("ray")], ids=lambda path: path.name)
def test_versions_and_cleaning_up(file: Path) -> None:
    for tree in documents(file):
        if tree["kind"] not in RESOURCES:
            continue
        spec = spec_of(tree)
        assert spec["rayVersion"] == ray.__version__
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["authOptions"]["mode"] == "token"
        if tree["kind"] == "RayJob":
            assert tree["spec"]["shutdownAfterJobFinishes"] is True
            assert tree["spec"]["ttlSecondsAfterFinished"] > 0
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            # the autoscaler beside the head asks the API server; workers ask it nothing
            assert pod.get("automountServiceAccountToken", True) is (group is spec["headGroupSpec"])
            (container,) = pod["containers"]
            confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == confined
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert {"secretRef": {"name": "clipsan-s3", "optional": True}} in container["envFrom"]
            gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"].endswith("-cuda" if gpu else "-cpu")


def test_only_the_head_reaches_mlflow_and_only_ray_the_workers() -> None:
    ray_pods, head = documents(DEPLOY / "kuberay" / "network.yaml")
    everyone = {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}
    assert ray_pods["spec"]["podSelector"] == everyone
    among, submitting = ray_pods["spec"]["ingress"]
    assert among == {"from": [{"podSelector": everyone}]}
    assert [port["port"] for port in submitting["ports"]] == [8265]
    open_ports = [port["port"] for rule in ray_pods["spec"]["egress"] for port in rule.get("ports", [])]
    assert 5000 not in open_ports
    assert head["spec"]["podSelector"] == {"matchLabels": {"ray.io/node-type": "head"}}


def test_the_standing_cluster_has_both_pools() -> None:
    (tree,) = documents(DEPLOY / "kuberay" / "raycluster.yaml")
    types = node_types(tree)
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert "GPU" not in types["decode"]["resources"]
    assert {name: types["oracle"]["resources"][name] for name in ("GPU", "oracle")} == {"GPU": 1, "oracle": 2}
    assert types["oracle"]["min_workers"] == 0 < types["oracle"]["max_workers"]
    assert "oracle" not in types["decode"]["resources"]


@pytest.mark.parametrize("file", JOBS, ids=lambda path: path.name)
def test_what_a_job_asks_for_fits_its_nodes(file: Path, tmp_path: Path) -> None:
    written, job = documents(file)
    ((name, text),) = written["data"].items()
    mounts = {volume["name"]: volume for volume in spec_of(job)["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert mounts["settings"]["configMap"]["name"] == written["metadata"]["name"]
    program, verb, path = job["spec"]["entrypoint"].split()
    assert (program, path) == ("clipsan", f"/etc/clipsan/{name}")
    (tmp_path / name).write_text(text)
    settings = settings_of([verb, str(tmp_path / name)])
    assert settings.cluster.address == "auto"
    assert settings.out.startswith("/shared/")
    assert_fits(demands(settings), node_types(job))


def test_commands_for_the_standing_cluster_fit_it() -> None:
    file = DEPLOY / "kuberay" / "raycluster.yaml"
    (tree,) = documents(file)
    shown = [settings_of(words) for words in commands(file)]
    assert len(shown) == 1
    assert shown[0].proof.pool.resources == {"oracle": 1.0}
    assert_fits(demands(shown[0]), node_types(tree))
    small = copy.deepcopy(tree)
    small["spec"]["workerGroupSpecs"][1]["resources"] = {"oracel": "2"}
    with pytest.raises(AssertionError, match="oracle"):
        assert_fits(demands(shown[0]), node_types(small))


def assert_fits(wanted: list[tuple[Bundle, int]], types: dict[str, Any]) -> None:
    for bundle, count in wanted:
        assert places(bundle, types) >= count, f"{count} x {bundle} do not fit {types}"
        # Ray Data's own tasks need a CPU, too: a pass whose workers hold all of them hangs.
        free = places({"CPU": 1.0}, types) - count * bundle["CPU"]
        assert free >= 1, f"{count} x {bundle} leave no CPU"
