"""How much memory a job or container has left, told by made-up groups of processes as Linux describes them."""

from pathlib import Path

import psutil
import pytest

from dinounet.system import free_memory

MB = 2**20


class Machine:
    """What Linux tells, in a folder: `/proc/self` and a mounted hierarchy of groups."""

    def __init__(self, root: Path, version: int, group: str, mounted: str = "/") -> None:
        self.process, self.groups, self.version = root / "self", root / "sys fs" / "cgroup", version
        self.process.mkdir(parents=True)
        place = str(self.groups).replace(" ", "\\040")
        kind = "cgroup2 cgroup rw,nsdelegate" if version == 2 else "cgroup cgroup rw,memory"
        (self.process / "mountinfo").write_text(
            "31 23 0:28 / / rw,relatime - ext4 /dev/root rw\n"
            f"35 31 0:32 {mounted} {place} rw,nosuid shared:9 - {kind}\n"
            "32 31 0:29 / /nowhere rw - cgroup cgroup rw,cpu\n"
        )
        (self.process / "cgroup").write_text(f"5:cpu:/other\n{'0:' if version == 2 else '4:memory'}:{group}\n")

    def add(self, group: str, limit: int | str, used: int, inactive: int = 0, active: int = 0) -> None:
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current", "")
        if self.version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        stat = f"anon 1\n{names[2]}inactive_file {inactive}\n{names[2]}active_file {active}\n"
        (folder / "memory.stat").write_text(stat)

    def free(self) -> int:
        return free_memory(self.process)


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_each_group_around_a_job_counts(version: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version, "/slurm/uid_5/job_7/step_0")
    machine.add("slurm/uid_5/job_7/step_0", "max" if version == 2 else 2**63 - 4096, 10 * MB)
    machine.add("slurm/uid_5/job_7", 100 * MB, 40 * MB)
    machine.add("slurm", 500 * MB, 60 * MB)
    assert machine.free() == 60 * MB
    machine.add("slurm", 500 * MB, 490 * MB)
    assert machine.free() == 10 * MB
    machine.add("elsewhere", 1 * MB, 1 * MB)
    assert machine.free() == 10 * MB


def test_what_was_read_from_files_is_free(version: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version, "/job")
    machine.add("job", 100 * MB, 95 * MB, inactive=50 * MB, active=20 * MB)
    assert machine.free() == 75 * MB


def test_a_container_that_has_its_own_group_for_the_root(version: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version, "/")
    machine.add("", 100 * MB, 30 * MB)
    assert machine.free() == 70 * MB


def test_a_container_whose_groups_are_named_as_the_host_names_them(version: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version, "/docker/abc/inner", mounted="/docker/abc")
    machine.add("", 100 * MB, 30 * MB)
    machine.add("inner", 50 * MB, 30 * MB)
    assert machine.free() == 20 * MB


def test_a_group_above_its_limit_leaves_nothing(version: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version, "/job")
    machine.add("job", 100 * MB, 120 * MB)
    assert machine.free() == 0


def test_where_no_limit_holds_it_is_the_machines(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/job")
    machine.add("job", "max", 10 * MB)
    for free in (machine.free(), free_memory(tmp_path / "not Linux")):
        assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_from_where_memory_is_slowed_down_on_is_a_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/job")
    machine.add("job", "max", 10 * MB)
    (machine.groups / "job" / "memory.high").write_text(f"{50 * MB}\n")
    assert machine.free() == 40 * MB
