"""`python -m flows.cluster.survey SECONDS`, as a job on a cluster: asks every node what it computes with."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from flows import machine
from flows.words import start_of

# Begins each line of the answer, among whatever else Ray and its workers print.
MARK = "headstart-survey "


def main(seconds: float) -> int:
    """Print a line for each node that is alive: its address, and the machine as JSON, or why it did not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    alive: Any = ray.nodes  # untyped in Ray
    nodes = [node for node in alive() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    on = {node["NodeID"]: NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes}
    asked = {look.options(scheduling_strategy=on[node["NodeID"]]).remote(): node for node in nodes}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for answer, node in asked.items():
        told: dict[str, object] = {"address": node["NodeManagerAddress"], "node_id": node["NodeID"], "machine": None, "fault": ""}
        if answer in ready:
            try:
                told["machine"] = ray.get(answer)
            except Exception as error:  # whatever keeps a node from answering is what is asked for
                told["fault"] = start_of(str(error).strip().splitlines()[-1], 300)
        else:
            told["fault"] = f"did not answer within {seconds:g} s"
        sys.stdout.write(f"{MARK}{json.dumps(told)}\n")
    return 0


def _look() -> str:
    return machine.to_json(machine.this_machine())


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
