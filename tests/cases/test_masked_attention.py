"""Attention by oneDNN, where the processor has no AMX: with a mask, and with other options, it is what PyTorch's is."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinounet.network.cpu_kernels import cpu_kernels

QUERY, KEY, VALUE = torch.randn(3, 2, 4, 17, 8, generator=torch.Generator().manual_seed(0))
BOOLEAN = torch.rand(2, 1, 17, 17, generator=torch.Generator().manual_seed(1)) > 0.3
BOOLEAN |= torch.eye(17, dtype=torch.bool)
ADDED = torch.randn(4, 17, 17, generator=torch.Generator().manual_seed(2))


def by_hand(attn_mask: Tensor | None = None, scale: float | None = None, is_causal: bool = False) -> Tensor:
    scores = QUERY.double() @ KEY.double().transpose(-1, -2) * (8**-0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(17, 17, dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ VALUE.double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn_mask": None},
        {"attn_mask": BOOLEAN},
        {"attn_mask": ADDED},
        {"attn_mask": torch.zeros(1, 1, 1, 1)},
        {"scale": 0.5},
        {"scale": 0.0},
        {"is_causal": True},
    ],
    ids=lambda options: " ".join(f"{name}={getattr(value, 'dtype', value)}" for name, value in options.items()),
)
@pytest.mark.parametrize("has_amx", [False, True])
def test_masks_and_scales_count(options: dict[str, Any], has_amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinounet.network.cpu_kernels.processor_has", lambda _: has_amx)
    with torch.inference_mode(), cpu_kernels(torch.device("cpu")):
        found = F.scaled_dot_product_attention(QUERY, KEY, VALUE, **options)
    torch.testing.assert_close(found.double(), by_hand(**options), rtol=1e-5, atol=1e-5)
