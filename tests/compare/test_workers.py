"""Workers: the same results as in one process, whoever dies; and nothing twice."""

import concurrent.futures
import dataclasses
import json
import os
import signal
import threading
import time

import cloudpickle
import optax
import pytest

from optlab.compare import StudyError, workers
from optlab.compare import study as module
from optlab.compare.driver import run_study
from optlab.compare.study import make_study

from .cheap import Pretended, tiny

WORKLOAD = tiny()
KILLS = 3  # of workers


def studied(contenders=("adamw", "sgd"), **settings):
    return make_study(contenders, WORKLOAD, steps=10, trials=4, studies=2, **{"executor": "series", **settings})


@pytest.fixture
def nothing_is_trained(monkeypatch):
    pretended = dict.fromkeys(("population", "series", "runs"), Pretended)
    for place in (module, workers):
        monkeypatch.setattr(place, "EXECUTORS", pretended)
    monkeypatch.setattr(Pretended, "trained", [])
    monkeypatch.setattr(module, "_programs", lambda workload: {})
    monkeypatch.setattr(module, "_described", lambda workload, contender: {"space": str(contender.space)})


class Mortal(concurrent.futures.Executor):
    """Trains at once, and dies whenever it is told to."""

    def __init__(self, dies):
        self.calls, self.dies = 0, dies

    def submit(self, function, *arguments):
        self.calls += 1
        future = concurrent.futures.Future()
        if self.dies(self.calls):
            future.set_exception(concurrent.futures.BrokenExecutor("killed"))
        else:
            future.set_result(function(*arguments))
        return future


def ids_in(folder):
    return [json.loads(line)["id"] for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_any_executor_gives_the_same_results(nothing_is_trained, tmp_path):
    alone = run_study(studied())
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert run_study(studied(), tmp_path, workers=pool) == alone
    assert sorted(ids_in(tmp_path)) == sorted(alone)


def test_a_part_whose_worker_died_is_given_out_again(nothing_is_trained, tmp_path):
    alone = run_study(studied())
    dying = Mortal(lambda call: call % 3 == 2)
    assert run_study(studied(), tmp_path, workers=dying) == alone
    assert sorted(ids_in(tmp_path)) == sorted(alone)


def test_trials_that_kill_every_worker_are_given_up_and_what_is_finished_is_kept(nothing_is_trained, tmp_path):
    dying = Mortal(lambda call: call > 2)
    with pytest.raises(StudyError, match="5 workers died one after another"):
        run_study(studied(), tmp_path, workers=dying)
    kept = ids_in(tmp_path)
    assert kept
    Pretended.trained.clear()
    assert run_study(studied(), tmp_path)
    assert not set(kept) & set(Pretended.trained)


def test_an_error_of_a_trial_is_no_death(nothing_is_trained, monkeypatch):
    def fails(payload, trials):
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(workers, "_train", fails)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="mine"):
        run_study(studied(), workers=pool)


def test_a_worker_measures_the_executors_once_and_another_one_if_it_dies(nothing_is_trained, monkeypatch, tmp_path):
    paces = {"series": 0.002, "population": 0.001}
    monkeypatch.setattr(workers, "race", lambda *task: (paces, {}))
    dying = Mortal(lambda call: call == 1)
    with workers.employ(dying) as team:
        study = studied(executor=None)
        found = run_study(study, tmp_path, workers=team)
        assert team.measured == {"adamw": paces}
        assert run_study(dataclasses.replace(study, studies=1), workers=team).keys() < found.keys()
    assert json.loads((tmp_path / "executors.json").read_text())["seconds"]["sgd"] == paces
    with pytest.raises(StudyError, match="5 workers died one after another as they timed a few steps of adamw"):
        run_study(study, workers=Mortal(lambda call: True))


def test_an_interruption_ends_the_processes_and_the_end_of_a_study_does_not():
    class Process:
        ended = 0

        def terminate(self):
            self.ended += 1

    for error, ended in ((KeyboardInterrupt(), 1), (None, 0)):
        process, team = Process(), workers.Team(1)
        team.pool._processes = {1: process}
        team.__exit__(type(error) if error else None, error, None)
        assert process.ended == ended


def test_what_a_worker_gets_holds_functions_by_value():
    decay = 0.1
    study = studied({"mine": lambda learning_rate: optax.adamw(learning_rate, weight_decay=decay), "sgd": "sgd"})
    made = workers._made(workers._payload(study, "mine"))
    assert made.contender.make({"learning_rate": 0.1}).init is not None
    assert made.workload.batch_size == 16
    workers._made.cache_clear()


def test_a_worker_with_another_jax_refuses():
    with pytest.raises(StudyError, match=r"the worker has jax .*, the driver 0\.0"):
        workers._made(cloudpickle.dumps(("0.0", [], b"")))


@pytest.mark.parametrize("bad", [0, True, "two", 1.5])
def test_workers_of_another_kind_are_refused(bad):
    with pytest.raises(StudyError, match=r"workers must be a number of processes, a concurrent\.futures\.Executor"):
        run_study(studied(executor="runs"), workers=bad)


def alike(found, alone):
    """Whether two studies' numbers are the same; how long they took isn't."""
    numbers = lambda results: {i: (r.trial, r.curve, r.test, r.diverged) for i, r in results.items()}
    return numbers(found) == numbers(alone)


@pytest.mark.slow
def test_processes_that_are_killed_lose_and_double_nothing(tmp_path, monkeypatch):
    alone = run_study(studied())
    pools = []
    started = workers.Team._started
    monkeypatch.setattr(workers.Team, "_started", lambda self: pools.append(started(self)) or pools[-1])
    over = threading.Event()
    seen = []

    def kill():
        while not over.is_set() and len(seen) < 3:
            time.sleep(0.2)
            if len(ids_in_or_none(tmp_path)) > 3 * len(seen) and pools and pools[-1]._processes:
                seen.append(next(iter(pools[-1]._processes)))
                os.kill(seen[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run_study(studied(), tmp_path, workers=2)
    finally:
        over.set()
        killer.join()
    assert seen
    assert alike(found, alone)
    assert sorted(ids_in(tmp_path)) == sorted(alone)


def ids_in_or_none(folder):
    return ids_in(folder) if (folder / "trials.jsonl").exists() else []


@pytest.mark.slow
def test_dasks_workers_that_are_killed_lose_and_double_nothing(tmp_path):
    from distributed import Client, LocalCluster

    alone = run_study(studied())
    over, killed = threading.Event(), []
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def kill():
            while not over.is_set() and len(killed) < KILLS:
                time.sleep(0.5)
                if len(ids_in_or_none(tmp_path)) > len(killed):
                    worker = list(cluster.workers.values())[len(killed) % 3]
                    if worker.process is not None and worker.process.pid not in (None, *killed):
                        killed.append(worker.process.pid)
                        os.kill(killed[-1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            found = run_study(studied(), tmp_path, workers=client.get_executor(pure=False))
        finally:
            over.set()
            killer.join()
    assert killed
    assert alike(found, alone)
    assert sorted(ids_in(tmp_path)) == sorted(alone)
