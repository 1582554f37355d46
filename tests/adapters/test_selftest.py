"""The self-test's numbers: small for what is right, large for what is not."""

from dataclasses import replace

import pytest
import torch
from cdvft.prepared import prepare_adapter
from cdvft.selftest import probe_sites

from tests.tiny import random_adapter


@pytest.mark.parametrize(
    "options", [{}, {"num_factors": 4}, {"partition_size": 5, "padding": "cyclic", "block_grid": "square"}]
)
def test_what_is_served_is_what_the_checkpoint_means(llama, options) -> None:
    adapter = random_adapter(llama.info, 1, targets=["q_proj", "v_proj", "up_proj", "down_proj"], **options)
    error = probe_sites(adapter, prepare_adapter(adapter))
    assert 0 < error < 1e-5
    assert error == probe_sites(adapter, prepare_adapter(adapter))  # the probe is seeded


def test_a_wrong_table_at_one_site_is_seen(llama) -> None:
    adapter = random_adapter(llama.info, 1)
    other = prepare_adapter(random_adapter(llama.info, 2))
    prepared = prepare_adapter(adapter)
    site = sorted(prepared.tables)[-1]
    mixed = replace(prepared, tables={**prepared.tables, site: other.tables[site]})
    assert probe_sites(adapter, mixed) > 0.1


def test_overflow_is_infinite_error(llama) -> None:
    adapter = random_adapter(llama.info, 1, alpha=1e38)
    huge = {
        site: {n: t * (1e20 if "circ" in n else 1.0) for n, t in own.items()} for site, own in adapter.tensors.items()
    }
    loud = replace(adapter, tensors=huge)
    assert probe_sites(loud, prepare_adapter(loud)) == float("inf")


def test_a_fresh_adapter_has_no_error(llama) -> None:
    adapter = random_adapter(llama.info, 1, scale=0.0)
    prepared = prepare_adapter(adapter)
    assert probe_sites(adapter, prepared) == 0.0
    site = sorted(prepared.tables)[0]
    tables = {name: table.clone() for name, table in prepared.tables[site].items()}
    tables["diag_out"] += 1e-3
    assert probe_sites(adapter, replace(prepared, tables={**prepared.tables, site: tables})) == float("inf")


def test_prepared_signature_decides_who_shares_a_bank(llama) -> None:
    def signature(seed: int = 1, **options):
        return prepare_adapter(random_adapter(llama.info, seed, **options)).signature

    same = signature()
    assert signature(2) == same
    assert hash(signature(2)) == hash(same)
    assert signature(alpha=3.0) == same  # folded into the tables
    assert signature(circulant_convention="first_row") == same
    assert signature(task="classification") == same  # heads are pooled apart
    different = [{"num_factors": 3}, {"partition_size": 16}, {"targets": ["q_proj"]}, {"targets": ["k_proj", "v_proj"]}]
    assert len({same, *(signature(**options) for options in different)}) == 1 + len(different)
    # tables of one shape, but another way from the input to its blocks
    assert signature(partition_size=5) != signature(partition_size=5, padding="cyclic")


def test_prepared_sizes_in_bytes(llama) -> None:
    prepared = prepare_adapter(random_adapter(llama.info, 1, "classification", list("abc")))
    assert prepared.nbytes == sum(t.nbytes for own in prepared.tables.values() for t in own.values())
    assert prepared.head_nbytes == 4 * (3 * 32 + 3)
    assert not any(t.requires_grad for own in prepared.tables.values() for t in own.values())
    assert all(
        t.is_contiguous() and t.device == torch.device("cpu") for own in prepared.tables.values() for t in own.values()
    )
