"""A private Ray: nobody on this machine or another can join it without the token of the session."""

import os
import subprocess
import sys

import psutil
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


HURRIED = """
import psutil
import ray
from clipsan.pipeline.core.cluster import ClusterConfig, ray_session, start_ray

end = ray.shutdown

def hurried():
    for process in psutil.Process().children():
        if process.name() in ("raylet", "gcs_server"):
            process.kill()
    end()

with ray_session(ClusterConfig(workers=1, object_store_mb=100)):
    start_ray()
    ray.get(ray.remote(lambda: 1).remote())
    print(*(process.pid for process in psutil.Process().children(recursive=True)))
    ray.shutdown = hurried
"""
"""Ends as on a machine that is too busy for Ray's raylet to end what it has started within its second."""


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


def test_nothing_of_ray_outlives_a_session_whose_raylet_had_to_be_killed() -> None:
    done = subprocess.run([sys.executable, "-c", HURRIED], capture_output=True, text=True, timeout=120, check=True)
    started = [int(pid) for pid in done.stdout.split()]
    assert len(started) > 5  # head, raylet, its two agents, a worker, ...
    assert [pid for pid in started if psutil.pid_exists(pid)] == []
