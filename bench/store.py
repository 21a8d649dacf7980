"""What the store costs: large files, and ten thousand runs.

``python bench/store.py`` measures everything on the disk of ``--folder``; ``--gib`` is the size of
the large artifact, ``--runs`` how many runs are many; ``files`` or ``runs`` measures one half;
``smoke`` does both in small. Large files are timed by wall clock on warm pages, in turns with what
they are held against: ``sha256sum`` on as many threads, and ``dvc add`` with hard links where
``.venv-dvc`` is (``make .venv-dvc/.ready``). The rest is CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan, identify, name_run, parse_plan
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store

FILES = 16
THREADS = len(os.sched_getaffinity(0))
FEW = 100
CLI = [sys.executable, "-m", "nemotron_style.runtime"]
DRY_RUN = ["steps", "run", "sft/steerlm2", "-c", "tiny", "--dry-run"]
DVC = Path(__file__).parent.parent / ".venv-dvc" / "bin" / "dvc"


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("files", "runs", "smoke"))
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to measure; the temporary folder without it")
    given = parser.parse_args()
    if given.part == "smoke":
        given.gib, given.runs, given.rounds = 0.125, 200, 1
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.part != "runs":
            measure_files(Path(folder), round(given.gib * 2**30), given.rounds)
        if given.part != "files":
            measure_runs(Path(folder), given.runs, given.rounds)


def measure_files(folder: Path, size: int, rounds: int) -> None:
    """Committing and adopting one large folder, against hashing it and against ``dvc add``."""
    print(f"{size / 2**30:g} GiB in {FILES} files, {THREADS} threads, {rounds} rounds, wall clock")
    source = folder / "source"
    write_files(source, size)
    taken: dict[str, list[float]] = {}
    disk = {}
    for turn in range(rounds):
        store = Store(folder / f"store-{turn}")
        staged = store.stage("bench")
        copy_files(source, staged)
        hash_files(source)  # so that its pages are warm
        taken.setdefault("sha256sum", []).append(hash_files(source))
        seconds = time_of(lambda: store.commit(staged, name="commit", kind="bench"))  # noqa: B023
        taken.setdefault("commit", []).append(seconds)
        before = bytes_of(store.root)
        seconds = time_of(lambda: store.adopt(source, kind="bench", name="adopted"))  # noqa: B023
        taken.setdefault("adopt", []).append(seconds)
        disk["adopt"] = bytes_of(store.root) - before
        make_writable(store.root)
        shutil.rmtree(store.root)
        if DVC.exists():
            taken.setdefault("dvc add", []).append(add_to_dvc(source, folder / f"dvc-{turn}"))
    for name, times in taken.items():
        ratios = [one / base for one, base in zip(times, taken["sha256sum"], strict=True)]
        more = f"   {disk[name] / 2**20:.0f} MiB more on the disk" if name in disk else ""
        print(f"  {name:12s} {statistics.median(times):7.2f} s   {show(ratios)} sha256sum{more}")
    if "dvc add" in taken:
        ratios = [one / own for one, own in zip(taken["dvc add"], taken["commit"], strict=True)]
        print(f"  {'dvc add':12s} {'':9s}   {show(ratios)} commit")
    make_writable(source)
    shutil.rmtree(source)


def write_files(folder: Path, size: int) -> None:
    """Files of random bytes, of equal sizes."""
    folder.mkdir()
    for index in range(FILES):
        with open(folder / f"part-{index:02d}", "wb") as file:
            for _ in range(max(size // FILES >> 20, 1)):
                file.write(random.randbytes(1 << 20))


def copy_files(source: Path, target: Path) -> None:
    """Copies that are on the disk when this returns, as a step would have left them long ago."""
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    os.sync()


def hash_files(folder: Path) -> float:
    """Seconds that ``sha256sum`` takes for a folder, one file a process."""
    names = "\0".join(str(path) for path in sorted(folder.iterdir()))
    command = ["xargs", "-0", "-n", "1", "-P", str(THREADS), "sha256sum"]
    begun = time.perf_counter()
    subprocess.run(command, input=names.encode(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def add_to_dvc(source: Path, folder: Path) -> float:
    """Seconds that ``dvc add`` takes for a copy of the folder, with hard links to its cache."""
    folder.mkdir()
    (folder / "data").mkdir()
    copy_files(source, folder / "data")
    settings = ("init --no-scm", "config cache.type hardlink", "config core.analytics false")
    for words in settings:
        subprocess.run([DVC, *words.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    begun = time.perf_counter()
    subprocess.run([DVC, "add", "-q", "data"], cwd=folder, check=True)
    seconds = time.perf_counter() - begun
    make_writable(folder)
    shutil.rmtree(folder)
    return seconds


def bytes_of(root: Path) -> int:
    """Bytes on the disk of the files that have no other name outside of ``root``."""
    inside: dict[int, list[os.stat_result]] = {}
    for path in root.rglob("*"):
        if path.is_file():
            state = path.lstat()
            inside.setdefault(state.st_ino, []).append(state)
    return sum(512 * s[0].st_blocks for s in inside.values() if s[0].st_nlink == len(s))


def make_writable(root: Path) -> None:
    """Give back the right to remove what a store or a cache protects."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)


def measure_runs(folder: Path, many: int, rounds: int) -> None:
    """What commands cost in a store with few runs and artifacts, and in one with many."""
    few = min(FEW, many // 2)
    stores = {count: Store(folder / f"store-{count}") for count in (few, many)}
    last = {count: fill(store, count) for count, store in stores.items()}
    print(f"a store of {few} runs and artifacts, and one of {many}: CPU time")
    taken = {count: register(store, last[count], 20 * rounds) for count, store in stores.items()}
    print(f"  {'registering one more':32s} {compare(taken[few], taken[many])}")
    closures = [cpu_of(lambda: walk(stores[many], last[many])) for _ in range(rounds)]
    nodes = len(walk(stores[many], last[many]).nodes)
    print(f"  upstream closure over {nodes} artifacts: {1e3 * min(closures):.0f} ms")
    ref = last[few].ref
    shallow = [["artifacts", "lineage", "--depth", "2", ref]] if has_depth() else []
    for words in (
        *(["steps", "list"], DRY_RUN, ["artifacts", "list"], ["runs", "list"]),
        *(["artifacts", "show", ref], ["runs", "show", "latest"], *shallow),
    ):
        seconds: dict[int, list[float]] = {few: [], many: []}
        for _ in range(2 * rounds):
            for count, store in stores.items():
                seconds[count].append(run_command(words, store.root))
        print(f"  {' '.join(words)[:32]:32s} {compare(seconds[few], seconds[many])}")


def fill(store: Store, count: int) -> Artifact:
    """Put ``count`` runs into a store, each of which made an artifact from two earlier ones."""
    fsync, os.fsync = os.fsync, lambda _descriptor: None  # here only what is there counts
    made: list[Artifact] = []
    rng = random.Random(0)
    try:
        for plan in vary_plans(store, count):
            begin_run(plan)
            parents = {each.ref: each for each in (made[-1], rng.choice(made))} if made else {}
            edges = [each.edge(f"input{n}") for n, each in enumerate(parents.values())]
            made.append(commit_one(store, plan.run_id, plan.step, edges, config=plan.config))
            end_run(plan, made[-1])
    finally:
        os.fsync = fsync
    return made[-1]


def vary_plans(store: Store, count: int) -> Iterator[Plan]:
    """Plans of a pipeline of several steps, each with a seed of its own."""
    text = subprocess.run(
        [*CLI, *DRY_RUN, "--json"],
        check=True,
        capture_output=True,
        env={**os.environ, "NEMOTRON_STYLE_HOME": str(store.root)},
    ).stdout
    bodies = [each["plan"] for each in json.loads(text)["runs"]]
    plans = [parse_plan(json.dumps(body), where="bench") for body in bodies]
    for number in range(count):
        plan = plans[number % len(plans)]
        config = {**plan.identity["config"], "seed": 10_000 + number}
        identity = {**plan.identity, "config": config}
        fingerprint = identify(identity)
        facts = {"identity": identity, "fingerprint": fingerprint}
        yield plan.model_copy(update={**facts, "run_id": name_run(plan.step, fingerprint)})


def begin_run(plan: Plan) -> None:
    """Write what a run's launch leaves."""
    run = RunFolder(plan.record_dir)
    run.reserve(plan)
    run.record_decision({"action": "run", "reason": "bench"})
    attempt = run.claim_attempt()
    assert attempt
    attempt.update(state="COMPLETED", exit_code=0, ended=time.time(), seconds=1.0)


def end_run(plan: Plan, made: Artifact) -> None:
    """Write that a run is complete."""
    output = {"ref": made.ref, "kind": made.kind, "digest": made.digest}
    facts = {"outputs": {"model": output}, "figures": {"loss": 1.0}}
    (plan.record_dir / "outputs.json").write_text(json.dumps(facts))


def commit_one(
    store: Store, run_id: str, step: str, edges: Sequence[object], **evidence: object
) -> Artifact:
    """Commit a small artifact as a run does."""
    staged = store.stage("bench")
    for name in ("config.json", "weights", "tokenizer.json"):
        (staged / name).write_text(f"{run_id} {name}")
    producer = Producer(run_id=run_id, step=step, slot="model", config_name="tiny")
    name = f"model{int(run_id[-2:], 16) % 20}"
    return store.commit(
        staged, name=name, kind="bench", producer=producer, inputs=edges, **evidence
    )  # type: ignore[arg-type]


def register(store: Store, parent: Artifact, count: int) -> list[float]:
    """CPU seconds of committing a small artifact, each time anew."""
    config = dict(parent.record.config)
    times = []
    for number in range(count):
        edges = [parent.edge("model")]
        run_id = f"more-{os.getpid()}-{number:03d}00"
        seconds = cpu_of(lambda: commit_one(store, run_id, "bench", edges, config=config))  # noqa: B023
        times.append(seconds)
    return times


def has_depth() -> bool:
    """Whether a lineage can be cut at a depth."""
    shown = subprocess.run([*CLI, "artifacts", "lineage", "--help"], capture_output=True).stdout
    return b"--depth" in shown


def run_command(words: Sequence[str], root: Path) -> float:
    """User plus system seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "NEMOTRON_STYLE_HOME": str(root)}
    subprocess.run([*CLI, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_of(work: Callable[[], object]) -> float:
    """Wall seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def show(ratios: Sequence[float]) -> str:
    """The median of ratios and their range."""
    return f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"


def compare(few: Sequence[float], many: Sequence[float]) -> str:
    """The best time at few and at many, in milliseconds, and the ratio of the two."""
    low, high = min(few), min(many)
    return f"{1e3 * low:8.1f} ms {1e3 * high:8.1f} ms   x{high / low:.2f}"


if __name__ == "__main__":
    main()
