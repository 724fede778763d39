"""Function-preserving changes, made here by their definition, are found and undone; training is not taken for one."""

import numpy as np
import pytest

from modelassay.fingerprints.lineage.symmetries import Floats, Heads, undo_attention, undo_neurons

HIDDEN = 20
SHAPES = [
    Heads(groups=2, per_group=2, size=6),
    Heads(groups=3, per_group=1, size=8),
    Heads(groups=1, per_group=4, size=6),
]


def random_blocks(heads: Heads, seed: int) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    rows = {"q": heads.count, "k": heads.groups, "v": heads.groups}
    blocks = {role: rng.standard_normal((n * heads.size, HIDDEN + 1)) for role, n in rows.items()}
    blocks["o"] = rng.standard_normal((HIDDEN, heads.count * heads.size))
    return {role: block.astype(np.float32) for role, block in blocks.items()}


def permuted(x: dict[str, Floats], heads: Heads) -> dict[str, Floats]:
    """Groups turned by one, and the heads of each group by one."""
    groups, per_group, size = heads.groups, heads.per_group, heads.size
    out = {}
    for role in "kv":
        out[role] = np.roll(x[role].reshape(groups, size, -1), 1, 0).reshape(x[role].shape)
    q = np.roll(x["q"].reshape(groups, per_group, size, -1), (1, 1), (0, 1))
    o = np.roll(x["o"].reshape(HIDDEN, groups, per_group, size), (1, 1), (1, 2))
    return out | {"q": q.reshape(x["q"].shape), "o": o.reshape(x["o"].shape)}


def rotated(x: dict[str, Floats], heads: Heads, *, neighbours: bool) -> dict[str, Floats]:
    """Each rotary pair of each group by an angle of its own, with real matrices, row by row."""
    rng, out = np.random.default_rng(5), {role: block.copy() for role, block in x.items()}
    half = heads.size // 2
    for group in range(heads.groups):
        for pair in range(half):
            angle = rng.uniform(0.5, 5.5)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            first, second = (2 * pair, 2 * pair + 1) if neighbours else (pair, pair + half)
            members = [("k", group), *(("q", group * heads.per_group + head) for head in range(heads.per_group))]
            for role, head in members:
                rows = [head * heads.size + first, head * heads.size + second]
                out[role][rows] = (turn @ x[role][rows].astype(np.float64)).astype(np.float32)
    return out


def scaled(x: dict[str, Floats], heads: Heads, factors: list[float], roles: tuple[str, str]) -> dict[str, Floats]:
    out = {role: block.copy() for role, block in x.items()}
    for group, factor in zip(range(heads.groups), factors, strict=False):
        for role, by in zip(roles, (factor, 1 / factor), strict=True):
            count = heads.per_group if role in "qo" else 1
            rows = slice(group * count * heads.size, (group + 1) * count * heads.size)
            if role == "o":
                out[role][:, rows] *= np.float32(by)
            else:
                out[role][rows] *= np.float32(by)
    return out


def assert_undone(a: dict[str, Floats], b: dict[str, Floats], heads: Heads, expected: set[str]) -> None:
    for first, second in ((a, b), (b, a)):
        fixed, symmetries = undo_attention(first, second, heads)
        assert symmetries == expected
        for role in "qkvo":
            np.testing.assert_allclose(fixed[role], second[role], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("heads", SHAPES)
def test_order_of_heads_is_undone_exactly(heads: Heads) -> None:
    x = random_blocks(heads, 0)
    fixed, symmetries = undo_attention(x, permuted(x, heads), heads)
    assert symmetries == {"heads"}
    for role, block in permuted(x, heads).items():
        np.testing.assert_array_equal(fixed[role], block)


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("heads", SHAPES)
def test_rotations_of_rotary_pairs_are_undone(heads: Heads, neighbours: bool) -> None:
    x = random_blocks(heads, 1)
    assert_undone(x, rotated(x, heads, neighbours=neighbours), heads, {"rotated"})


@pytest.mark.parametrize("roles", [("q", "k"), ("v", "o")])
@pytest.mark.parametrize("factors", [[4.0, 0.5, 2.0], [0.3, 1.7, 1.3]])
@pytest.mark.parametrize("heads", SHAPES)
def test_reciprocal_factors_are_undone(heads: Heads, factors: list[float], roles: tuple[str, str]) -> None:
    x = random_blocks(heads, 2)
    assert_undone(x, scaled(x, heads, factors, roles), heads, {"scaled"})


def test_flipped_signs_of_values_and_output_are_undone() -> None:
    x = random_blocks(SHAPES[1], 2)
    assert_undone(x, scaled(x, SHAPES[1], [-1.0, -1.0, 1.0], ("v", "o")), SHAPES[1], {"scaled"})


@pytest.mark.parametrize("heads", SHAPES)
def test_all_at_once_are_undone(heads: Heads) -> None:
    x = random_blocks(heads, 3)
    y = scaled(rotated(permuted(x, heads), heads, neighbours=False), heads, [2.0, 4.0, 0.25], ("v", "o"))
    assert_undone(x, y, heads, {"heads", "rotated", "scaled"})


@pytest.mark.parametrize("size", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("heads", SHAPES)
def test_noise_and_common_growth_are_no_symmetry(heads: Heads, size: float) -> None:
    x, noise = random_blocks(heads, 4), random_blocks(heads, 40)
    y = {role: (0.9 * block + size * noise[role]).astype(np.float32) for role, block in x.items()}
    fixed, symmetries = undo_attention(x, y, heads)
    assert symmetries == set()
    assert all(fixed[role] is x[role] for role in "qkvo")


def test_strangers_have_no_symmetry_in_common() -> None:
    for heads in SHAPES:
        assert undo_attention(random_blocks(heads, 6), random_blocks(heads, 7), heads)[1] == set()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_order_of_neurons_is_undone(noise: float) -> None:
    rng = np.random.default_rng(0)
    shapes = {"up": (33, HIDDEN), "gate": (33, HIDDEN), "down": (HIDDEN, 33), "bias": (33,)}
    x = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    order = rng.permutation(33)
    y = {"up": x["up"][order], "gate": x["gate"][order], "down": x["down"][:, order], "bias": x["bias"][order]}
    changed = {n: (t + noise * rng.standard_normal(t.shape)).astype(np.float32) for n, t in y.items()}
    fixed, symmetries = undo_neurons(x, changed, HIDDEN)
    assert symmetries == {"neurons"}
    for name, tensor in y.items():
        np.testing.assert_array_equal(fixed[name], tensor)


def test_networks_that_only_differ_keep_their_order() -> None:
    rng = np.random.default_rng(1)
    x = {"up": rng.standard_normal((33, HIDDEN)).astype(np.float32)}
    near = {"up": (x["up"] + 0.3 * rng.standard_normal((33, HIDDEN))).astype(np.float32)}
    far = {"up": rng.standard_normal((33, HIDDEN)).astype(np.float32)}
    for other in (near, far, x):
        fixed, symmetries = undo_neurons(x, other, HIDDEN)
        assert symmetries == set()
        assert fixed["up"] is x["up"]
