"""Targets by name, each with its default numbers."""

from collections.abc import Callable

import jax.random as jr

from thermojax.targets._brownian import brownian_path
from thermojax.targets._cox import cox_process
from thermojax.targets._mixtures import Funnel, grid_mixture, random_mixture
from thermojax.targets._regression import breast_cancer, iris, wine
from thermojax.targets._schools import EightSchools
from thermojax.targets._target import AbstractTarget
from thermojax.targets._wells import ManyWell, MultiWell

# Where data or means are random their key is `jr.key(0)`.
TARGETS: dict[str, Callable[[], AbstractTarget]] = {
    "funnel": Funnel,
    "gaussians40": lambda: random_mixture(key=jr.key(0)),
    "grid25": grid_mixture,
    "multi-well": MultiWell,
    "many-well": ManyWell,
    "breast-cancer": breast_cancer,
    "iris": iris,
    "wine": wine,
    "brownian": lambda: brownian_path(key=jr.key(0)),
    "eight-schools": EightSchools,
    "cox": lambda: cox_process(key=jr.key(0)),
}
