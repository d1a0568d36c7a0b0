"""Workers as Slurm jobs of their own, more of them while there is work: dask-jobqueue submits and removes them.

python examples/cluster/slurm_jobqueue.py /shared/models/model --workers 32
"""

from __future__ import annotations

import argparse

import tailwise as tw


def cluster():
    """A scheduler here, and what one Slurm job is: four workers of one thread each."""
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(
        cores=4,
        processes=4,
        memory="16GB",
        walltime="02:00:00",
        job_name="tailwise",
        job_script_prologue=["export OMP_NUM_THREADS=1"],
        worker_extra_args=["--no-dashboard"],
        scheduler_options={"dashboard_address": ":0"},
    )


def main() -> None:
    """Audit a model with as many workers as were asked for, at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=32)
    chosen = parser.parse_args()
    with cluster() as workers:
        workers.adapt(minimum=1, maximum=chosen.workers)
        address = workers.scheduler_address.removeprefix("tcp://")
        found = tw.audit(chosen.model, executor=f"dask://{address}")
        print(found.save("model.audit"))


if __name__ == "__main__":
    main()
