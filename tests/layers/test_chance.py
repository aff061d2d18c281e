"""Dropouts and zoneout: drawn again from the same seed, the masks go into the plain formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

from tests.layers.plain import agree, build, gru, kept, lstm, plain, random, weights_of
from tests.layers.test_options import KINDS
from throughtime import Recurrent, cells
from throughtime.errors import OptionError
from throughtime.layers.options import Options, draw_zoneout_masks

RAGGED = [4, 0, 5, 2]


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def compare(layer: Recurrent, step: Any, x: Tensor, seed: int, given: Any, **masks: Any) -> None:
    """The layer seeded with `seed` equals the formulas with the masks drawn from that seed."""
    torch.manual_seed(seed)
    found = layer(x, **given)
    expected = plain(layer, step, x, **given, **masks)[:2]
    agree(found, expected, [x, *layer.parameters()])


@pytest.mark.parametrize("given", [{}, {"lengths": RAGGED}], ids=["full", "ragged"])
def test_dropout_between_layers(given: Any) -> None:
    layer = build(cells.LSTM(), 3, [4, 2, 3], bidirectional=True, dropout=0.4)
    x = random(5, 4, 3)
    torch.manual_seed(7)
    drops = [dropout(ones(5, 4, 2 * width), 0.4) for width in (4, 2)]
    assert drops[0].unique().tolist() == pytest.approx([0, 1 / 0.6])
    compare(layer, lstm, x, 7, given, drops=drops)
    compare(layer.eval(), lstm, x, 7, given)


def test_dropout_of_everything() -> None:
    layer = build(cells.GRU(), 3, [4, 2], dropout=1.0)
    x = random(5, 2, 3)
    compare(layer, gru, x, 0, {}, drops=[torch.zeros(5, 2, 4, dtype=torch.float64)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, {"lengths": RAGGED}], ids=["full", "ragged"])
def test_recurrent_dropout_is_one_mask_a_sequence(kind: str, given: Any) -> None:
    cell, step = KINDS[kind]
    layer = build(cell, 3, [4, 3], bidirectional=True, recurrent_dropout=0.4)
    x = random(5, 4, 3)
    torch.manual_seed(11)
    masks = [dropout(ones(2, 4, width), 0.4) for width in (4, 3)]
    assert masks[0].unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert len(masks[0].flatten(0, 1).unique(dim=0)) > 1, "each row and direction has its own"
    compare(layer, step, x, 11, given, masks=masks)
    compare(layer.eval(), step, x, 11, given)


def test_recurrent_dropout_of_a_dilated_layer_is_one_mask_a_sequence() -> None:
    layer = build(cells.LSTM(), 3, 4, bidirectional=True, recurrent_dropout=0.5, dilation=3)
    x = random(7, 2, 3)
    torch.manual_seed(3)
    masks = [dropout(ones(2, 2, 4), 0.5)]
    compare(layer, lstm, x, 3, {"lengths": [7, 4]}, masks=masks, dilations=[3])


def test_recurrent_dropout_masks_the_output_of_a_projection() -> None:
    layer = build(cells.LSTMProjected(2), 3, 5, recurrent_dropout=0.5)
    x = random(6, 3, 3)
    torch.manual_seed(5)
    mask = dropout(ones(1, 3, 2), 0.5)
    torch.manual_seed(5)
    y, _ = layer(x)
    w = weights_of(layer, 0, 0)
    for b in range(3):
        h, c = torch.zeros(2, dtype=x.dtype), torch.zeros(5, dtype=x.dtype)
        for t in range(6):
            v = w["weight_ih"] @ x[t, b] + w["bias_ih"] + w["bias_hh"]
            i, f, g, o = (v + w["weight_hh"] @ (mask[0, b] * h)).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = w["weight_hr"] @ (o.sigmoid() * c.tanh())
            agree(y[t, b], h)


ZONES: dict[str, tuple[Any, list[float]]] = {
    "both": (0.3, [0.3, 0.3]),
    "the long memory": ({"c": 0.5}, [0.0, 0.5]),
    "each": ({"h": 0.05, "c": 0.5}, [0.05, 0.5]),
    "all": (1.0, [1.0, 1.0]),
    "an integer": (1, [1.0, 1.0]),
}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("ragged", [True, False])
def test_zoneout(zone: str, ragged: bool) -> None:
    option, shares = ZONES[zone]
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True, zoneout=option, learn_initial=True)
    x = random(5, 4, 3)
    given: Any = {"lengths": RAGGED, "reset": torch.rand(5, 4) < 0.3} if ragged else {}
    torch.manual_seed(13)
    zones = [tuple(kept(share, 2, 5, 4, width) for share in shares) for width in (4, 2)]
    compare(layer, lstm, x, 13, given, zones=zones)
    means = [tuple(ones(2, 5, 4, width) * share for share in shares) for width in (4, 2)]
    compare(layer.eval(), lstm, x, 13, given, zones=means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zoneout_has_its_share_in_every_precision(dtype: torch.dtype) -> None:
    """Within four standard deviations; eight bits of a number could not tell 0.003 from 0.004."""
    torch.manual_seed(3)
    x, cell, options = torch.zeros(1, dtype=dtype), cells.GRU(), Options(zoneout=0.003)
    found = draw_zoneout_masks(x, cell, [(1, 1000, 1000, 1)], options, training=True)
    assert found is not None and found[0].dtype == torch.int16
    assert set(found[0].unique().tolist()) == {0, 1}
    count = found[0].double().sum().item()
    assert abs(count - 3000) < 4 * math.sqrt(3000)


def test_zoneout_of_a_dilated_layer() -> None:
    layer = build(cells.GRU(), 3, 4, zoneout=0.4, dilation=2)
    x = random(5, 3, 3)
    torch.manual_seed(17)
    folded = kept(0.4, 1, 3, 2 * 3, 4)  # three steps of two chains of three rows
    zone = torch.stack([folded[:, t // 2, 3 * (t % 2) :][:, :3] for t in range(5)], 1)
    compare(layer, gru, x, 17, {}, zones=[(zone,)], dilations=[2])


@pytest.mark.parametrize("kind", KINDS)
def test_weight_dropout_is_one_mask_a_call_on_u_alone(kind: str) -> None:
    cell, step = KINDS[kind]
    layer = build(cell, 3, [4, 2], bidirectional=True, weight_dropout=0.3)
    x = random(5, 4, 3)
    torch.manual_seed(19)
    dropped = [
        [w * dropout(torch.ones_like(w), 0.3) for w in
         (weights_of(layer, k, d)["weight_hh"] for d in range(2))] for k in range(2)
    ]  # fmt: skip
    compare(layer, step, x, 19, {"lengths": RAGGED}, dropped=dropped)
    compare(layer.eval(), step, x, 19, {"lengths": RAGGED})


def test_all_of_them_together() -> None:
    layer = build(
        cells.LSTM(), 3, [4, 4], dropout=0.2, recurrent_dropout=0.3, zoneout={"h": 0.4},
        weight_dropout=0.5, residual=True,
    )  # fmt: skip
    x = random(5, 3, 3)
    torch.manual_seed(23)
    masks, zones, dropped, drops = [], [], [], []
    for k in range(2):
        masks.append(dropout(ones(1, 3, 4), 0.3))
        dropped.append([dropout(weights_of(layer, k, 0)["weight_hh"], 0.5)])
        zones.append((kept(0.4, 1, 5, 3, 4), kept(0.0, 1, 5, 3, 4)))
        if k == 0:
            drops.append(dropout(ones(5, 3, 4), 0.2))
    options: Any = {"masks": masks, "zones": zones, "dropped": dropped, "drops": drops}
    torch.manual_seed(23)
    agree(layer(x), plain(layer, lstm, x, residual=True, **options)[:2], [x])


def test_every_call_draws_anew_and_eval_draws_nothing() -> None:
    options: Any = {"recurrent_dropout": 0.5, "zoneout": 0.5, "weight_dropout": 0.5}
    layer = build(cells.GRU(), 3, 8, **options)
    x = random(5, 3, 3)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    before = torch.get_rng_state()
    layer.eval()(x)
    layer.train().explain()
    layer.initial_state(2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout", "zoneout", "weight_dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), True, "much", None])
def test_bad_share(name: str, share: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name} must be a number from 0 to 1, got"):
        Recurrent(cells.LSTM(), 3, 4, **{name: share})


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout"])
def test_no_dropout_of_a_matrix_that_is_not_there(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} acts on U .*IndRNN .* must be 0, got 0.5$"):
        Recurrent(cells.IndRNN(), 3, 4, **{name: 0.5})


def test_bad_zoneout_by_name() -> None:
    with pytest.raises(OptionError, match="^zoneout must be a number from 0 to 1, got 2$"):
        Recurrent(cells.LSTM(), 3, 4, zoneout={"c": 2})
    with pytest.raises(OptionError, match="zoneout by name must name states .* h, c; got 'cell'"):
        Recurrent(cells.LSTM(), 3, 4, zoneout={"cell": 0.3})
