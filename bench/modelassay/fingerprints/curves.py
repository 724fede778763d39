"""Sigma-curves of a model and the two ways to compare them: as published, and with the shared depth trend removed."""

# L = layers, R = the four roles in the order of ROLES

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

ROLES = ("q", "k", "v", "o")
BEYOND = ("q-bias", "k-bias", "v-bias", "norm-1", "norm-2", "gate", "up", "down")
"""Standard deviations of what else a layer has: biases, weights of the norms before attention and before the
feed-forward network, and its matrices (of all experts together)."""
PRODUCTS = ("qk-norm", "qk-top", "qk-rank", "vo-norm", "vo-top", "vo-rank")
"""Summaries of the products of query with key and of value with output; see `products`."""
MIN_LAYERS = 4  # after a mean and a slope are fitted, three layers leave one number, whose correlation is always +-1
KEPT = 4096  # prepared curves: a run compares each of its models with dozens of others
CONSTANT = 1e-10  # a curve whose variation is below this share of its size is rounding noise, not a curve


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The standard deviations of a model's attention projections, one curve over depth per role.

    Raises:
        ValueError: where lengths differ, or a value is not finite and positive; the text names the model, the role and the layer.
    """

    name: str
    sigma: Mapping[str, Array]
    """Roles of attention to float64[L], ``q``, ``k``, ``v``, ``o`` or factors of these; copied and made read-only."""
    stratum: Hashable
    """What a stranger must share to be a fair comparison: depth, shape, tokenizer."""
    family: str | None = None
    """The root this model is known to descend from (a root names itself), None where it is not known."""
    extra: Mapping[str, Array] = field(default_factory=dict)
    """Further curves that some methods use: ``BEYOND`` and ``PRODUCTS``; those a model lacks are not there."""
    weights_key: str | None = None
    """Hash of the attention weights: equal keys, equal weights; None where it was not taken."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Roles that have no curve because some layer's matrix has no standard deviation, and why."""
    num_layers: int = 0
    """As many as each curve has values."""

    def __post_init__(self) -> None:
        """Copy and check the curves: the one gate, behind it nothing is checked again."""
        curves = {role: _checked(self.name, role, self.sigma[role]) for role in _in_order(self.sigma)}
        lengths = {role: curve.size for role, curve in curves.items()}
        if len(set(lengths.values())) > 1 or (not lengths and not self.num_layers) or not all(lengths.values()):
            counts = ", ".join(f"{role} {count}" for role, count in lengths.items()) or "no"
            message = f"{self.name}: the roles must have one value per layer each, got {counts} values"
            raise ValueError(message)
        num_layers = next(iter(lengths.values()), self.num_layers)
        extra = {role: _checked(self.name, role, values) for role, values in self.extra.items()}
        if uneven := [role for role, curve in extra.items() if curve.size != num_layers]:
            message = f"{self.name}: role {uneven[0]}: {extra[uneven[0]].size} values for {num_layers} layers"
            raise ValueError(message)
        object.__setattr__(self, "sigma", curves)
        object.__setattr__(self, "extra", extra)
        object.__setattr__(self, "num_layers", num_layers)

    @property
    def sigma_RL(self) -> Array:
        """The curves of attention as float64[R, L] in the order of ``sigma``."""
        return self.rows(tuple(self.sigma))

    def rows(self, roles: Sequence[str]) -> Array:
        """Return the curves of ``roles`` as float64[R, L]."""
        return np.stack([self.sigma[role] if role in self.sigma else self.extra[role] for role in roles])


def _in_order(roles: Iterable[str]) -> list[str]:
    """Put ``ROLES`` first, in their order.

    >>> _in_order(["o", "kv-a", "q"])
    ['q', 'o', 'kv-a']
    """
    given = list(roles)
    return [role for role in ROLES if role in given] + [role for role in given if role not in ROLES]


def shared_roles(a: Curves, b: Curves) -> tuple[str, ...] | str:
    """Return the roles of attention of both models, or why not all of them can be compared."""
    for model in (a, b):
        if model.faults:
            return f"{model.name}: {next(iter(model.faults.values()))}, so that role has no curve"
    if set(a.sigma) == set(b.sigma) and a.sigma:
        return tuple(a.sigma)
    texts = [f"{model.name} has {', '.join(model.sigma) or 'none'}" for model in (a, b)]
    return f"the projections of attention differ: {' and '.join(texts)}"


def _checked(name: str, role: str, values: ArrayLike) -> Array:
    curve = np.array(values, dtype=np.float64)
    if curve.ndim != 1:
        message = f"{name}: role {role}: needs one value per layer, got an array of shape {curve.shape}"
        raise ValueError(message)
    bad = np.flatnonzero(~(np.isfinite(curve) & (curve > 0)))
    if bad.size:
        message = (
            f"{name}: role {role}: layer {bad[0]}: a standard deviation must be finite and positive, got "
            f"{curve[bad[0]]:g}; look at that tensor, a NaN or a zero there is a finding about the checkpoint"
        )
        raise ValueError(message)
    curve.setflags(write=False)
    return curve


@dataclass(frozen=True, kw_only=True)
class Score:
    """A similarity in [-1, 1]; NaN, with the reason, where it is not defined."""

    value: float
    """The mean over the roles that were compared."""
    per_role: Mapping[str, float]
    alignment: str
    """``same depth``, or how the layers of the deeper model were matched."""
    reason: str | None = None
    """Why ``value`` is NaN."""


def undefined(reason: str, alignment: str = "none", per_role: Mapping[str, float] | None = None) -> Score:
    """Return the score of two models that cannot be compared, with the reason."""
    return Score(value=float("nan"), per_role=per_role or {}, alignment=alignment, reason=reason)


def resample(curve_RL: Array, num_layers: int) -> Array:
    """Interpolate each curve linearly to ``num_layers`` points over depth normalised to [0, 1].

    >>> resample(np.array([[0.0, 1.0, 4.0]]), 5)
    array([[0. , 0.5, 1. , 2.5, 4. ]])
    """
    old, new = np.linspace(0, 1, curve_RL.shape[-1]), np.linspace(0, 1, num_layers)
    return np.stack([np.interp(new, old, row) for row in curve_RL])


def unit(x: Array, scale: ArrayLike) -> Array:
    """Divide rows by their norm; a row whose norm is below ``CONSTANT * scale`` is all NaN: it has no direction."""
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    return x / np.where(norm > CONSTANT * np.asarray(scale), norm, np.nan)


def paper_exact(a: Curves, b: Curves) -> Score:
    """Return the published score: z-scores over layers, Pearson r per role, mean of the four. arXiv 2507.03014.

    z = (sigma - mean) / population std; r = mean(z_a z_b). At unequal depth the shorter curve is interpolated
    linearly to the longer, as readers of the paper implement it. Invariant to scale and shift of sigma per role.
    A constant curve has no z-score: the result is NaN with the reason.

    >>> up = Curves(name="up", sigma={role: [1.0, 2.0, 3.0] for role in ROLES}, stratum=3)
    >>> bent = Curves(name="bent", sigma={role: [1.0, 2.0, 1.0] for role in ROLES}, stratum=3)
    >>> round(paper_exact(up, up).value, 12), abs(paper_exact(up, bent).value) < 1e-12
    (1.0, True)
    """
    roles = shared_roles(a, b)
    if isinstance(roles, str):
        return undefined(roles)
    num_layers = max(a.num_layers, b.num_layers)
    alignment = "same depth" if a.num_layers == b.num_layers else f"interpolated to {num_layers} layers"
    z_a, z_b = (_z_scores(model, num_layers) for model in (a, b))
    return _mean_of_roles(roles, (z_a * z_b).sum(-1), alignment, [(a, z_a), (b, z_b)], "constant over depth")


@lru_cache(maxsize=KEPT)
def _z_scores(model: Curves, num_layers: int) -> Array:
    x_RL = resample(model.rows(tuple(model.sigma)), num_layers)
    return unit(x_RL - x_RL.mean(-1, keepdims=True), np.sqrt((x_RL * x_RL).sum(-1, keepdims=True)))


def _mean_of_roles(
    roles: Sequence[str], r_R: Array, alignment: str, units: list[tuple[Curves, Array]], what: str
) -> Score:
    r_R = np.clip(r_R, -1, 1)
    per_role = dict(zip(roles, r_R.tolist(), strict=True))
    for model, rows in units if np.isnan(r_R).any() else []:
        for role, row in zip(roles, rows, strict=True):
            if np.isnan(row).any():
                reason = f"{model.name}: role {role} is {what}, so its correlation is not defined"
                return undefined(reason, alignment, per_role)
    return Score(value=float(r_R.mean()), per_role=per_role, alignment=alignment)


def residuals(log_sigma_RL: Array) -> Array:
    """Remove mean and straight line over depth from each curve and scale it to unit norm: float64[R, L].

    A curve that is a straight line has no residual: its row is NaN.
    """
    centred = log_sigma_RL - log_sigma_RL.mean(-1, keepdims=True)
    line_L = depth_line(log_sigma_RL.shape[-1])
    size = np.sqrt((log_sigma_RL * log_sigma_RL).sum(-1, keepdims=True))
    return unit(centred - (centred @ line_L)[..., None] * line_L, np.maximum(size, 1))


def depth_line(num_layers: int) -> Array:
    """Return the centred straight line over depth with unit norm: float64[L]."""
    line_L = np.arange(num_layers, dtype=np.float64) - (num_layers - 1) / 2
    return np.asarray(line_L / np.linalg.norm(line_L))


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two models made comparable: the shallower one's residuals and every allowed reading of the deeper one's."""

    shallow: Curves
    deep: Curves
    shallow_RL: Array
    """Unit residuals at the shallower model's depth."""
    readings: Mapping[str, Array]
    """Alignment to unit residuals [R, L] of the deeper model at that depth."""


def comparable(a: Curves, b: Curves, roles: Sequence[str] | None = None) -> Comparison | None:
    """Detrend both models at the depth of the shallower one; None where that leaves under ``MIN_LAYERS`` layers, or roles differ.

    The allowed readings of a deeper model are fixed beforehand: ``proportional`` (interpolated linearly to the
    shallower depth), ``head`` (its first layers) and ``tail`` (its last). Blocks removed evenly, from the end and from
    the start are these; a search over all matchings would let strangers match as well. Models of one depth have one
    reading. Ties in depth are ordered by name, so that the order of the arguments does not matter.
    """
    roles = shared_roles(a, b) if roles is None else roles
    if isinstance(roles, str):
        return None
    shallow, deep = sorted((a, b), key=lambda model: (model.num_layers, model.name))
    num_layers = shallow.num_layers
    if num_layers < MIN_LAYERS:
        return None
    return Comparison(shallow=shallow, deep=deep, shallow_RL=_readings(shallow, num_layers, tuple(roles))["same depth"],
                      readings=_readings(deep, num_layers, tuple(roles)))  # fmt: skip


@lru_cache(maxsize=KEPT)
def _readings(model: Curves, num_layers: int, roles: tuple[str, ...]) -> Mapping[str, Array]:
    """Return the residuals of a model's curves read at a depth no larger than its own."""
    log_RL = np.log(model.rows(roles))
    if model.num_layers == num_layers:
        raw = {"same depth": log_RL}
    else:
        raw = {"proportional": resample(log_RL, num_layers), "head": log_RL[:, :num_layers],
               "tail": log_RL[:, -num_layers:]}  # fmt: skip
    return {name: residuals(x_RL) for name, x_RL in raw.items()}


def corrected(a: Curves, b: Curves) -> Score:
    """Return the similarity of what is left of log sigma after the depth trend: Pearson r per role, mean of the four.

    The logarithm, because sigma is a scale: training multiplies it (weight decay, learning rate), its trend over depth
    is a ratio per layer, and one wide first layer would otherwise carry the whole correlation. The straight line,
    because nearly every network has one, and it alone gives strangers a mean r near 0.5. At unequal depth the best of
    the readings of `comparable` counts; null and background take the same maximum. Invariant to the scale of sigma
    per role and to a factor that is exponential in depth.

    >>> rng = np.random.default_rng(0)
    >>> x, y = (Curves(name=n, sigma={r: np.exp(rng.normal(size=12)) for r in ROLES}, stratum=12) for n in "xy")
    >>> round(corrected(x, x).value, 9), abs(corrected(x, y).value) < 0.3
    (1.0, True)
    """
    roles = shared_roles(a, b)
    return undefined(roles) if isinstance(roles, str) else _without_trend(a, b, roles)


def extended(a: Curves, b: Curves) -> Score:
    """Return the statistic of `corrected` over the roles of attention and those of ``BEYOND`` that both models have.

    The published update looks at biases, norms and the feed-forward network as well (arXiv 2507.03014, project page).
    Their curves pass the same logarithm and the same straight line, so that the two scores can be compared.
    """
    shared = tuple(role for role in BEYOND if role in a.extra and role in b.extra)
    if not shared:
        return undefined("beyond the attention matrices nothing was measured of both models")
    roles = shared_roles(a, b)
    return undefined(roles) if isinstance(roles, str) else _without_trend(a, b, (*roles, *shared))


def invariant(a: Curves, b: Curves) -> Score:
    """Return the statistic of `corrected` over ``PRODUCTS``, which no change of basis inside attention can move.

    Undefined where a model's products were not measured.
    """
    for model in (a, b):
        if not set(PRODUCTS) <= set(model.extra):
            if model.sigma and "kv-a" in model.sigma:
                return undefined(
                    f"{model.name}: its attention is stored in factors, whose products no method here forms"
                )
            if model.faults:
                return undefined(f"{model.name}: {next(iter(model.faults.values()))}, so its products are not defined")
            return undefined(f"{model.name}: the products of its matrices were not measured")
    return _without_trend(a, b, PRODUCTS)


def _without_trend(a: Curves, b: Curves, roles: Sequence[str]) -> Score:
    pair = comparable(a, b, roles)
    if pair is None:
        shallowest = min(a.num_layers, b.num_layers)
        reason = f"{shallowest} layers: fewer than {MIN_LAYERS} leave nothing to correlate once the trend is removed"
        return undefined(reason, "same depth" if a.num_layers == b.num_layers else "none")
    what = "a straight line over depth (in log sigma)"
    scores = [
        _mean_of_roles(roles, (pair.shallow_RL * deep_RL).sum(-1), name,
                       [(pair.shallow, pair.shallow_RL), (pair.deep, deep_RL)], what)
        for name, deep_RL in pair.readings.items()
    ]  # fmt: skip
    return next((score for score in scores if score.reason), max(scores, key=lambda score: score.value))
