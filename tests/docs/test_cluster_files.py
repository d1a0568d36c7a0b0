"""The files for Kubernetes and Slurm are what those tools take, and call commands that there are."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from clusters import QUIET

CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
KUBERNETES = "1.33"


def documents(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pods(value):
    """Every pod that a resource of an operator holds."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        else:
            for inner in value.values():
                yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def test_every_resource_of_kubernetes_is_valid():
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate").validate
    kinds = [validate_one(validate, item) for item in documents("dask-kubernetes.yaml")]
    assert kinds == ["Service", "Deployment", "Deployment", "PersistentVolumeClaim", "Job"]


def validate_one(validate, item):
    validate(item, KUBERNETES, strict=True)
    return item["kind"]


@pytest.mark.parametrize("name", ["dask-operator.yaml", "ray-job.yaml"])
def test_the_pods_that_operators_are_given_are_valid(name):
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate").validate
    found = list(pods(documents(name)))
    assert len(found) == 2
    for spec in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        validate(pod, KUBERNETES, strict=True)


def test_the_dask_operators_own_schema_takes_its_cluster():
    spec = importlib.util.find_spec("dask_kubernetes")
    if spec is None or spec.origin is None:
        pytest.skip("needs dask-kubernetes")
    from jsonschema import validate

    folder = Path(spec.origin).parent / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    schema = yaml.safe_load((folder / "daskcluster.yaml").read_text())["spec"]["versions"][0]["schema"]
    (cluster,) = documents("dask-operator.yaml")
    validate(cluster, schema["openAPIV3Schema"])


def commands():
    for name in ("dask-kubernetes.yaml", "dask-operator.yaml", "ray-job.yaml"):
        for spec in pods(documents(name)):
            for container in spec["containers"]:
                yield container.get("args", [])
    yield documents("ray-job.yaml")[0]["spec"]["entrypoint"].split()
    text = (CLUSTER / "slurm.sbatch").read_text()
    yield from (line.removeprefix("srun --kill-on-bad-exit=0 ").rstrip(" &").split() for line in text.splitlines()
                if re.match(r"(srun .*)?dask |tailwise ", line))  # fmt: skip


@pytest.mark.parametrize("line", [line for line in commands() if line], ids=lambda line: " ".join(line[:3]))
def test_every_option_in_them_is_one_of_its_command(line):
    from typer.testing import CliRunner

    options = [word for word in line if word.startswith("-")]
    if line[0] == "tailwise":
        from tailwise.cli.main import app

        said = CliRunner().invoke(app, [line[1], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    else:
        pytest.importorskip("distributed", reason="needs tailwise[dask]")
        from distributed.cli.dask_scheduler import main as scheduler
        from distributed.cli.dask_worker import main as worker

        command = {"scheduler": scheduler, "worker": worker}[line[1]]
        said = " ".join(name for item in command.params for name in (*item.opts, *item.secondary_opts))
    assert [name for name in options if name not in said] == []


def test_the_batch_file_is_a_shell_script():
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)


@pytest.mark.filterwarnings(*QUIET)
def test_dask_jobqueue_makes_a_job_of_single_threaded_workers():
    pytest.importorskip("dask_jobqueue", reason="needs tailwise[slurm]")
    spec = importlib.util.spec_from_file_location("slurm_jobqueue", CLUSTER / "slurm_jobqueue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.cluster() as cluster:
        script = cluster.job_script()
    assert "#SBATCH --cpus-per-task=4" in script
    assert "#SBATCH --mem=15G" in script
    assert "#SBATCH -t 02:00:00" in script
    assert "export OMP_NUM_THREADS=1" in script
    assert re.search(r"--nthreads 1 .*--nworkers 4", script)
