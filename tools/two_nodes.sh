#!/usr/bin/env bash
# A run on two "nodes" that are this machine: two torchrun agents with one process each, over the loopback device.
#   tools/two_nodes.sh conf=pcm_object_tiny run_dir=runs/two_nodes iterations=2
# On a cluster each node runs one of these two lines, with the address of the first node (docs/scaling.md).
set -eu
for node in 0 1; do
    python -m torch.distributed.run --nnodes 2 --node-rank "$node" --nproc-per-node 1 \
        --master-addr 127.0.0.1 --master-port "${MASTER_PORT:-29511}" \
        -m vla_rl.fit trainer.num_nodes=2 trainer.devices=1 "$@" &
done
wait -n && wait -n
