"""The model: stepwise = whole, rows alone = rows together, every option reaches every weight."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from tests.main_job.small import TINY
from throughtime.tasks import find
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import IGNORED
from throughtime.tasks.translate.model import END, START, Translator, decode_greedily

LETTERS, SYMBOLS = 5, 7
OPTIONS = [
    {"cell": cell, "directions": directions, "merge": merge, "layers": layers}
    for cell, directions, merge, layers in product(
        ("rnn", "gru", "lstm"), (1, 2), ("concat", "sum"), (1, 2)
    )
    if directions == 2 or merge == "concat"
]


def made(**options: object) -> Translator:
    """A model in float64 and eval mode whose weights are large enough to matter."""
    recipe = Recipe(**{**TINY, "dropout": 0.0, **options})
    model = Translator(recipe, LETTERS, SYMBOLS).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model


def asked(steps: int = 5, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(LETTERS, (steps, rows)), torch.randint(2, SYMBOLS, (steps + 2, rows))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_stepwise_equals_whole(options: dict[str, object]) -> None:
    model = made(**options)
    letters, given = asked()
    with torch.no_grad():
        memory, state = model.encode(letters)
        steps = []
        for t in range(len(given)):
            logits, state = model.decode(given[t : t + 1], memory, state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps), model(letters, given), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_weight_has_a_gradient(options: dict[str, object]) -> None:
    model = made(**options)
    model(*asked()).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_units_that_attention_looks_at_tell_by_the_equations() -> None:
    torch.manual_seed(1)
    recipe = Recipe(**{**TINY, "dropout": 0.0})
    model = Translator(recipe, LETTERS, SYMBOLS, lexical=True).double().eval()
    letters, given = asked()
    told = model(letters, given)
    lexical, model.lexical = model.lexical, None
    assert lexical is not None
    alone = model(letters, given)
    memory, state = model.encode(letters)
    w = model.weigh(model.decoder(model.target(given), state)[0], memory)
    u = torch.tanh(torch.einsum("bst,tbx->sbx", w, model.source(letters)))
    inner = torch.tanh(u @ lexical.inner.weight.T + lexical.inner.bias)
    torch.testing.assert_close(told, alone + (u + inner) @ lexical.readout.weight.T)


def test_rows_do_not_see_each_other() -> None:
    model = made()
    letters, given = asked()
    together = model(letters, given)
    for row in range(letters.shape[1]):
        alone = model(letters[:, row : row + 1], given[:, row : row + 1])
        torch.testing.assert_close(alone[:, 0], together[:, row], atol=1e-12, rtol=1e-12)


def test_one_direction_reads_forward_and_two_read_both_ways() -> None:
    letters, _ = asked(steps=4)
    changed = letters.clone()
    changed[-1] = (changed[-1] + 1) % LETTERS
    for directions in (1, 2):
        model = made(directions=directions)
        before, after = (model.encode(one)[0][0][0] for one in (letters, changed))
        assert torch.equal(before, after) == (directions == 1)


def test_sum_is_the_sum_of_what_concat_puts_side_by_side() -> None:
    both, summed = made(merge="concat"), made(merge="sum")
    summed.encoder.load_state_dict(both.encoder.state_dict())
    summed.source.load_state_dict(both.source.state_dict())
    letters, _ = asked()
    parts = both.encode(letters)[0][0].chunk(2, -1)
    torch.testing.assert_close(summed.encode(letters)[0][0], parts[0] + parts[1])


def test_attention_is_the_formula() -> None:
    model = made()
    letters, given = asked(steps=3, rows=1)
    (read, keys), state = model.encode(letters)
    out, _ = model.decoder(model.target(given), state)
    expected = []
    for t in range(len(given)):
        scores = torch.stack([out[t, 0] @ model.key.weight @ read[s, 0] for s in range(3)])
        weights = scores.exp() / scores.exp().sum()
        seen = sum(weights[s] * read[s, 0] for s in range(3))
        expected.append(model.readout(torch.tanh(model.mix(torch.cat([out[t, 0], seen])))))
    torch.testing.assert_close(model(letters, given)[:, 0], torch.stack(expected))
    torch.testing.assert_close(keys, read @ model.key.weight.T)


def test_greedy_takes_the_likeliest_next_sound() -> None:
    model = made(layers=2)
    letters, _ = asked(rows=4)
    said = decode_greedily(model, letters)
    given = torch.cat([torch.full_like(said[:1], START), said[:-1]])
    assert torch.equal(model(letters, given).argmax(-1), said)


def test_greedy_ends_with_the_last_word_and_gives_up_on_a_model_that_never_ends() -> None:
    model = made()
    letters, _ = asked(steps=3, rows=4)
    with torch.no_grad():
        model.readout.bias[END] = -1e9
        assert len(decode_greedily(model, letters)) == 2 * 3 + 8
        model.readout.bias[END] = 1e9
    assert torch.equal(decode_greedily(model, letters), torch.full((1, 4), END))


def test_the_loss_is_the_mean_over_sounds_and_their_end() -> None:
    task = find("pronounce")(Recipe(**{**TINY, "dropout": 0.0, "batch_size": 4}))
    model = made()
    letters = torch.randint(LETTERS, (3, 2))
    sounds = torch.tensor([[2, 5], [3, END], [END, IGNORED]])
    given = torch.tensor([[START, START], [2, 5], [3, 4]])
    chosen = model(letters, given).log_softmax(-1)
    picked = [chosen[s, b, sounds[s, b]] for s, b in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))]
    expected = -torch.stack(picked).mean() * 2 / 4  # two words of a batch of four
    torch.testing.assert_close(task.loss(model, (letters, sounds)), expected)


def test_padding_behind_the_end_changes_nothing() -> None:
    task = find("pronounce")(Recipe(**TINY))
    model = made()
    letters = torch.randint(LETTERS, (3, 2))
    sounds = torch.tensor([[2, 5], [3, END], [END, IGNORED]])
    longer = torch.cat([sounds, torch.full((3, 2), IGNORED)])
    torch.testing.assert_close(
        task.loss(model, (letters, longer)), task.loss(model, (letters, sounds))
    )


@pytest.mark.usefixtures("dictionary_in_small")
def test_a_fresh_model_guesses_evenly() -> None:
    task = find("pronounce")(Recipe(**TINY))
    model = task.model()
    batch = task.epoch(0)[0]
    symbols = model.readout.out_features
    share = batch[0].shape[1] / task.recipe.batch_size
    assert task.loss(model, batch).item() / share == pytest.approx(math.log(symbols), rel=0.1)
