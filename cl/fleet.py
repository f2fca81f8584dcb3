"""Many tasks at a time: joblib's workers, on this machine or on a cluster, and what if one dies.

One way for every backend: what a task returns is written to a folder beside the runs as it ends,
so that nothing is lost when a worker dies and takes joblib's pool with it. What had ended stays;
what was running is done again after the rest; if a worker dies again meanwhile, it is done alone,
where there is no doubt whose worker it is that dies; then it has failed.

    loky   processes on this machine
    ray    a Ray cluster: cluster=ADDRESS, else $RAY_ADDRESS, else the one on this machine
    dask   a Dask cluster: cluster=ADDRESS or its scheduler file, else $DASK_SCHEDULER_ADDRESS

A cluster needs a file system that all nodes share, and cl installed on all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cl.errors import BadValue, ClError, MissingPackage, RunError, place, unknown
from cl.folder import write

BACKENDS = ("loky", "ray", "dask")
TRIES = 3  # of a task that was running when a worker died; the last one alone
LOOKS = 5  # times a second for what has ended


@dataclass(frozen=True)
class Workers:
    """Who works: n processes (none: as many as there are cores for `threads` each) of a backend."""

    n: int | None = None
    backend: str = "loky"
    cluster: str | None = None
    threads: int = 1

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        if self.cluster is not None and self.backend == "loky":
            raise BadValue("cluster= is for backend=ray and backend=dask; loky is this machine")


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its value (JSON), or an error in one line, its class, its log."""

    value: Any = None
    error: str | None = None
    kind: str | None = None
    exit_code: int = 0
    log: str | None = None
    seconds: float = 0.0


@contextmanager
def fleet(workers: Workers, home: Path) -> Iterator[Fleet]:
    """The workers, while they are needed. home: an existing folder that all of them reach.

    Raises BadValue where they can't be had.
    """
    with CONNECT[workers.backend](workers) as (settings, deadly):
        yield Fleet(settings, deadly, home)


class Fleet:
    """Workers that can be given tasks. n: how many; settings: joblib's; deadly: what it raises
    when one of them has died."""

    def __init__(self, settings: dict[str, Any], deadly: tuple[type[Exception], ...], home: Path):
        self.settings, self.deadly, self.home = settings, deadly, home

    @property
    def n(self) -> int:
        """How many tasks are done at a time."""
        return self.settings["n_jobs"]

    def carry_out(
        self,
        task: Callable[[Any], Any],
        items: Sequence[Any],
        ended: Callable[[int, Outcome], None] = lambda k, outcome: None,
        running: Callable[[list[int]], None] = lambda ks: None,
    ) -> list[Outcome]:
        """Call `task` with every item, in other processes if n is not 1.

        ended(k, outcome) is called once for every item, running(ks) now and then with those that
        are being worked on, both from a thread too. Raises RunError if workers die at once.
        """
        with _notes(self.home) as notes:
            call = _Call(self, task, items, notes, ended, running)
            with call.looking():
                call.run()
        return [call.outcomes[k] for k in range(len(items))]


class _Call:
    """The state of one `carry_out`."""

    def __init__(self, fleet: Fleet, task, items, notes: Path, ended, running):
        self.fleet, self.task, self.items, self.notes = fleet, task, items, notes
        self.ended, self.tell = ended, running
        self.outcomes: dict[int, Outcome] = {}
        self.deaths: Counter = Counter()
        self.lock = threading.Lock()

    def run(self) -> None:
        """Until every item has an outcome."""
        idle = 0
        while left := [k for k in range(len(self.items)) if k not in self.outcomes]:
            batch = [k for k in left if self.deaths[k] < TRIES - 1]
            batch.sort(key=self.deaths.__getitem__)
            try:
                self._parallel(batch or left[:1])
            except self.fleet.deadly as error:
                victims = self._victims()
                idle = 0 if victims else idle + 1
                if idle == TRIES:
                    raise RunError(f"workers die before they begin: {_line(error)}") from error

    def _parallel(self, batch: list[int]) -> None:
        from joblib import Parallel, delayed, parallel_config

        n = self.fleet.n
        n = n if n == 1 else min(n, max(2, len(batch)))  # one of joblib's would be this process
        for k in batch:
            (self.notes / f"{k}.begun").unlink(missing_ok=True)
        calls = (delayed(_one)(self.task, self.items[k], k, self.notes) for k in batch)
        with warnings.catch_warnings(), parallel_config(**self.fleet.settings | {"n_jobs": n}):
            # joblib replaces a worker whose memory has grown; nothing is lost by that
            warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
            for k, outcome in Parallel(batch_size=1, pre_dispatch=n)(calls):
                self._take(k, Outcome(**outcome))

    def _victims(self) -> list[int]:
        """What was being worked on when a worker died: counted, and failed if it was alone."""
        self.look()
        running = self.running()
        self.deaths.update(running)
        for k in running:
            if self.deaths[k] == TRIES:
                self._take(k, Outcome(error=f"its worker died {TRIES} times", exit_code=1))
        return running

    def running(self) -> list[int]:
        """Items that have begun and have no outcome."""
        begun = (int(name.partition(".")[0]) for name in _names(self.notes, ".begun"))
        return sorted(k for k in begun if k not in self.outcomes)

    def look(self) -> None:
        """Take what workers have written."""
        for name in _names(self.notes, ".json"):
            k = int(name.partition(".")[0])
            if k not in self.outcomes:
                self._take(k, Outcome(**json.loads((self.notes / name).read_text("utf-8"))))

    def _take(self, k: int, outcome: Outcome) -> None:
        with self.lock:
            if k not in self.outcomes:
                self.outcomes[k] = outcome
                self.ended(k, outcome)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look now and then, in a thread, whatever the backend hands back before all is done."""
        stop = threading.Event()

        trouble: list[BaseException] = []

        def look() -> None:
            try:
                while not stop.wait(1 / LOOKS):
                    self.look()
                    self.tell(self.running())
            except BaseException as error:  # raised where it is heard
                trouble.append(error)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if trouble:
            raise trouble[0]


def _one(task: Callable[[Any], Any], item: Any, k: int, notes: Path) -> tuple[int, dict]:
    """In a worker: one item, whatever comes of it, as a note and as what is returned."""
    write(notes / f"{k}.begun", str(os.getpid()))
    started = time.perf_counter()
    try:
        found = {"value": task(item)}
    except ClError as error:
        found = {"error": _line(error), "exit_code": error.exit_code, "log": _log(error)}
        found["kind"] = type(error).__name__
    except Exception as error:  # a bug must not end what else is to be done
        said = f"{type(error).__name__}: {_line(error)} in {place(error)}"
        found = {"error": said, "exit_code": 1}
    outcome = asdict(Outcome(**found, seconds=round(time.perf_counter() - started, 3)))
    write(notes / f"{k}.json", json.dumps(outcome))
    return k, outcome


def _log(error: ClError) -> str | None:
    folder = getattr(error, "run_folder", None)
    return None if folder is None else str(Path(folder) / "log.txt")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _names(folder: Path, ending: str) -> list[str]:
    return [n for n in os.listdir(folder) if n.endswith(ending) and not n.startswith(".")]


@contextmanager
def _notes(home: Path) -> Iterator[Path]:
    """A folder for what workers note, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _loky(workers: Workers) -> Iterator[tuple[dict, tuple]]:
    from joblib import cpu_count
    from joblib.externals.loky.process_executor import BrokenProcessPool

    n = workers.n or max(1, cpu_count() // workers.threads)
    # numpy's and other libraries' threads, too: N workers on N cores would be in each other's way
    yield (
        {"backend": "loky", "n_jobs": n, "inner_max_num_threads": workers.threads},
        (BrokenProcessPool,),
    )


@contextmanager
def _ray(workers: Workers) -> Iterator[tuple[dict, tuple]]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingPackage(_missing("ray")) from error
    ours, address = not ray.is_initialized(), workers.cluster or os.environ.get("RAY_ADDRESS")
    if ours:
        try:
            _knock(address)
            ray.init(address or "auto", log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError) as error:
            why = f" ({error.strerror})" if getattr(error, "strerror", None) else ""
            raise BadValue(
                f"no Ray cluster at {address or 'this machine'}{why}: start one with `ray start "
                "--head`, or name it with cluster=HOST:PORT"
            ) from error
    try:
        register_ray()
        cores = int(ray.cluster_resources().get("CPU", 0)) // workers.threads
        each = {"num_cpus": workers.threads, "scheduling_strategy": "SPREAD"}
        n = _at_most(workers, cores, "Ray")
        yield (
            {"backend": "ray", "n_jobs": n, "ray_remote_args": each},
            (ray.exceptions.RayError,),
        )
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _dask(workers: Workers) -> Iterator[tuple[dict, tuple]]:
    try:
        import dask
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise MissingPackage(_missing("dask")) from error
    address = workers.cluster or dask.config.get("scheduler-address", None)
    if address is None:
        raise BadValue("backend=dask needs cluster=HOST:PORT of a scheduler, or its scheduler file")
    where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        _knock(where.get("address"))
        client = Client(**where, timeout=20, set_as_default=False)
        client.wait_for_workers(1, timeout=60)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadValue(f"no Dask cluster with workers at {address} ({_line(error)})") from error
    with client:
        busy = [k for k in client.nthreads().values() if k > 1]
        if busy:
            raise BadValue(
                f"a Dask worker has {busy[0]} threads, where runs would draw from each other's "
                "random numbers: start them with `dask worker ADDRESS --nthreads 1 --nworkers N`"
            )
        n = _at_most(workers, len(client.nthreads()), "Dask")
        yield {"backend": "dask", "n_jobs": n, "client": client}, (KilledWorker,)


CONNECT = {"loky": _loky, "ray": _ray, "dask": _dask}


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens; clusters' own clients try for long."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdigit():
        raise BadValue(f"cluster={address} is no address: HOST:PORT")
    socket.create_connection((host, int(port)), timeout=10).close()


def _at_most(workers: Workers, there: int, name: str) -> int:
    if there < (workers.n or 1):
        raise BadValue(
            f"the {name} cluster has room for {there} workers with {workers.threads} "
            f"thread{'s' * (workers.threads != 1)} each, workers={workers.n} are more"
        )
    return workers.n or there


def _missing(package: str) -> str:
    return (
        f"backend={package} needs a package that is not installed: "
        f"pip install 'cl-simulator[{package}]'"
    )
