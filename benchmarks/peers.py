"""The job of the benchmarks in PyTorch, torchsde and langesim: a driven quartic trap that starts at zero, with work and entropy summed.

Started with the Python of an environment that has them (benchmarks/peers.txt), this script answers requests, a line of JSON each:
``{"job": NAME, "samples": N, "steps": K, "seed": S}`` by ``{"seconds": ..., "work": ..., "stderr": ...}``, and ``{}`` by the jobs
it knows with their versions. It imports nothing of this project. A job of a size that is new runs once before it is timed.
"""

import json
import sys
import time
from importlib import metadata, util

THREADS = 2


def pytorch(samples, steps):
    """A loop over steps, for all trajectories at once, that sums what the library sums: work in Crooks' order, the kernels' log-ratio."""
    import torch

    torch.set_num_threads(THREADS)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            works, ratios = _loop(torch, torch.tensor(0.0), torch.tensor(1.0), samples, steps, generator)
        return works.numpy()

    return run


def pytorch_gradient(samples, steps):
    """The same, and the gradient of both means with respect to the ends of the ramp, backwards through the loop."""
    import torch

    torch.set_num_threads(THREADS)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        start, stop = (torch.tensor(a, requires_grad=True) for a in (0.0, 1.0))
        works, ratios = _loop(torch, start, stop, samples, steps, generator)
        (works.mean() + ratios.mean()).backward()
        return works.detach().numpy()

    return run


def _loop(torch, start, stop, samples, steps, generator):
    h = 1.0 / steps
    spread = (2 * h) ** 0.5
    energy = lambda x, lam: 0.25 * (x - lam) ** 4
    force = lambda x, lam: -((x - lam) ** 3)
    x, works, ratios = torch.zeros(samples), torch.zeros(samples), torch.zeros(samples)
    for k in range(steps):
        first, middle, last = (start + (stop - start) * s * h for s in (k, k + 0.5, k + 1))
        out = force(x, middle) * h
        y = x + out + spread * torch.randn(samples, generator=generator)
        works = works + (energy(x, middle) - energy(x, first)) + (energy(y, last) - energy(y, middle))
        back = force(y, middle) * h
        ratios = ratios + (out + back) * (y - x + 0.5 * (back - out)) / (2 * h)
        x = y
    return works, ratios


def torch_sde(samples, steps):
    """`torchsde.sdeint` with Euler's method; work and entropy of the medium are two more components of the state, in Itô's form."""
    import torch
    import torchsde

    torch.set_num_threads(THREADS)

    class Trap(torch.nn.Module):
        sde_type, noise_type = "ito", "scalar"

        def f(self, t, state):
            force = -((state[:, :1] - t) ** 3)
            # F o dx = F dx + D F' dt, with the power dV/dt = F for a control that moves at unit speed.
            slope = -3 * (state[:, :1] - t) ** 2
            return torch.cat([force, force, force**2 + slope], 1)

        def g(self, t, state):
            force = -((state[:, :1] - t) ** 3)
            one = torch.full_like(force, 2.0**0.5)
            return torch.stack([one, torch.zeros_like(one), one * force], 1)

    def run(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            last = torchsde.sdeint(Trap(), torch.zeros(samples, 3), torch.tensor([0.0, 1.0]), dt=1.0 / steps, method="euler")[-1]
        return last[:, 1].numpy()

    return run


def lange_sim(samples, steps):
    """Langesim's compiled simulator, all cores: it sums work and heat in Crooks' order by itself."""
    import langesim

    simulate = langesim.make_simulator(
        harmonic_potential=False,
        force=lambda x, t: -((x - t) * (x - t) * (x - t)),
        potential=lambda x, t: 0.25 * (x - t) * (x - t) * (x - t) * (x - t),
        initial_distribution=lambda: 0.0,
    )

    def run(seed):
        del seed  # it has none
        return simulate(samples, 1.0 / steps, steps, 1.0, steps)[3][:, -1]

    return run


JOBS = {
    "PyTorch loop": ("torch", pytorch),
    "PyTorch loop, backward": ("torch", pytorch_gradient),
    "torchsde": ("torchsde", torch_sde),
    "langesim": ("langesim", lange_sim),
}


def main():
    """Answer requests until there are no more."""
    made = {}
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            answer = {name: metadata.version(module) for name, (module, _) in JOBS.items() if util.find_spec(module)}
        else:
            size = (request["job"], request["samples"], request["steps"])
            if size not in made:
                made[size] = JOBS[size[0]][1](*size[1:])
                made[size](0)
            tick = time.perf_counter()
            works = made[size](request["seed"])
            seconds = time.perf_counter() - tick
            answer = {"seconds": seconds, "work": float(works.mean()), "stderr": float(works.std() / len(works) ** 0.5)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
