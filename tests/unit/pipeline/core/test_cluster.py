"""A pool of workers whose nodes are not there: refused, or waited for where an autoscaler may bring them."""

from typing import Any

import pytest
import ray
import ray.autoscaler.sdk

from clipsan.pipeline.core.cluster import PoolConfig, check_pool
from clipsan.pipeline.core.config import ConfigError


class Cluster:
    """Nodes that appear after some looks, and what the autoscaler was asked for."""

    def __init__(self, *later: dict[str, float], looks: int = 0) -> None:
        self.asked: list[Any] = []
        self._later = later
        self._looks = looks

    def nodes(self) -> list[dict[str, Any]]:
        self._looks -= 1
        here = [{"CPU": 8.0}, *(self._later if self._looks < 0 else ())]
        return [{"Alive": True, "Resources": resources} for resources in here]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> "Cluster":
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr("clipsan.pipeline.core.cluster.time.sleep", lambda seconds: None)
        return self


def test_a_node_that_is_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster({"CPU": 8.0, "GPU": 1.0, "oracle": 2.0}).use(monkeypatch)
    check_pool(PoolConfig(resources={"oracle": 1}, wait_s=60))
    assert cluster.asked == []


def test_without_patience_an_absent_node_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster({"oracle": 2.0}, looks=2).use(monkeypatch)
    with pytest.raises(ConfigError, match=r"resources\.oracle=1: no node of the cluster offers that much; start one"):
        check_pool(PoolConfig(resources={"oracle": 1}))
    assert cluster.asked == []


def test_an_autoscaler_is_asked_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster({"oracle": 2.0}, looks=3).use(monkeypatch)
    check_pool(PoolConfig(resources={"oracle": 1}, wait_s=60))
    # The request does not outlive the wait: it would hold the node for ever.
    assert cluster.asked == [[{"oracle": 1.0}], []]


def test_a_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster().use(monkeypatch)
    with pytest.raises(ConfigError, match=r"and none came in 0\.05 s"):
        check_pool(PoolConfig(resources={"oracle": 1}, wait_s=0.05))
    assert cluster.asked == [[{"oracle": 1.0}], []]


def test_one_node_must_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster({"oracle": 2.0}, {"fast": 1.0}).use(monkeypatch)
    with pytest.raises(ConfigError, match=r"resources\.oracle=1, resources\.fast=1"):
        check_pool(PoolConfig(resources={"oracle": 1, "fast": 1}))
