"""What an audit would cost, before it is run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tailwise.audits.baselines import Baselines
from tailwise.audits.cache import Cache
from tailwise.audits.work import Worker
from tailwise.execution.executor import default_workers
from tailwise.recipe import Precision

if TYPE_CHECKING:
    from tailwise.audits.prepare import Prepared
    from tailwise.checkpoints.checkpoint import Checkpoint

#: A tridiagonal reduction runs at about half the rate of a product; the probe is one of both kinds.
_PROBE = 768


def forecast(checkpoint: Checkpoint, prepared: Prepared) -> dict[str, Any]:
    """Matrices, bytes, memory (bytes), seconds on this machine, and how many spectra are known already."""
    options = prepared.options
    cache = Cache.of(options)
    worker = Worker(checkpoint, prepared.recipe, options.device, cache, Baselines(cache))
    known = {source.name for source in prepared.sources if worker.is_known(source)}
    workers = options.workers or default_workers(options.device)
    flops = sum(source.flops for source in prepared.sources if source.name not in known)
    return {
        "model": checkpoint.uri,
        "matrices": len(prepared.sources),
        "unmeasured": len(prepared.unmeasured),
        "bytes": prepared.nbytes,
        "memory": prepared.memory(workers),
        "workers": workers,
        "cached": len(known),
        "seconds": flops * (1 + prepared.recipe.randomize) / _rate(options.device, prepared.recipe.precision) / workers,
    }


def _rate(device: str, precision: Precision) -> float:
    """Operations per second of one worker, measured on a small matrix (an estimate: larger ones run faster)."""
    import torch

    from tailwise.spectrum.solve import solve

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        probe = torch.randn(_PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
        solve(probe, precision=precision, device=device)
        started = time.perf_counter()
        solve(probe, precision=precision, device=device)
        return (1 + 4 / 3) * _PROBE**3 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
