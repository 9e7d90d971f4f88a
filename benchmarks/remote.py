"""The peers, asked through a process in their own environment."""

import json
import os
import pathlib
import subprocess

import jax.random as jr

SCRIPT = pathlib.Path(__file__).parent / "peers.py"


class Peers:
    """A process that runs the peers' jobs on request; without a Python for it there are no peers."""

    def __init__(self, python):
        self.versions = {}
        self._process = None
        if python is None:
            print("   peers in their own environment are skipped: --peers-python is not given")
            return
        # Threads that wait must not spin while others are timed.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen([python, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        self.versions = self.ask({})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)

    def ask(self, request):
        """The answer to one request."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The peers' process ended at {request}.")
        return json.loads(answer)

    def jobs(self, samples, steps, names=None):
        """The jobs as functions of a key, which answer with seconds, mean work and its standard error."""
        known = [name for name in self.versions if names is None or name in names]
        ask = lambda name, key: self.ask({"job": name, "samples": samples, "steps": steps, "seed": int(jr.key_data(key)[-1])})
        return {name: lambda key, name=name: ask(name, key) for name in known}
