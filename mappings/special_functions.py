"""Special functions that Keras lacks, written with elementary ones."""

import math

import torch

from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from mappings.elementwise import arithmetic

aten = torch.ops.aten

# Lanczos' series for g = 607/128, as in P. Godfrey, "A note on the computation of the convergent Lanczos complex Gamma
# approximation", 2001: accurate to 1e-15.
LANCZOS_G = 607 / 128
LANCZOS = (
    0.99999999999999709182, 57.156235665862923517, -59.597960355475491248, 14.136097974741747174,
    -0.49191381609762019978, 0.33994649984811888699e-4, 0.46523628927048575665e-4, -0.98374475304879564677e-4,
    0.15808870322491248884e-3, -0.21026444172410488319e-3, 0.21743961811521264320e-3, -0.16431810653676389022e-3,
    0.84418223983852743293e-4, -0.26190838401581408670e-4, 0.36899182659531622704e-5,
)  # fmt: skip
# Bernoulli numbers B(2k) / 2k of the asymptotic series, https://dlmf.nist.gov/5.11#E2
ASYMPTOTIC = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
SHIFT = 10  # that series is accurate to 1e-15 from here on


def is_pole(a):
    """Return whether `a` is 0 or a negative integer."""
    return ops.logical_and(a <= 0, ops.equal(a, ops.floor(a)))


@maps(aten.lgamma.default)
def log_gamma(plan, x):
    def above(a):
        """Compute the function for a >= 0.5."""
        z = a - 1
        series = LANCZOS[0] + sum(c / (z + k) for k, c in enumerate(LANCZOS[1:], start=1))
        t = z + LANCZOS_G + 0.5
        return (z + 0.5) * ops.log(t) - t + ops.log(series * math.sqrt(2 * math.pi))

    def function(a):
        low = a < 0.5
        right = above(ops.where(low, 1 - a, a))
        fraction = a - ops.round(a)  # exact, even near a pole
        inside = ops.where(is_pole(a), ops.ones_like(a) * 0.5, fraction)
        left = math.log(math.pi) - ops.log(ops.abs(ops.sin(math.pi * inside))) - right
        result = ops.where(low, left, right)
        result = ops.where(ops.logical_or(ops.equal(a, 1), ops.equal(a, 2)), ops.zeros_like(a), result)
        endless = ops.logical_or(is_pole(a), ops.isinf(a))
        return ops.where(endless, ops.full_like(a, math.inf), result)

    return arithmetic(plan, function, x)


@maps(aten.digamma.default)
def digamma(plan, x):
    def above(a):
        """Compute the function for positive a."""
        y = a + SHIFT
        square = 1 / (y * y)
        series = 0.0
        for coefficient in reversed(ASYMPTOTIC):
            series = (series + coefficient) * square
        return ops.log(y) - 0.5 / y - series - sum(1 / (a + k) for k in range(SHIFT))

    def function(a):
        low = a < 0.5
        right = above(ops.where(low, 1 - a, a))
        fraction = a - ops.round(a)  # exact, even near a pole
        inside = ops.where(is_pole(a), ops.ones_like(a) * 0.5, fraction)
        result = ops.where(low, right - math.pi / ops.tan(math.pi * inside), right)
        result = ops.where(is_pole(a), ops.full_like(a, math.nan), result)
        at_zero = ops.where(ops.signbit(a), ops.full_like(a, math.inf), ops.full_like(a, -math.inf))
        return ops.where(ops.equal(a, 0), at_zero, result)

    return arithmetic(plan, function, x)
