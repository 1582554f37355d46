"""CDVFT against matrices written down entry by entry, and its options one by one."""

import json
import math
from typing import Any

import pytest
import torch
from cdvft.errors import InvalidAdapter
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site
from hypothesis import given
from hypothesis import strategies as st

METHOD = Cdvft()


def entry(c: list[float], r: int, s: int, convention: str) -> float:
    return c[(r - s) % len(c)] if convention == "first_col" else c[(s - r) % len(c)]


def by_hand(tensors: dict[str, torch.Tensor], site: Site, spec: CdvftSpec) -> torch.Tensor:
    """dW by loops over entries: diag, padding, grid of blocks, cut, diag, square circulants."""
    grid = tensors["cdvft_circ"].tolist()
    p, q_out, q_in = spec.partition_size, len(grid), len(grid[0])
    weight = [[0.0] * site.d_in for _ in range(site.d_out)]
    for row in range(min(site.d_out, q_out * p)):
        for column in range(q_in * p):
            if column >= site.d_in and spec.padding == "zero":
                continue
            value = entry(grid[row // p][column // p], row % p, column % p, spec.circulant_convention)
            weight[row][column % site.d_in] += value
    matrix = torch.tensor(weight, dtype=torch.float64) @ torch.diag(tensors["cdvft_diag_in"].double())
    diag_out = tensors["cdvft_diag_out"].double()
    matrix = torch.diag(diag_out[0]) @ matrix
    for k in range(spec.num_factors - 2):
        c = tensors["cdvft_circ_sq"][k].tolist()
        rows = [[entry(c, r, s, spec.circulant_convention) for s in range(site.d_out)] for r in range(site.d_out)]
        matrix = torch.diag(diag_out[k + 1]) @ torch.tensor(rows, dtype=torch.float64) @ matrix
    return spec.alpha * matrix


@st.composite
def options(draw) -> tuple[Site, CdvftSpec]:
    site = Site("layers.3.mlp.up_proj", draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    return site, CdvftSpec(
        partition_size=draw(st.integers(1, 2 * max(site.d_in, site.d_out))),
        num_factors=draw(st.integers(2, 5)),
        alpha=draw(st.floats(-3, 3)),
        circulant_convention=draw(st.sampled_from(["first_col", "first_row"])),
        block_grid=draw(st.sampled_from(["rect", "square"])),
        padding=draw(st.sampled_from(["zero", "cyclic"])),
    )


def random_tensors(site: Site, spec: CdvftSpec, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = METHOD.shapes(site, spec)
    return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}


def applied(x: torch.Tensor, tensors: dict[str, torch.Tensor], site: Site, spec: CdvftSpec) -> torch.Tensor:
    return METHOD.apply(x, METHOD.prepare(tensors, site, spec), METHOD.layout(site, spec))


@given(options(), st.integers(0, 2**31))
def test_dense_and_apply_are_the_definition(case: tuple[Site, CdvftSpec], seed: int) -> None:
    site, spec = case
    tensors = random_tensors(site, spec, seed)
    expected = by_hand(tensors, site, spec)
    torch.testing.assert_close(METHOD.dense(tensors, site, spec), expected, rtol=1e-10, atol=1e-10)
    identity = torch.eye(site.d_in, dtype=torch.float64)
    size = float(expected.abs().max()) + 1.0
    torch.testing.assert_close(applied(identity, tensors, site, spec).T, expected, rtol=0, atol=1e-11 * size)
    config = json.loads(json.dumps(METHOD.config({site: spec})))
    assert METHOD.spec(config, site) == spec


def test_the_direction_is_first_column() -> None:
    site, spec = Site("a", 3, 3), CdvftSpec(3)
    tensors = {
        "cdvft_diag_in": torch.ones(3),
        "cdvft_circ": torch.tensor([[[1.0, 2.0, 3.0]]]),
        "cdvft_diag_out": torch.ones(1, 3),
    }
    columns = torch.tensor([[1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
    assert torch.equal(METHOD.dense(tensors, site, spec), columns)
    as_rows = CdvftSpec(3, circulant_convention="first_row")
    assert torch.equal(METHOD.dense(tensors, site, as_rows), columns.T)
    first = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(applied(first, tensors, site, spec), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(applied(first, tensors, site, as_rows), torch.tensor([1.0, 3.0, 2.0]))


def test_the_papers_square_cyclic_grid_folds_to_the_rectangle() -> None:
    """d_in 4, d_out 12, p = 2: 6 x 6 blocks see the input three times; two block columns are left after folding."""
    site, spec = Site("up", 4, 12), CdvftSpec(2, block_grid="square", padding="cyclic")
    tensors = random_tensors(site, spec, 5)
    assert tensors["cdvft_circ"].shape == (6, 6, 2)
    tables = METHOD.prepare(tensors, site, spec)
    assert tables["spectrum"].shape == (6, 2, 2)
    folded = torch.stack([tensors["cdvft_circ"][:, j::2].sum(1) for j in range(2)], dim=1)
    rect = METHOD.dense(tensors | {"cdvft_circ": folded}, site, CdvftSpec(2))
    torch.testing.assert_close(METHOD.dense(tensors, site, spec), rect)
    x = torch.randn(5, 4, dtype=torch.float64)
    repeated = x[:, torch.arange(12) % 4] * tensors["cdvft_diag_in"][torch.arange(12) % 4]
    big = METHOD.dense(
        {"cdvft_diag_in": torch.ones(12), "cdvft_circ": tensors["cdvft_circ"], "cdvft_diag_out": torch.ones(1, 12)},
        Site("square", 12, 12),
        CdvftSpec(2),
    )
    torch.testing.assert_close(applied(x, tensors, site, spec), repeated @ big.T * tensors["cdvft_diag_out"][0])


def test_square_grid_drops_output_blocks_beyond_the_output() -> None:
    site, spec = Site("down", 12, 5), CdvftSpec(4, block_grid="square")
    tensors = random_tensors(site, spec, 6)
    assert tensors["cdvft_circ"].shape == (3, 3, 4)
    assert METHOD.prepare(tensors, site, spec)["spectrum"].shape == (2, 3, 3)
    changed = tensors["cdvft_circ"].clone()
    changed[2] += 1.0
    changed_tensors = tensors | {"cdvft_circ": changed}
    assert torch.equal(METHOD.dense(changed_tensors, site, spec), METHOD.dense(tensors, site, spec))


def test_dense_stays_small_where_blocks_are_long() -> None:
    """One block of 8192 against a 64 x 4096 layer would be 512 MB as a full matrix."""
    site, spec = Site("wide", 4096, 64), CdvftSpec(8192, padding="cyclic")
    tensors = random_tensors(site, spec, 7)
    x = torch.randn(1, 4096, dtype=torch.float64)
    torch.testing.assert_close(applied(x, tensors, site, spec), x @ METHOD.dense(tensors, site, spec).T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_factors": 1}, "num_factors must be an integer from 2 to 16, it is 1"),
        ({"num_factors": True}, "num_factors"),
        ({"num_factors": 2.0}, "num_factors"),
        ({"partition_size": 0}, "partition_size must be an integer"),
        ({"partition_size": "4"}, "partition_size must be an integer"),
        ({"partition_size": 13}, "partition_size 13 is more than twice the larger side of layers.0.q_proj"),
        ({"partition_size_pattern": {"q_proj": 13}}, "partition_size 13"),
        ({"partition_size_pattern": {"q_proj": 0}}, "partition_size_pattern must map module names to positive"),
        ({"partition_size_pattern": {"q_proj": True}}, "partition_size_pattern must map"),
        ({"partition_size_pattern": [["q_proj", 2]]}, "partition_size_pattern must map"),
        ({"partition_size_pattern": {r"(?=q)": 2}}, "partition_size_pattern pattern"),
        ({"alpha": "1"}, "alpha must be a finite number"),
        ({"alpha": math.inf}, "alpha must be a finite number"),
        ({"alpha": 10**400}, "alpha must be a finite number"),
        ({"alpha": True}, "alpha must be a finite number"),
        ({"alpha": 1e39}, r"alpha must be a finite number, at most 3.403e\+38 in size, it is 1e\+39"),
        ({"alpha": -1e39}, "alpha must be a finite number"),
        ({"alpha": math.nan}, "alpha must be a finite number"),
        ({"circulant_convention": "row"}, "circulant_convention must be one of first_col, first_row, it is 'row'"),
        ({"block_grid": 2}, "block_grid must be one of rect, square"),
        ({"padding": ["zero"]}, "padding must be one of zero, cyclic"),
        ({"site_shapes": {"model.layers.0.q_proj": [6, 4]}}, r"site_shapes of .* is \[6, 4\], the base has \[4, 6\]"),
        ({"site_shapes": [1]}, "site_shapes must map"),
    ],
)
def test_bad_options_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        METHOD.spec(changes, Site("layers.0.q_proj", 6, 4))


def test_defaults_and_patterns() -> None:
    site = Site("layers.0.q_proj", 6, 4)
    assert METHOD.spec({}, site) == CdvftSpec(2)
    assert METHOD.spec(dict.fromkeys(METHOD.config_keys), site) == CdvftSpec(2)
    assert METHOD.spec({"alpha": 2}, site).alpha == 2.0
    largest = torch.finfo(torch.float32).max
    assert METHOD.spec({"alpha": largest}, site).alpha == largest
    sizes = {"layers.1.q_proj": 3, r"layers\.\d+\.q_proj": 4, "q_proj": 5}
    assert METHOD.spec({"partition_size": 1, "partition_size_pattern": sizes}, site).partition_size == 4
    assert METHOD.spec({"partition_size": 1, "partition_size_pattern": {"k_proj": 3}}, site).partition_size == 1
