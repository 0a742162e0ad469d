"""Clients that ask a server for characters again and again: python -m bench.clients TARGET MODEL LENGTH

A process of its own, without TensorFlow. For each {"clients": N, "seconds": S} that it reads, N threads, each with a
connection of its own, make a call of one row after another for so long, a seed a call, and finish the last. It answers
with the seconds from the first call to the last answer, how long each call took, how many were refused (by gRPC's
code), how many characters came, and the seconds that its own processor time took: near those of the clock, it is the
clients that are measured.
"""

import itertools
import json
import sys
import threading
import time
from collections import Counter

from bench.peers import say
from export.client.client import Client, ServingError

MOST = 64  # clients


def ask(clients: list[Client], length: int, seconds: float) -> dict[str, object]:
    """What the clients saw."""
    took: list[float] = []
    refused: Counter[str] = Counter()
    characters, seeds, ready = [0] * len(clients), itertools.count(1), threading.Barrier(len(clients) + 1)

    def one(index: int) -> None:
        ready.wait()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            try:
                answer = clients[index].generate("", length, seed=next(seeds))
            except ServingError as error:
                refused[error.code.name] += 1
                continue
            took.append(time.perf_counter() - start)
            characters[index] += answer.n_chars

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(clients))]
    for thread in threads:
        thread.start()
    ready.wait()
    start, worked = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    return {
        "seconds": time.perf_counter() - start,
        "calls": sorted(took),
        "refused": dict(refused),
        "characters": sum(characters),
        "processor_seconds": time.process_time() - worked,
    }


def main(target: str, model: str, length: int) -> None:
    alone = [("grpc.use_local_subchannel_pool", 1)]  # else gRPC joins the connections of a process
    clients = [Client(target, model, retries=0, timeout=120, channel_options=alone) for _ in range(MOST)]
    about = clients[0].info()
    say({"info": about})
    for line in sys.stdin:
        asked = json.loads(line)
        say(ask(clients[: asked["clients"]], length, asked["seconds"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
