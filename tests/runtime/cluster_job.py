"""A job over three nodes of a Ray cluster, one of which is taken away; run by test_cluster.py."""

from __future__ import annotations

import time
from collections import Counter

import ray
from ray.cluster_utils import Cluster

from sagequeue import list_queues
from sageruntime import BaseOperator, Packet, Pipeline, RestartPolicy, TaskOptions
from sageruntime.task.ray_task import is_one_machine

PACKETS = 3000


class Where(BaseOperator):
    """Each payload with the node it was processed on."""

    def open(self) -> None:
        self.node = ray.get_runtime_context().get_node_id()

    def process(self, packet: Packet) -> Packet:
        time.sleep(0.0005)
        return packet.derive((packet.payload, self.node))


def work(cluster: Cluster) -> None:
    workers = [cluster.add_node(num_cpus=1, resources={"worker": 1}) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    pipeline = Pipeline(
        "cluster",
        options=TaskOptions(batch_size=20, restart=RestartPolicy(5)),
        ray_options={"resources": {"worker": 1}},
    ).source(range(PACKETS))
    # each instance takes a whole worker node
    with pipeline.map(Where, on="ray", parallelism=2).sink().start() as job:
        while job.progress()[-1].packets < 500:
            assert not job.wait(0.02)
        assert not is_one_machine({})
        assert not [queue for queue in list_queues() if queue.name.startswith("cluster-")]
        here = ray.get_runtime_context().get_node_id()  # this process needs its own
        victim = next(worker for worker in workers if worker.node_id != here)
        cluster.remove_node(victim, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"worker": 1})
        result = job.result()
    assert {payload for payload, _ in result.sink_result} == set(range(PACKETS))
    by_node = Counter(node for _, node in result.sink_result)
    assert len(by_node) == 3, by_node
    print("all three nodes took part, and nothing is missing", flush=True)


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        work(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
