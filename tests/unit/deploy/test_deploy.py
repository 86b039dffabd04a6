"""deploy/: image, scripts, compose file and cluster launcher against their linters, schemas and readers; every command in them works."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start

from tests.unit.deploy.helpers import DEPLOY, FILES, commands, demands, lines, misspellings, places, settings_of

ROOT = DEPLOY.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Those of the RayJobs name a file of their own ConfigMap; tests/unit/test_deploy_kuberay.py puts the two together.
SHOWN = [(path.name, words) for path in FILES if not path.name.startswith("rayjob-") for words in commands(path)]
SCRIPTS = ("clipsan.sbatch", "submit.sh")


def linter(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=300, check=False)


def test_the_files_say_how_they_are_used() -> None:
    assert {path.name for path in FILES} == {
        *("Dockerfile", "compose.yaml", "ray-cluster.yaml", "clipsan.sbatch", "submit.sh", "runtime_env.yaml"),
        *(
            "raycluster.yaml",
            "rayjob-scan.yaml",
            "rayjob-repair.yaml",
            "rayjob-sweep.yaml",
            "storage.yaml",
            "network.yaml",
        ),
    }
    for path in FILES:
        top = "\n".join(lines(path.read_text())[:25])
        assert re.search(r"^ +(docker|kubectl|sbatch|ray|RAY_ADDRESS)", top, re.M) or "ray job submit" in top, path.name
        assert "Edit:" in top, path.name
        assert re.search(r"not\s+(been\s+)?(run|built)\s+by us|run in the tests", top, re.I), path.name


@pytest.mark.parametrize(("file", "words"), SHOWN, ids=[f"{name}-{words[0]}" for name, words in SHOWN])
def test_every_command_is_valid(file: str, words: list[str]) -> None:
    settings = settings_of(words)
    if file not in ("Dockerfile", "clipsan.sbatch"):
        assert settings.cluster.workers is not None, "the head's CPUs are not the cluster's"


def test_every_command_is_found() -> None:
    found = [name for name, _ in SHOWN]
    expected = {
        "Dockerfile": 1,
        "clipsan.sbatch": 3,
        "submit.sh": 1,
        "compose.yaml": 1,
        "ray-cluster.yaml": 1,
        "raycluster.yaml": 1,
    }
    assert {name: found.count(name) for name in expected} == expected
    from clipsan.pipeline.core.config import ConfigError

    words = dict(SHOWN)["submit.sh"]
    with pytest.raises(ConfigError, match="did you mean workers"):
        settings_of([word.replace("cluster.workers", "cluster.worker") for word in words])


def test_versions_agree() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={ray.__version__}\n" in constraints
    assert f"ray[default]=={ray.__version__}" in PROJECT["optional-dependencies"]["cluster"]
    for path in FILES:
        text = path.read_text()
        assert set(re.findall(r"clipsan:(\d[\d.]*)-(?:cpu|cuda)", text)) <= {PROJECT["version"]}, path.name
        assert set(re.findall(r"ray(?:\[default\])?==([\d.]+)", text)) <= {ray.__version__}, path.name
        assert ":latest" not in text, path.name


def test_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    done = linter("hadolint", "--no-color", "-", text=text)
    assert done.returncode == 0, done.stdout
    assert "DL3002" in linter("hadolint", "--no-color", "-", text=text.replace("USER 1000:1000", "USER root")).stdout
    assert linter("hadolint", "-", text=text.replace("WORKDIR /src", "WORKDIRS /src")).returncode != 0
    # What is pinned is what the constraints name, and both variants come from one base.
    assert re.findall(r"^FROM (\S+)", text, re.M) == [
        "${PYTHON_IMAGE}",
        "build",
        "build",
        "torch-${VARIANT}",
        "${PYTHON_IMAGE}",
    ]
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", text, re.M)
    # Nothing is installed without the hash of its file, but for torch's wheels for processors and clipsan itself.
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line] == [
        line
        for line in installs
        if "--constraint constraints.txt torch torchvision" in line or "--no-build-isolation ." in line
    ]
    assert re.findall(r"--requirement (\S+)", text) == [*LOCKS[::-1]]
    assert 'ENTRYPOINT ["tini", "--", "clipsan"]' in text


def test_the_image_gets_all_that_pip_needs_and_nothing_else() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    places = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert kept == {
        *(place.partition("/")[0] for place in places),
        "pyproject.toml",
        "constraints.txt",
        *(f"deploy/{name}" for name in LOCKS),
        PROJECT["readme"],
        *PROJECT["license-files"],
    }


LOCKS = ("requirements.lock", "requirements-cuda.lock")
ONLY_LOCKED = {"flask-wtf", "wtforms", "setuptools"}
"""What MLflow's users and the building of the package need, and no machine of a developer."""


def locked(name: str) -> dict[str, str]:
    """Return package -> version of a lock, each of which has hashes."""
    text = "".join(line for line in (DEPLOY / name).read_text().splitlines(keepends=True) if not line.startswith("#"))
    entries = re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert sum(entry.count("\n") + 1 for _, _, entry in entries) == text.count("\n"), (
        "a line that is no package with hashes"
    )
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version, _ in entries}


def test_the_locks_hold_what_the_image_needs_in_the_versions_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    packages, cuda = (locked(name) for name in LOCKS)
    assert not packages.keys() & cuda.keys()
    assert {"torch", "torchvision"} <= cuda.keys()
    every = packages | cuda
    assert {name: version for name, version in every.items() if pinned.get(name) != version}.keys() == ONLY_LOCKED
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]]
    assert {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in wanted} <= every.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    text = (DEPLOY / name).read_text()
    done = linter("shellcheck", "--shell=bash", "--severity=style", "-", text=text)
    assert done.returncode == 0, done.stdout
    assert "SC2086" in linter("shellcheck", "--shell=bash", "-", text=text + "\necho $1\n").stdout
    assert subprocess.run(["bash", "-n", DEPLOY / name], check=False).returncode == 0


SBATCH = (
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "exclusive", "time", "signal"),
    *("requeue", "open-mode", "output", "error", "partition", "account", "qos", "constraint", "gres"),
)
"""Options of sbatch (man sbatch, 20.11 and later)."""


def test_slurm_options_are_known() -> None:
    text = (DEPLOY / "clipsan.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([\w-]+)", text, re.M)
    assert len(options) == text.count("\n#SBATCH ")
    assert set(options) <= set(SBATCH)
    assert {"requeue", "signal", "exclusive", "ntasks-per-node"} <= set(options)
    for words in re.findall(r"^ *sbatch (.*?) deploy/clipsan.sbatch", "\n".join(lines(text)), re.M):
        assert {word[2:].partition("=")[0] for word in shlex.split(words)} <= set(SBATCH)


def ray_start(words: list[str]) -> None:
    """Raise click's error where `ray start` would."""
    start.make_context(
        "ray start", [word for word in words if word not in ("--", "tini", "ray", "start")], resilient_parsing=False
    )


def test_ray_start_lines_are_known() -> None:
    script = "\n".join(lines((DEPLOY / "clipsan.sbatch").read_text()))
    flags = set(
        re.findall(r"(?<=\s)--[a-z-]+", script[script.index("exec ray start") : script.index("export -f start_node")])
    )
    flags |= set(re.findall(r"(?<=\s)--[a-z-]+", " ".join(re.findall(r"start_node --.*", script))))
    flags |= set(
        re.findall(
            r"(?<=\s)--[a-z-]+", " ".join(re.findall(r"ray start (.*)", (DEPLOY / "ray-cluster.yaml").read_text()))
        )
    )
    known = {name for option in start.params for name in option.opts}
    assert {"--block", "--head", "--address", "--autoscaling-config", "--min-worker-port"} <= flags <= known


def compose_schema() -> Any:
    return json.loads((files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json").read_text())


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_no_service_of_compose_gains_privileges_and_no_worker_reaches_mlflow() -> None:
    services = compose()["services"]
    assert all(service["security_opt"] == ["no-new-privileges:true"] for service in services.values())
    assert all(service["cap_drop"] == ["ALL"] for name, service in services.items() if name != "s3")
    on_tracking = {name for name, service in services.items() if "tracking" in service["networks"]}
    assert on_tracking == {"head", "mlflow"}
    # MLflow asks who is there, and has none of the store's keys; workers have no password of MLflow's.
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    for name, service in services.items():
        given = set(service.get("environment", {}))
        assert ("AWS_SECRET_ACCESS_KEY" in given) == (name != "mlflow"), name
        assert any(word.startswith("MLFLOW") for word in given) == (name in ("head", "mlflow")), name
    for name in ("head", "worker", "oracle"):
        inputs, shared = services[name]["volumes"]
        assert (inputs.endswith(":/inputs:ro"), shared) == (True, "shared:/shared")
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose() -> None:
    validator = jsonschema.Draft202012Validator(compose_schema())
    tree = compose()
    validator.validate(tree)
    free = re.compile(r"^x-|(environment|ulimits|depends_on)\.\w+$|^(services|volumes|networks|configs)\.\w+$")
    wrong = list(misspellings(tree, free))
    assert len(wrong) > 80
    assert [path for path, misspelled in wrong if validator.is_valid(misspelled)] == []


def test_compose_services() -> None:
    from mlflow.cli import cli

    services = compose()["services"]
    assert set(services) == {"head", "worker", "oracle", "mlflow", "s3"}
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert set(service.get("depends_on", {})) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not service["image"].endswith(":latest")
    for name in ("head", "worker", "oracle"):
        ray_start([*services[name]["entrypoint"], *services[name]["command"]])
        with pytest.raises(Exception, match="No such option"):
            ray_start([*services[name]["command"], "--num-cpu=4"])
    server = cli.commands["server"]
    server.make_context("mlflow server", list(services["mlflow"]["command"]))
    assert "mlflow:5000" in " ".join(services["mlflow"]["command"])


def test_compose_pools_hold_what_its_commands_ask_for() -> None:
    services = compose()["services"]
    types = {}
    for name, replicas in (("worker", 2), ("oracle", 1)):
        options = start.make_context("ray start", list(services[name]["command"])).params
        own = json.loads(options["resources"] or "{}")
        types[name] = {
            "max_workers": replicas,
            "resources": {"CPU": options["num_cpus"], "GPU": options["num_gpus"] or 0, **own},
        }
    ((_, words),) = [shown for shown in SHOWN if shown[0] == "compose.yaml"]
    pool = "proof.pool=" + re.search(r"# 'proof\.pool=(\{.*\})'", (DEPLOY / "compose.yaml").read_text())[1]
    for bundle, count in demands(settings_of([*words, pool])):
        assert places(bundle, types) >= count, (bundle, types)


def launcher() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())


def check_launcher(tree: dict[str, Any]) -> None:
    """Ray's schema and reader, and EC2's own model for what is handed on to it."""
    import botocore.session
    from botocore.validate import ParamValidator

    validate_config(prepare_config(tree))
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in tree["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            raise ValueError(f"{name}: {report.generate_report()}")


def test_launcher() -> None:
    check_launcher(launcher())
    # Ray takes any key below provider; the rest are names of node types and of resources.
    free = re.compile(r"^provider\.\w+$|resources\.\w+$|^available_node_types\.\w+$")
    accepted, tried = [], 0
    for path, wrong in misspellings(launcher(), free):
        tried += 1
        try:
            check_launcher(wrong)
        except (ValueError, KeyError, AttributeError, AssertionError, jsonschema.ValidationError):
            continue
        accepted.append(path)
    assert tried > 40
    assert accepted == []


def test_what_the_launcher_shows_fits_its_nodes() -> None:
    types = {name: node for name, node in prepare_config(launcher())["available_node_types"].items() if name != "head"}
    ((_, words),) = [shown for shown in SHOWN if shown[0] == "ray-cluster.yaml"]
    for bundle, count in demands(settings_of(words)):
        assert places(bundle, types) >= count, (bundle, types)
    assert places({"CPU": 1.0}, types) > settings_of(words).cluster.workers


def test_runtime_env() -> None:
    from clipsan.pipeline.core.cluster import QUIET

    tree = yaml.safe_load((DEPLOY / "runtime_env.yaml").read_text())
    assert set(tree) <= RuntimeEnv.known_fields
    pinned = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert not set(tree["env_vars"]) & (set(QUIET) | pinned), (
        "Ray refuses a variable that the job and its driver both set"
    )
    assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", " ".join(tree["env_vars"]))
