"""Whole runs over two hosts: two network namespaces joined by a cable or, where these cannot be made, two agents.

A namespace has interfaces, addresses and ports of its own; the disk is shared, as the run's folder must be.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from local_distill.train_on_policy_local import main
from tests.launching import (
    ENTRY,
    ROOT,
    SETTINGS,
    assert_same_numbers,
    assert_same_weights,
    environment,
    free_port,
    metrics,
    student_and_teacher,
)

pytestmark = pytest.mark.distributed
LIMIT = 120
"""Seconds after which a run counts as hanging."""


@dataclass(frozen=True)
class Host:
    """A place to start processes. enter: what goes before a command there."""

    enter: tuple[str, ...]
    address: str
    interface: str


@dataclass(frozen=True)
class Network:
    """Two hosts. port: free on the first."""

    hosts: tuple[Host, Host]
    port: int

    @property
    def meeting_point(self) -> str:
        return self.hosts[0].address


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def two_namespaces():
    """Two network namespaces with a cable between them. Raises OSError where they cannot be made."""
    names = [f"distil-{os.getpid()}-{letter}" for letter in "ab"]
    hosts = tuple(Host(("ip", "netns", "exec", name), f"10.77.0.{i + 1}", "veth0") for i, name in enumerate(names))
    with ExitStack() as made:
        for name in names:
            ip("netns", "add", name)
            made.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for name, host in zip(names, hosts, strict=True):
            ip("-n", name, "address", "add", f"{host.address}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
        yield Network(hosts, 29500)


@pytest.fixture(scope="module")
def namespaces():
    """The two hosts, or the OSError that says why there are none."""
    with ExitStack() as made:
        try:
            network = made.enter_context(two_namespaces())
        except OSError as error:
            yield error
        else:
            yield network


def loopback():
    return Network((Host((), "127.0.0.1", "lo"),) * 2, free_port())


def accelerate_agent(network, rank):
    """The command of docs/multi_node.md."""
    where = ["--main_process_ip", network.meeting_point, "--main_process_port", str(network.port)]
    machines = ["--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2"]
    config = ["--config_file", str(ROOT / "local_distill" / "accelerate_config_multi_gpu.yaml")]
    return [sys.executable, "-m", "accelerate.commands.launch", *config, *machines, *where]


def torchrun_agent(network, rank):
    """Agents that find each other through a store, and number the hosts themselves."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
        f"--rdzv_endpoint={network.meeting_point}:{network.port}", "--rdzv_id=distil",
        # Who is who is otherwise guessed from the hosts' names, which are one here.
        f"--rdzv_conf=is_host={int(rank == 0)}", f"--local_addr={network.hosts[rank].address}",
    ]  # fmt: skip


def slurm_task(network, rank):
    """No agent, as in examples/slurm/train.sbatch: the environment says who this process is."""
    places = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
    places |= {"MASTER_ADDR": network.meeting_point, "MASTER_PORT": network.port}
    return ["env", *(f"{name}={value}" for name, value in places.items()), sys.executable]


class Run:
    """The same command on both hosts. Its output is in ``logs``, one file a host."""

    def __init__(self, network, agent, arguments, folder, places=(ROOT, ROOT)):
        self.logs = [folder / f"host-{rank}.log" for rank in range(2)]
        self._agents = []
        for rank, host in enumerate(network.hosts):
            command = [*host.enter, *agent(network, rank), *ENTRY, *arguments]
            env = environment(GLOO_SOCKET_IFNAME=host.interface, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60")
            with self.logs[rank].open("w") as log:
                self._agents.append(subprocess.Popen(command, env=env, cwd=places[rank], stdout=log, stderr=log))

    def stop_one_host(self):
        """A signal to the second host alone: the first, which keeps the record of the run, must stop as well."""
        self._agents[1].send_signal(signal.SIGTERM)

    def wait(self):
        """The agents' exit codes; a run that hangs is killed and fails."""
        try:
            ends = time.monotonic() + LIMIT
            return [each.wait(max(0.0, ends - time.monotonic())) for each in self._agents]
        finally:
            for each in self._agents:
                each.kill()

    @property
    def output(self):
        return "\n".join(log.read_text() for log in self.logs)


def until(condition):
    ends = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return student_and_teacher(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """The run of one process, this one, that all others are held against."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert main([*models, *SETTINGS, "--steps", "4", "--output_dir", str(folder)]) == 0
    return folder


def check_whole_run(network, models, alone, folder, agents):
    """Steps, a stop, and the rest after a resume give what one process gives without one. agents: before and after."""
    arguments = [*models, *SETTINGS, "--steps", "4", "--output_dir", str(folder / "run")]
    first = Run(network, agents[0], arguments, folder)
    written = folder / "run" / "metrics.jsonl"
    until(lambda: written.exists() and '"loss"' in written.read_text())
    first.stop_one_host()
    assert 0 not in first.wait(), "a scheduler would take the run for done"
    assert "2 processes with data parallelism" in first.output
    stopped = re.search(r"stopped by SIGTERM after step (\d)", first.output)
    assert stopped, first.output[-3000:]
    assert int(stopped[1]) < 4, "the run was over before it could be stopped"

    second = Run(network, agents[1], [*arguments, "--resume"], folder)
    assert second.wait() == [0, 0], second.output[-3000:]
    assert f"going on from {folder / 'run' / f'step-{stopped[1]}'}" in second.output
    assert_same_numbers(metrics(folder / "run"), metrics(alone))
    # Adam turns rounding in tiny gradients into steps of the learning rate: four of 1e-3 are the most it can do.
    assert_same_weights(folder / "run" / "step-4", alone / "step-4", tolerance=4e-3)


def test_two_hosts_give_the_run_of_one_process(namespaces, models, alone, tmp_path):
    if isinstance(namespaces, OSError):
        pytest.skip(f"no network namespaces here ({namespaces}); two agents on loopback are tested instead")
    check_whole_run(namespaces, models, alone, tmp_path, (accelerate_agent, slurm_task))


def test_two_agents_on_one_machine_give_the_run_of_one_process(namespaces, models, alone, tmp_path):
    if isinstance(namespaces, Network):
        pytest.skip("there are two hosts to test with")
    check_whole_run(loopback(), models, alone, tmp_path, (torchrun_agent, accelerate_agent))


def test_a_checkpoint_that_one_host_does_not_see_ends_both_with_a_word(models, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "here" / "run")
    (tmp_path / "there").mkdir()
    arguments = [*models, *SETTINGS, "--steps", "5", "--output_dir", "run", "--resume"]
    run = Run(loopback(), slurm_task, arguments, tmp_path, places=(tmp_path / "here", tmp_path / "there"))
    assert run.wait() == [2, 2], run.output[-3000:]
    for log in run.logs:
        lines = [line for line in log.read_text().splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert lines[0].startswith("error: --resume run/step-4: not on every machine")
    assert len(metrics(alone)) == len(metrics(tmp_path / "here" / "run"))
