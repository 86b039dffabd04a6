"""Secrets of a whole scan: canaries in its addresses, its settings and its environment, looked for in all that it leaves and says."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from clipsan.stages.sources import list_units
from clipsan.stages.sources.webdataset import WebDataset
from tests.conftest import add_member, write_shards
from tests.integration.test_mlflow_server import free_port, server
from tests.object_store import KEYS, object_store
from tests.unit.stages.sources.helpers import read_all

REPOSITORY = Path(__file__).parents[2]
CANARY = re.compile(rb"canary[-_ ]?\w*", re.IGNORECASE)
BUCKETS = ("bucket", "other")
ENVIRONMENT = {
    "MLFLOW_TRACKING_USERNAME": "canary-user",
    "MLFLOW_TRACKING_PASSWORD": "canary-password",
    "HF_TOKEN": "canary-hub",
    "AWS_SESSION_TOKEN": "canary-session",
}


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """The query that leads to a store with two buckets, a shard of pairs in each."""
    with object_store(BUCKETS[0]) as query, tempfile.TemporaryDirectory() as home:
        endpoint = re.search(r"endpoint_override=([^&]+)", query)
        assert endpoint is not None
        urllib.request.urlopen(urllib.request.Request(f"http://{endpoint[1]}/{BUCKETS[1]}", method="PUT"))
        client = boto3.client("s3", endpoint_url=f"http://{endpoint[1]}", region_name="us-east-1")
        shards = write_shards(Path(home) / "pairs", shards=2, pairs=30)
        # pairs whose rows bring a stranger's secrets, and one that is rejected
        with tarfile.open(shards / "00001.tar", "a") as tar:
            add_member(tar, "z1.png", b"no picture")
            add_member(tar, "z1.json", b'{"caption": "a", "url": "https://me:canary-row@h/x.png?token=canary-query"}')
        for bucket, shard in zip(BUCKETS, ("00000.tar", "00001.tar"), strict=True):
            client.upload_file(str(shards / shard), bucket, shard)
        yield query


def address(bucket: str, shard: str, query: str) -> str:
    return f"s3://canary-id:canary-secret@{bucket}/{shard}?{query}"


def leaks(root: Path) -> dict[str, set[bytes]]:
    """Return file -> canaries in it, of everything below a folder, names included."""
    found = {
        str(path.relative_to(root)): set(CANARY.findall(path.read_bytes() if path.is_file() else b""))
        | set(CANARY.findall(str(path.relative_to(root)).encode()))
        for path in root.rglob("*")
        if path.is_file() or path.is_dir()
    }
    return {name: said for name, said in found.items() if said}


def test_uids_hold_no_credentials_wherever_the_shards_lie(query: str) -> None:
    source = WebDataset(path=[address(bucket, f"0000{i}.tar", query) for i, bucket in enumerate(BUCKETS)])
    assert [unit.shard for unit in list_units(source)] == ["bucket/00000.tar", "other/00001.tar"]
    told = [(pair.uid, pair.detail, pair.origin.url or "") for pair in read_all(source)]
    assert not CANARY.search(repr(told).encode())


@pytest.mark.parametrize("on_ray", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_no_secret_of_a_scan_is_left_or_said(query: str, tiny_checkpoint: Path, tmp_path: Path, on_ray: bool) -> None:
    port = free_port()
    short = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # Ray's sockets need short paths
    (tmp_path / "mlflow").mkdir()
    words = [
        "data=webdataset",
        f"data.path=[{', '.join(repr(address(bucket, f'0000{i}.tar', query)) for i, bucket in enumerate(BUCKETS))}]",
        f"model.path={tiny_checkpoint}",
        "oracle=superpixels",
        "decision=budget",
        "proof.held_out=20",
        "write=[clean]",
        "cluster.workers=1",
        f"cluster.alone_below_pairs={0 if on_ray else 1000}",
        "cluster.object_store_mb=100",
        f"tracking.uri=http://canary-user:canary-uri@127.0.0.1:{port}",
        f"out={tmp_path}/run",
    ]
    environment = {**os.environ, **KEYS, **ENVIRONMENT, "RAY_TMPDIR": str(short)}
    command = [sys.executable, "-m", "clipsan.pipeline"]
    said = b""
    try:
        with server(tmp_path / "mlflow", port):
            for words_of in (["scan", *words], ["status", f"{tmp_path}/run"], ["log", f"{tmp_path}/run", words[-2]]):
                done = subprocess.run(
                    [*command, *words_of], cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=False
                )
                assert done.returncode == 0, done.stderr.decode()
                said += done.stdout + done.stderr
        nowhere = [re.sub("@(bucket|other)/", "@nowhere/", word) for word in words]
        wrong = [word for word in nowhere if not word.startswith("out=")]
        refused = subprocess.run(
            [*command, "scan", *wrong, f"out={tmp_path}/none"], env=environment, capture_output=True, check=False
        )
        assert refused.returncode == 2
        said += refused.stderr
        # the job's metadata lie in the head's memory, and what its processes say in the logs of its session
        assert bool(list(short.rglob("*.log"))) is on_ray
        assert leaks(short) == {}
    finally:
        shutil.rmtree(short)
    assert CANARY.findall(said) == []
    assert leaks(tmp_path) == {}
    assert b"***" in (tmp_path / "run/run.yaml").read_bytes()
