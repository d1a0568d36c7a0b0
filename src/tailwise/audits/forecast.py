"""What an audit would cost, before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwise.audits.baselines import Baselines
from tailwise.audits.cache import Cache
from tailwise.audits.cost import rates, shape_of
from tailwise.audits.work import Worker
from tailwise.core.execution.device import checked_device
from tailwise.core.execution.executor import default_workers

if TYPE_CHECKING:
    from tailwise.audits.prepare import Prepared
    from tailwise.checkpoints.checkpoint import Checkpoint


def forecast(checkpoint: Checkpoint, prepared: Prepared) -> dict[str, Any]:
    """Matrices, bytes, memory (bytes), seconds on this machine, and how many spectra are known already."""
    options = prepared.options
    cache = Cache.of(options)
    worker = Worker(checkpoint, prepared.recipe, options.device, cache, Baselines(cache))
    new = [source for source in prepared.sources if not worker.is_known(source)]
    workers = options.workers or default_workers(options.device)
    checked_device(options.device)  # rates are measured here, whatever the executor
    speed = rates(max((source.m for source in new), default=1), prepared.recipe, options.device, cache)
    each = [speed.seconds(source, 1 + prepared.recipe.randomize) for source in new]
    shapes = {shape_of(source): source for source in new}
    noise = sum(speed.seconds_of_shape(source) for source in shapes.values())
    return {
        "model": checkpoint.uri,
        "matrices": len(prepared.sources),
        "unmeasured": len(prepared.unmeasured),
        "bytes": prepared.nbytes,
        "memory": prepared.memory(workers),
        "workers": workers,
        "cached": len(prepared.sources) - len(new),
        # Taken largest first, matrices fill the workers evenly, unless one alone takes longer than the rest.
        "seconds": max([sum(each) / workers, *each]) + noise / workers,
    }
