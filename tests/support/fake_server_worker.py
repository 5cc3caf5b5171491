"""A stand-in for a rollout server on a machine of its own, until it is killed.

    fake_server_worker.py HOST PORT IMAGE_TOKEN VOCABULARY

The first token of each response is 100 + the value that all its weights have, 100 + 99 with those of its start, and 100
where they are the weights of a model. SIGUSR1: from now on it is as it was at its start.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

from fake_vllm_server import FakeServer, Reply

OWN = 99


ANSWER_S = 0.05  # that it takes to answer, so that a step has a middle


class Server(FakeServer):
    def __init__(self, *args: Any) -> None:
        self.weights = threading.Lock()
        super().__init__(*args)

    def generate(self, body: dict[str, Any]) -> Reply:
        time.sleep(ANSWER_S)
        return super().generate(body)

    def choice(self, index: int, seed: int) -> dict[str, Any]:
        with self.weights:
            made = super().choice(index, seed)
            first = made["token_ids"][0] = 100 + self.made_with()
        made["logprobs"]["content"][0]["token_id"] = first
        return made

    def forget(self) -> None:
        with self.weights:
            self.loaded.clear()
            self.label, self.folder = "default", ""

    def made_with(self) -> int:
        if not self.loaded:
            return OWN
        values = self.loaded[-1]
        return int(values["a.weight"].unique().item()) if values.keys() == {"a.weight"} else 0


def main(host: str, port: int, image_token: int, vocabulary: int) -> None:
    server = Server(image_token, 0, port, host)
    server.settings["vocab_size"] = vocabulary
    signal.signal(signal.SIGUSR1, lambda *_: server.forget())
    print("listens", flush=True)
    server.wait(24 * 3600)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
