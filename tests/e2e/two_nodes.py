"""Run by test_two_nodes: a scan on a local Ray cluster of two nodes, of which one alone is meant for the oracle."""

import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from clipsan.pipeline.core.cluster import ClusterConfig, PoolConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.proof.inquiry import ProofConfig
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.oracle import SuperpixelsConfig
from clipsan.stages.sources import ParquetSource
from clipsan.stages.verdicts import ThresholdDecision
from tests.closed_form import make_case


def main(home: Path) -> None:
    """Print what was refused, then on how many nodes the oracle ran and the targets that it proved."""
    case = make_case(home / "case", scenes=800, poisoned=30)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 2**28})
    settings = ScanConfig(
        data=ParquetSource(path=str(case.data / "*.parquet"), label="label", key="key"),
        model=ModelConfig(path=str(case.checkpoint)),
        out=str(home / "run"),
        decision=ThresholdDecision(),
        oracle=SuperpixelsConfig(),
        proof=ProofConfig(budget=0.1, held_out=128, groups=1, pool=PoolConfig(workers=2, resources={"oracle": 1})),
        cluster=ClusterConfig(address=cluster.address, workers=1),
        tracking=TrackingConfig(enabled=False),
    )
    try:
        scan.VERB.start(settings)
    except ConfigError as error:
        sys.stdout.write(f"refused: {error}\n")
    ray.shutdown()
    cluster.add_node(num_cpus=3, resources={"oracle": 2}, object_store_memory=2**28)
    summary = scan.VERB.start(settings)
    targets = [target for trigger in summary["proof"]["triggers"] for target in trigger["targets"]]
    sys.stdout.write(f"nodes: {summary['proof']['oracle_nodes']}, proven: {', '.join(targets)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
