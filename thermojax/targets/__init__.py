r"""Densities known up to their normaliser, $\pi(x) = \gamma(x)/Z$, for samplers to be tried on.

A target is called with one configuration of shape ``(dim,)`` and returns $\ln\gamma(x)$. It knows its `dim`, its `log_z` where that is
known, and, where it can, draws exact samples: ``sample(n, key=key)``. So it stands wherever `measures` take an unnormalised density. Any
function is a target in one line, ``Target(log_prob, dim)``; a distribution by `as_target`; and a target is a potential
$V = -\ln\gamma$ by `Energy`.

    funnel, gaussians40, grid25      normalised, exact draws          Funnel, random_mixture, grid_mixture
    multi-well, many-well            Z and draws by quadrature        MultiWell, ManyWell
    brownian, eight-schools          posteriors with known evidence   BrownianPath, EightSchools
    breast-cancer, iris, wine, cox   posteriors, evidence unknown     LogisticRegression, CoxProcess

`TARGETS` makes each of these by name. Priors and likelihoods are normalised everywhere, so that $Z$ is the evidence. Targets with separate
modes number them: ``well(x)`` says in which one a state is, `well_weights` holds their exact shares.
"""

from thermojax.targets._brownian import (
    brownian_path as brownian_path,
    BrownianPath as BrownianPath,
    BrownianPathAndScales as BrownianPathAndScales,
)
from thermojax.targets._cox import cox_process as cox_process, CoxProcess as CoxProcess
from thermojax.targets._mixtures import (
    Funnel as Funnel,
    grid_mixture as grid_mixture,
    Mixture as Mixture,
    random_mixture as random_mixture,
)
from thermojax.targets._registry import TARGETS as TARGETS
from thermojax.targets._regression import (
    breast_cancer as breast_cancer,
    iris as iris,
    logistic_regression as logistic_regression,
    LogisticRegression as LogisticRegression,
    wine as wine,
)
from thermojax.targets._schools import EightSchools as EightSchools
from thermojax.targets._target import (
    AbstractTarget as AbstractTarget,
    as_target as as_target,
    check_target as check_target,
    Energy as Energy,
    Target as Target,
)
from thermojax.targets._wells import ManyWell as ManyWell, MultiWell as MultiWell
