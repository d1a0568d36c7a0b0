"""One rank of a run that a test starts: `python distributed_run.py FOLDER RANK WORLD KIND...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tailwise.core.errors import UsageError
from tailwise.training.monitor import Monitor


def new_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 16)
    )


def wrapped(model, kind):
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if kind == "fsdp-stages":  # a stage a rank, each sharded over itself
        mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("stage", "shard"))["shard"]
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def weights_of(model):
    named = {name.removeprefix("module."): p.detach() for name, p in model.named_parameters() if p.ndim == 2}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for name, p in named.items()}


def refused(model, path) -> None:
    try:
        Monitor(model)
    except UsageError as error:
        path.write_text(str(error))


def run(kind, folder) -> None:
    """Train eight steps; one rank of some kinds fails."""
    rank = dist.get_rank()
    model = new_model()
    if kind == "fsdp-stages" and rank == 1:
        model = model[2:]
    model = wrapped(model, kind)
    if kind == "fsdp1":
        refused(model, folder / f"refused{rank}.txt")
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # By default a run is named after the second in which a rank began: it need not be the same on all of them.
    name = f"{kind}-{rank}"
    monitor = Monitor(model, every=2, full_every=4, history=folder / "points.jsonl", run=name, max_overhead=1.0)

    def broken(*given):
        raise ValueError("broken on one rank")

    if kind == "fsdp-blind" and rank == 1:
        monitor._live.refresh = broken
    if kind == "fsdp-partly" and rank == 1:
        monitor._cheap._norms = broken
    before = {}
    torch.manual_seed(1 + rank)
    for step in range(1, 9):
        before = weights_of(model) if step == 8 else before
        model(torch.randn(4, model[0].in_features if kind != "ddp" else 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 4 and monitor._ranks.measures:
            # The full measurement of step 0 is to be over, so that none is skipped.
            with monitor._solver._wake:
                monitor._solver._wake.wait_for(lambda: monitor._solver._job is None, 600)
        dist.barrier()
        monitor.step(loss=1.0)
    after = weights_of(model)
    monitor.close()
    report = monitor.report()
    (folder / f"report{rank}.json").write_text(json.dumps({"errors": report.errors, "points": report.points}))
    if rank == 0:
        torch.save({"before": before, "after": after}, folder / "weights.pt")


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for kind in sys.argv[4:]:
        (folder / kind).mkdir(exist_ok=True)
        run(kind, folder / kind)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
