"""A cluster of several raylets on this machine, in a process of its own; commands on stdin.

    add CPUS     starts a node and prints its number
    kill NUMBER  kills a node's processes at once

Prints the cluster's address first. In a process of its own, because Ray reads RAY_AUTH_MODE once
per process, and the tests' own process may hold another Ray. Ends with its stdin.
"""

import sys
from typing import Any

from ray.cluster_utils import Cluster


def start_node(cluster: Cluster, **settings: Any) -> Any:
    """Returns a started node; Ray gives it 30 s, too little on a very busy machine: three tries."""
    for attempt in (1, 2, 3):
        try:
            return cluster.add_node(**settings)
        except Exception:  # it raises no other kind
            if attempt == 3:
                raise


def main() -> None:
    """Serves commands until stdin ends."""
    cluster = Cluster()
    start_node(cluster, num_cpus=0, include_dashboard=False)
    print(cluster.address, flush=True)
    nodes = []
    for line in sys.stdin:
        command, number = line.split()
        if command == "add":
            nodes.append(start_node(cluster, num_cpus=int(number)))
            print(len(nodes) - 1, flush=True)
        else:
            cluster.remove_node(nodes[int(number)], allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
