"""Who started a process: every launcher's variables, and environments that are set by half."""

from __future__ import annotations

import pytest

from mmprod.errors import ConfigError
from mmprod.training.environment import EXIT_FOLDER, Place, adopt, find_place, first_node

RANKS = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
TORCHRUN = RANKS | {
    "TORCHELASTIC_RUN_ID": "job",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
}
DEEPSPEED = RANKS | {"CROSS_RANK": "0", "CROSS_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_nothing_set_is_one_process():
    assert find_place({"HOME": "/", "RANK": ""}) == Place("alone")


@pytest.mark.parametrize(
    ("variables", "launcher", "nodes", "local_size"),
    [
        (TORCHRUN, "torchrun", 2, 2),
        (DEEPSPEED, "deepspeed", 2, 2),
        (RANKS, "environment", None, None),
    ],
    ids=["torchrun", "deepspeed", "by hand"],
)
def test_the_common_variables(variables, launcher, nodes, local_size):
    expected = Place(launcher, 1, 1, 4, local_size, nodes, "node0", 29500)
    assert find_place(variables) == expected


def test_a_task_of_slurm_meets_the_others_on_the_first_node_of_its_step():
    place = find_place(SLURM)
    assert (place.launcher, place.rank, place.local_rank, place.size, place.nodes) == (
        "slurm", 3, 1, 4, 2,
    )  # fmt: skip
    assert place.address == "gpu007"
    assert 20000 <= place.port < 30000
    assert find_place(SLURM | {"SLURM_PROCID": "0"}).port == place.port
    assert find_place(SLURM | {"SLURM_STEP_ID": "1"}).port != place.port


def test_master_addr_and_port_of_the_user_count():
    place = find_place(SLURM | {"MASTER_ADDR": "ib-7", "MASTER_PORT": "1234"})
    assert (place.address, place.port) == ("ib-7", 1234)


def test_openmpi_on_one_node_needs_nothing_else():
    place = find_place(OPENMPI)
    assert (place.launcher, place.rank, place.size, place.nodes) == ("openmpi", 1, 2, 1)
    assert place.address == "127.0.0.1"
    assert find_place(OPENMPI | {"OMPI_COMM_WORLD_RANK": "0"}).port == place.port


def test_pmi_of_mpich():
    variables = {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    place = find_place(variables)
    assert (place.launcher, place.rank, place.size, place.address) == ("pmi", 1, 2, "node0")


def test_the_inner_launcher_counts():
    """srun starts torchrun, one per node; sbatch runs mpirun."""
    assert find_place(SLURM | TORCHRUN).launcher == "torchrun"
    assert find_place(SLURM | OPENMPI).launcher == "openmpi"


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("node1", "node1"),
        ("gpu[007-010,12],login1", "gpu007"),
        ("gpu[3,7]", "gpu3"),
        ("login1,gpu[1-2]", "login1"),
        ("rack[1-2]node[05-06]", "rack1node05"),
        ("a-[1-2]-b.example.org", "a-1-b.example.org"),
    ],
)
def test_first_of_a_compressed_node_list(listed, first):
    assert first_node(listed) == first


@pytest.mark.parametrize("listed", ["", "gpu[", "gpu[]", "[,", "a b"])
def test_a_broken_node_list_is_refused(listed):
    with pytest.raises(ConfigError, match="names no node"):
        first_node(listed)


def without(variables, name):
    return {key: value for key, value in variables.items() if key != name}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set, but RANK is"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, but WORLD_SIZE is"),
        (without(RANKS, "MASTER_ADDR"), "MASTER_ADDR does not say where rank 0 is"),
        (without(RANKS, "MASTER_PORT"), "MASTER_PORT is not set"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE is not set"),
        (RANKS | {"RANK": "4"}, "rank 4 of 4 ranks"),
        (RANKS | {"WORLD_SIZE": "0"}, "ranks"),
        (RANKS | {"RANK": "-1"}, "RANK='-1' is not a number"),
        (RANKS | {"RANK": "\u0663"}, "is not a number"),
        (RANKS | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        (without(SLURM, "SLURM_PROCID"), "SLURM_PROCID is not set"),
        (without(SLURM, "SLURM_STEP_NODELIST"), "names no node"),
        (without(OPENMPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE is not set"),
        (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "on several nodes, and MASTER_ADDR"),
        (OPENMPI | {"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 contradicts openmpi, which says 1"),
        (SLURM | {"WORLD_SIZE": "8"}, "WORLD_SIZE=8 contradicts slurm, which says 4"),
        ({"PMI_SIZE": "2"}, "PMI_RANK is not set"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "without srun"),
    ],
)
def test_half_an_environment_is_refused_in_one_line(variables, words):
    with pytest.raises(ConfigError, match=words) as caught:
        find_place(variables)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_batch_script_of_one_task_is_a_process_alone():
    assert find_place({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).size == 1


def test_adopting_gives_torch_the_names_it_looks_for(monkeypatch):
    for name in (*TORCHRUN, *DEEPSPEED, *SLURM, EXIT_FOLDER):
        monkeypatch.delenv(name, raising=False)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    import os

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    place = adopt()
    assert os.environ["RANK"] == "3"
    assert os.environ["WORLD_SIZE"] == "4"
    assert os.environ["MASTER_ADDR"] == "gpu007"
    assert find_place() == place
