"""One rank of two that apply remedies: `python distributed_remedies.py FOLDER RANK KIND...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import tailwise as tw
from tailwise.core.errors import UsageError

LINEAR = ("0", "2", "4")


def new_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 16)
    )


def wrapped(kind):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = new_model()
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp1":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (*(model[int(name)] for name in LINEAR), model):
            fully_shard(layer, mesh=mesh)
    return model


def lists(model, what):
    """Values or gradients of the matrices, whole."""
    named = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.ndim == 2}
    found = {name: p.grad if what == "grad" else p.detach() for name, p in named.items()}
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).tolist() for name, t in found.items()}


def applied(kind, rank):
    """What each remedy does; the input is the same on all ranks, so gradients are those of one process."""
    found = {}
    inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(10 + rank)  # ranks draw other numbers, as they do for dropout

    model = wrapped(kind)
    model(inputs).square().mean().backward()
    clip = tw.remedies.AdaptiveClip(model, warm_up=1, absolute=0.02)
    found["norm"], found["averages"], found["clipped"] = clip(), clip.averages, lists(model, "grad")

    model = wrapped(kind)
    loss = tw.remedies.spectral_penalty(model, k=2)()
    loss.backward()
    found["penalty"], found["penalty_grad"] = loss.detach().item(), lists(model, "grad")

    model = wrapped(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    balance = tw.remedies.layerwise_learning_rates(model, optimizer, every=1)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    found["alphas"], found["factors"], found["balanced"] = balance.alphas, balance.factors, lists(model, "value")

    model = wrapped(kind)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("2.weight")).zero_()
    found["drawn"] = tw.remedies.reinitialize_dead_layers(model)
    found["reinitialized"] = lists(model, "value")
    return found


def refused():
    """What each remedy says of FSDP1."""
    model = wrapped("fsdp1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said = []
    for remedy in (
        lambda: tw.remedies.AdaptiveClip(model),
        lambda: tw.remedies.spectral_penalty(model),
        lambda: tw.remedies.layerwise_learning_rates(model, optimizer),
        lambda: tw.remedies.reinitialize_dead_layers(model),
        lambda: tw.remedies.scale_residual_branches(model),
    ):
        try:
            remedy()
        except UsageError as error:
            said.append(str(error))
    return said


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for kind in sys.argv[3:]:
        found = refused() if kind == "fsdp1" else applied(kind, rank)
        (folder / f"{kind}{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
