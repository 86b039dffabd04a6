"""A Ray cluster of two nodes on this machine, for the length of its standard input.

    python -m tests.benchmarks.two_nodes CPUS CPUS STORE_MB

Prints its address; the line `remove` on its input takes the second node away as a power failure would.
"""

import sys

from ray.cluster_utils import Cluster


def main(head_cpus: int, other_cpus: int, store_mb: int) -> None:
    """Start the cluster and do what the input says."""
    store = store_mb * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "object_store_memory": store})
    other = cluster.add_node(num_cpus=other_cpus, object_store_memory=store)
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "remove":
            cluster.remove_node(other, allow_graceful=False)
    cluster.shutdown()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))
