"""Simulate two hosts with network namespaces: run every command in docs/cluster.md, and cut the link between them.

    python benchmarks/cluster_hosts.py commands       # the page's commands, with fewer trials and steps
    python benchmarks/cluster_hosts.py cuts           # cut the link between the hosts 20 times for 3 seconds
    python benchmarks/cluster_hosts.py losses         # cut it 20 times, each time until Ray gives up on the node,
                                                      # which then rejoins

Needs root, `ip` (iproute2), and a virtual environment with upslope's dependencies and the extra `ray`. Each host has
its own network, mounts, processes and home folder. upslope is installed on each from a wheel, and the project's folder
is hidden. Results are stored in benchmarks/results/cluster.json.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cluster import DOCS, HERE, RESULTS, store
from cluster_faults import COMMAND, contents, count_run, size_of

import upslope
from upslope.runs.directory import RunDirectory

PROJECT = HERE.parent
ADDRESSES = {"first": "10.77.0.1", "second": "10.77.0.2"}
RAY_HEALTH = "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000"
"""Settings that make Ray give up on an unreachable node after about 15 seconds instead of half a minute or more."""
SETTINGS: dict[str, Any] = {"seeds": 2, "steps": 2048, "num_envs": 2, "rollout_steps": 32}
LONGEST = 1500.0


class Hosts:
    """Two simulated hosts that are connected only by a pair of virtual network interfaces."""

    def __init__(self, folder: Path):
        self.folder, self.site = folder, folder / "site"
        pip = [sys.executable, "-m", "pip"]
        wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(PROJECT)]
        subprocess.run(wheel, check=True)
        wheels = [str(path) for path in folder.glob("upslope-*.whl")]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(self.site), *wheels], check=True)
        for name in ADDRESSES:
            self.home(name).mkdir()

    def home(self, name: str) -> Path:
        """Return a host's home folder."""
        return self.folder / name

    def start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        """Run a script on a host, in its home folder; its output goes to a log."""
        # Ray keeps its sessions in /tmp/ray and its objects in /dev/shm, so each host gets its own copy of both
        # folders.
        own = "mkdir -p /tmp/ray" + "".join(
            f" && mount -t tmpfs none {hidden}" for hidden in (PROJECT, "/tmp/ray", "/dev/shm")
        )
        namespaces = ["ip", "netns", "exec", name, "unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
        return self.spawn(name, namespaces, f"{own}\n{script}")

    def start_beside(self, other: subprocess.Popen[bytes], name: str, script: str) -> subprocess.Popen[bytes]:
        """Run a second script on a host, in the namespaces of one that `start` returned."""
        shell = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text("utf-8").split()[0]
        return self.spawn(name, ["nsenter", "--target", shell, "--net", "--mount", "--pid"], script)

    def spawn(self, name: str, inside: list[str], script: str) -> subprocess.Popen[bytes]:
        """Run a script in a host's home folder with its environment variables, after the command `inside`."""
        begin = f"""
export HOME={self.home(name)} PYTHONPATH={self.site} PATH={Path(sys.executable).parent}:$PATH
export RAY_USAGE_STATS_ENABLED=0 PYTHONWARNINGS=ignore
cd ~
"""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([*inside, "bash", "-c", begin + script], stdout=log, stderr=log)

    def link(self, state: str) -> None:
        """Set the link `up` or `down`."""
        run(f"ip -n second link set to-first {state}")
        if state == "up":
            run(f"ip -n second route replace default via {ADDRESSES['first']}")

    def said(self, name: str) -> str:
        """Return what a host has printed so far."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")


def run(command: str) -> None:
    """Run a system command."""
    subprocess.run(command.split(), check=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Create two hosts, and on exit stop everything that runs on them and remove them."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(Path(folder))
        for name in ADDRESSES:
            run(f"ip netns add {name}")
        try:
            run("ip link add to-second netns first type veth peer name to-first netns second")
            for name, other in (("first", "second"), ("second", "first")):
                run(f"ip -n {name} addr add {ADDRESSES[name]}/24 dev to-{other}")
                run(f"ip -n {name} link set lo up")
                run(f"ip -n {name} link set to-{other} up")
                run(f"ip -n {name} route add default via {ADDRESSES[other]}")  # Ray looks up the default route
            yield hosts
        finally:
            for name in ADDRESSES:
                for process in subprocess.run(["ip", "netns", "pids", name], capture_output=True).stdout.split():
                    os.kill(int(process), signal.SIGKILL)
                run(f"ip netns del {name}")


def commands_of_page() -> list[str]:
    """Return the lines of the shell examples on the page."""
    text = (DOCS / "cluster.md").read_text("utf-8")
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.strip().splitlines()]


SMALLER = {
    "FIRST": ADDRESSES["first"],
    "--trials 64": "--trials 3 --seeds 1 --fresh-seeds 2 --evaluation-episodes 2",
    "--steps 50000": "--steps 2000",
    "--seeds 8": "--seeds 2 --steps 2000",
}
"""Replacements that scale down the page's commands."""
WORLD = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


def World(**options):
    return gymnasium.wrappers.TimeLimit(CartPoleEnv(**options), 200)
"""


def commands() -> dict[str, Any]:
    """Run every command on the page on the host that the page assigns it to, and return each command's exit status."""
    first, second = [], []
    for line in commands_of_page():
        if line.startswith("pip install"):  # upslope is already installed from the wheel
            continue
        small = line
        for long, short in SMALLER.items():
            small = small.replace(long, short)
        on_second = "ray start --address" in line
        script = first if not on_second else second
        script.append(f"echo '$ {line}'; {small}; echo \"= $? {line}\"")
        if "get-auth-token" in line:
            script.append("cp ~/.ray/auth_token {folder}/token")
        if "ray start --head" in line:
            script.append("export RAY_AUTH_MODE=token\n" + waiting_for(2 * (os.cpu_count() or 1)))
    with two_hosts() as hosts:
        (hosts.home("first") / "my_world.py").write_text(WORLD)
        where = str(hosts.folder)
        joining = f"""
until [ -f {where}/token ]; do sleep 0.5; done; mkdir -p ~/.ray; cp {where}/token ~/.ray/auth_token
until (echo > /dev/tcp/{ADDRESSES["first"]}/6379) 2> /dev/null; do sleep 0.5; done
"""
        ended = hosts.start("first", "\n".join(first).replace("{folder}", where))
        hosts.start("second", joining + "\n".join(second) + "\nsleep 1000")
        ended.wait(LONGEST)
        print(hosts.said("first"), hosts.said("second"), sep="\n---- second\n", flush=True)
        said = hosts.said("first") + hosts.said("second")
    return {line: int(code) for code, line in re.findall(r"^= (\d+) (.*)$", said, re.M)}


def waiting_for(cpus: int) -> str:
    """Return shell commands that wait until the cluster has this number of CPUs."""
    return f'for i in $(seq 90); do ray status 2>/dev/null | grep -q "/{cpus}.0 CPU" && break; sleep 1; done'


JOIN = f"""
while true; do
  pgrep -x raylet > /dev/null || {RAY_HEALTH} ray start --address {ADDRESSES["first"]}:6379 --num-cpus 1
  sleep 1
done
"""
"""The script of the second host: a node that rejoins whenever it is lost."""


JOINED = "Ray runtime started"
"""What `ray start` prints when it succeeds."""


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds, for at most a minute."""
    until = time.monotonic() + 60
    while not is_so() and time.monotonic() < until:
        time.sleep(0.2)


def train(hosts: Hosts, cluster: subprocess.Popen[bytes], run_folder: Path) -> subprocess.Popen[bytes]:
    """Train or resume a run on both hosts, with upslope checking the cluster every two seconds."""
    words = ["train", "cluster_world:Sleeping", "--py-module", "cluster_world.py", "--no-preset", "--quiet"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    words += ["--cluster", f"{ADDRESSES['first']}:6379", "--folder", str(run_folder.parent), "--name", run_folder.name]
    code = COMMAND.replace(
        "\nimport sys\n", "\nimport sys\nfrom upslope.engines import workers\nworkers.LOOK_SECONDS = 2\n"
    )
    (hosts.home("first") / "driver.py").write_text(code)
    return hosts.start_beside(cluster, "first", f"{waiting_for(2)}\npython driver.py {' '.join(words)}")


def cut_often(times: int, seconds: float, *, until_lost: bool) -> dict[str, Any]:
    """Cut the link `times` times, for `seconds` seconds each, while runs train on both hosts, and count the runs that
    were unaffected."""
    tally: dict[str, Any] = {"faults": 0, "runs": 0, "runs with unchanged results": 0, "lost rows": 0}
    draw, began = np.random.default_rng(0), time.perf_counter()
    with two_hosts() as hosts:
        shutil.copy(HERE / "cluster_world.py", hosts.home("first"))
        head = f"{RAY_HEALTH} ray start --head --port 6379 --node-ip-address {ADDRESSES['first']} --num-cpus 1"
        cluster = hosts.start("first", f"{head}\nsleep {LONGEST}")
        other = hosts.start("second", JOIN)
        sys.path.insert(0, str(HERE))
        here: dict[str, Any] = {"folder": hosts.folder, "name": "whole", "workers": 2, "preset": False, "quiet": True}
        whole = contents(RunDirectory(upslope.train("cluster_world:Sleeping", **here, **SETTINGS).path))
        while tally["faults"] < times:
            place = hosts.home("first") / "there"
            driver, struck = train(hosts, cluster, place), 0
            while driver.poll() is None:
                before = size_of(place)
                while size_of(place) <= before and driver.poll() is None:
                    time.sleep(0.1)
                time.sleep(draw.uniform(0, 2.0))
                if driver.poll() is None and struck < min(5, times - tally["faults"]):
                    joined = hosts.said("second").count(JOINED)
                    hosts.link("down")
                    time.sleep(seconds)
                    hosts.link("up")
                    struck += 1
                    if until_lost:
                        wait_for(lambda joined=joined: hosts.said("second").count(JOINED) > joined)
                        time.sleep(5.0)
                    print("cut", struck, round(time.perf_counter() - began), flush=True)
            if driver.returncode:
                raise SystemExit(hosts.said("first")[-3000:])
            count_run(tally, RunDirectory(place), struck, whole)
            print(tally, flush=True)
        said = hosts.said("first")
        tally |= {"calls repeated": said.count("a call is repeated"), "workers lost": said.count("was lost")}
        tally["workers added"] = said.count("has room for")
        for process in (cluster, other):
            process.kill()
    return tally | {"seconds": round(time.perf_counter() - began)}


CUTS = {"cuts": ("the link cut for 3 seconds", 3.0), "losses": ("the link cut until Ray gives up on the node", 20.0)}


def main() -> None:
    """Run the requested part, and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["commands", *CUTS])
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.what == "commands":
        store("commands", commands())
        return
    name, seconds = CUTS[arguments.what]
    found = cut_often(arguments.times, seconds, until_lost=arguments.what == "losses")
    print(name, found, flush=True)
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    store("hosts", stored.get("hosts", {}) | {name: found})


if __name__ == "__main__":
    main()
