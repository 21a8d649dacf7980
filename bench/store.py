"""What the store costs: large files, and ten thousand runs.

``python bench/store.py`` measures everything on the disk of ``--folder``; ``--gib`` is the size of
the large artifact, ``--runs`` how many runs are many; ``files`` or ``runs`` measures one half;
``smoke`` does both in small. Large files are timed on warm pages, in turns with what
they are held against: ``sha256sum`` on as many threads, the same hash as Python has it (OpenSSL's,
which knows the processor's instructions for it) and ``dvc add`` with hard links where
``.venv-dvc`` is (``make .venv-dvc/.ready``); what that takes against the hash alone is the most
that any commit can gain. ``then commit`` is of files that were hashed while
others of them were written; the store has them already. All times are CPU time; of large files
the wall clock is told too, which says little on a machine that others use.
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
from functools import partial
from pathlib import Path

from nemotron_style.runtime.cli import fast_start  # noqa: F401  (as in a command)
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan, identify, name_run, parse_plan
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.staged.ahead import HashAhead
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
        given.gib, given.runs, given.rounds = 0.25, 40, 1
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.part != "runs":
            measure_files(Path(folder), round(given.gib * 2**30), given.rounds)
        if given.part != "files":
            measure_runs(Path(folder), given.runs, given.rounds)


def measure_files(folder: Path, size: int, rounds: int) -> None:
    """Committing and adopting one large folder, against hashing it and against ``dvc add``."""
    print(f"{size / 2**30:g} GiB in {FILES} files, {THREADS} threads, {rounds} rounds")
    source = folder / "source"
    write_files(source, size)
    taken: dict[str, list[tuple[float, float]]] = {}
    disk = {}
    for turn in range(rounds):
        store = Store(folder / f"store-{turn}")
        staged = store.stage("bench")
        copy_files(source, staged)
        hash_files(source)  # so that its pages are warm
        adopt = partial(store.adopt, source, kind="bench", name="adopted", link=True)
        works: dict[str, Callable[[], object]] = {
            "sha256sum": partial(hash_files, source),
            "hash": partial(digest_tree, source),
            "commit": partial(store.commit, staged, name="commit", kind="bench"),
            "adopt": adopt,
        }
        for name, work in works.items():
            before = bytes_of(store.root)
            taken.setdefault(name, []).append(times_of(work))
            disk[name] = bytes_of(store.root) - before
        before = bytes_of(store.root)
        written = store.stage("bench")
        with HashAhead(written) as ahead:  # as a worker does while its step writes
            taken.setdefault("write", []).append(times_of(partial(copy_files, source, written)))
            last = partial(store.commit, written, name="last", kind="bench", ahead=ahead)
            taken.setdefault("then commit", []).append(times_of(last))
        disk["again"] = bytes_of(store.root) - before
        remove(store.root)
        if DVC.exists():
            prepare_dvc(source, folder / "dvc")
            add = partial(subprocess.run, [DVC, "add", "-q", "data"], cwd=folder / "dvc")
            taken.setdefault("dvc add", []).append(times_of(add))
            remove(folder / "dvc")
    for name, times in taken.items():
        cpu, wall = (statistics.median(each) for each in zip(*times, strict=True))
        speed = 1024 * size / 2**30 / wall
        print(f"  {name:11s} {cpu:7.2f} s CPU {wall:7.2f} s   {speed:5.0f} MiB/s")
        for base in {"dvc add": ["hash", "commit", "then commit"], "hash": []}.get(name, ["hash"]):
            print(f"              against {base:11s} {show(times, taken[base])}")
    for name in ("adopt", "again"):
        print(f"  {name}: {disk[name] / 2**20:.0f} MiB more on the disk")
    remove(source)


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


def hash_files(folder: Path) -> None:
    """Run ``sha256sum`` on a folder, a process for each of several files at a time."""
    names = "\0".join(str(path) for path in sorted(folder.iterdir()))
    command = ["xargs", "-0", "-n", "1", "-P", str(THREADS), "sha256sum"]
    subprocess.run(command, input=names.encode(), check=True, stdout=subprocess.DEVNULL)


def prepare_dvc(source: Path, folder: Path) -> None:
    """A copy of the folder in a project of DVC whose cache has hard links."""
    (folder / "data").mkdir(parents=True)
    copy_files(source, folder / "data")
    settings = ("init --no-scm", "config cache.type hardlink", "config core.analytics false")
    for words in settings:
        subprocess.run([DVC, *words.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def bytes_of(root: Path) -> int:
    """Bytes on the disk of the files that have no other name outside of ``root``."""
    inside: dict[int, list[os.stat_result]] = {}
    for path in root.rglob("*"):
        if path.is_file():
            state = path.lstat()
            inside.setdefault(state.st_ino, []).append(state)
    return sum(512 * s[0].st_blocks for s in inside.values() if s[0].st_nlink == len(s))


def remove(root: Path) -> None:
    """Remove what a store or a cache protects."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
    shutil.rmtree(root)


def measure_runs(folder: Path, many: int, rounds: int) -> None:
    """What commands cost in a store with few runs and artifacts, and in one with many."""
    few = min(FEW, many // 2)
    stores = {count: Store(folder / f"store-{count}") for count in (few, many)}
    last = {count: fill(store, count) for count, store in stores.items()}
    print(f"a store of {few} runs and artifacts, and one of {many}: CPU time")
    taken: dict[int, list[float]] = {few: [], many: []}
    for turn in range(20 * rounds):  # in turns, since the machine may have other work
        for count, store in stores.items():
            taken[count].append(register(store, last[count], turn))
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


def register(store: Store, parent: Artifact, turn: int) -> float:
    """CPU seconds of committing a small artifact."""
    run_id = f"more-{os.getpid()}-{turn:03d}00"
    config, edges = dict(parent.record.config), [parent.edge("model")]
    return cpu_of(partial(commit_one, store, run_id, "bench", edges, config=config))


def has_depth() -> bool:
    """Whether a lineage can be cut at a depth."""
    shown = subprocess.run([*CLI, "artifacts", "lineage", "--help"], capture_output=True).stdout
    return b"--depth" in shown


def run_command(words: Sequence[str], root: Path) -> float:
    """User plus system seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "NEMOTRON_STYLE_HOME": str(root)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # see bench/command_line.py
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*CLI, *words], check=True, env=environment, **quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def times_of(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process and its children, and wall seconds."""
    begun, before = time.perf_counter(), cpu_so_far()
    work()
    return cpu_so_far() - before, time.perf_counter() - begun


def cpu_so_far() -> float:
    """CPU seconds of this process and of its children that ended."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)  # os.times counts hundredths


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def show(times: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]) -> str:
    """The medians of the ratios of CPU and of wall time, and their ranges."""
    texts = []
    for index, what in enumerate(("CPU", "wall")):
        ratios = [one[index] / other[index] for one, other in zip(times, base, strict=True)]
        low, high = min(ratios), max(ratios)
        texts.append(f"{what} x{statistics.median(ratios):.2f} [{low:.2f} .. {high:.2f}]")
    return "   ".join(texts)


def compare(few: Sequence[float], many: Sequence[float]) -> str:
    """The best time at few and at many, in milliseconds, and the ratio of the two."""
    low, high = min(few), min(many)
    return f"{1e3 * low:8.1f} ms {1e3 * high:8.1f} ms   x{high / low:.2f}"


if __name__ == "__main__":
    main()
