"""A private Ray: nobody on this machine or another can join it without the token of the session."""

import os
import subprocess
import sys

import pytest
import ray

JOIN = """
import ray
ray.init(ADDRESS, log_to_driver=False)
print("JOINED", ray.get(ray.remote(lambda: 1).remote(), timeout=30))
"""

ALONE = """
import socket
from clipsan.pipeline.core.cluster import ClusterConfig, ray_session, start_ray
with ray_session(ClusterConfig(workers=1, object_store_mb=100)):
    start_ray()
    start_ray()
    import ray
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    print(host)
    for other in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {host}:
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((other, int(port))) == 0:
                print(other)
"""


def join(environment: dict[str, str]) -> str:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", JOIN.replace("ADDRESS", repr(address))]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=25, check=False).stdout
    except subprocess.TimeoutExpired as stopped:
        return (stopped.stdout or b"").decode()


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_does_not_know_the_token_cannot_join() -> None:
    assert "JOINED" not in join({})
    assert "JOINED" not in join({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})


@pytest.mark.usefixtures("ray_cluster")
def test_workers_know_the_token_of_this_session() -> None:
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    given = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote())
    assert given == os.environ["RAY_AUTH_TOKEN"]


def test_a_command_listens_on_the_loopback_interface_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=True)
    address, *reached = done.stdout.split()
    assert address == "127.0.0.1"
    assert reached == []
