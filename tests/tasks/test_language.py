"""Language: counts against a slow twin, windows against the whole, a run from text to text."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import throughtime
from throughtime.cli import main
from throughtime.errors import DataError, OptionError
from throughtime.tasks.language import Language, NextUnit, measure
from throughtime.tasks.language.text import Grams, read_text, split_units
from throughtime.train.run import resolve

SMALL: dict[str, Any] = {
    "hidden": 6, "steps": 6, "validate_every": 3, "warmup": 1, "threads": 1, "batch_size": 4,
    "length": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings.filterwarnings("ignore", module="lightning_utilities|pytorch_lightning")


def text(lines: int = 400) -> str:
    generator = np.random.default_rng(3)
    words = "the sea was grey and a boat went out to look for herring or cod".split()
    made = [" ".join(generator.choice(words, 6)) + f" {n}" for n in range(lines)]
    return "\n".join(made) + "\n"


def made(**options: object) -> Language:
    Path("sea.txt").write_text(text())
    task = Language(resolve(Language, {"data": "sea.txt", **SMALL, **options}))
    assert isinstance(task, Language)
    return task


def slow(train: list[int], size: int, longest: int, told: list[int]) -> float:
    """The share of the last of `told` by interpolated modified Kneser-Ney, count by count."""

    def counts(k: int, highest: bool) -> Counter[tuple[int, ...]]:
        grams = [tuple(train[i : i + k]) for i in range(len(train) - k + 1)]
        if highest:
            return Counter(grams)
        return Counter(g[1:] for g in {tuple(train[i : i + k + 1]) for i in range(len(train) - k)})

    def share(k: int, context: tuple[int, ...], unit: int) -> float:
        if k == 0:
            return 1 / size
        counted = counts(k, k == longest)
        often = [sum(1 for c in counted.values() if c == n) for n in (1, 2, 3, 4)]
        cuts = [0.5, 0.5, 0.5]
        if min(often):
            y = often[0] / (often[0] + 2 * often[1])
            cuts = [n - (n + 1) * y * often[n] / often[n - 1] for n in (1, 2, 3)]
            cuts = [min(max(d, 0.05), n) for n, d in enumerate(cuts, start=1)]
        below = share(k - 1, context[1:], unit)
        behind = {g[-1]: c for g, c in counted.items() if g[:-1] == context}
        if not behind:
            return below
        cut_off = {u: min(cuts[min(c, 3) - 1], c) for u, c in behind.items()}
        kept = behind.get(unit, 0) - cut_off.get(unit, 0)
        return (kept + sum(cut_off.values()) * below) / sum(behind.values())

    return share(longest, tuple(told[-longest:-1]), told[-1])


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_counts_are_those_of_a_slow_twin(longest: int) -> None:
    generator = np.random.default_rng(longest)
    train = generator.integers(0, 4, 300) * (generator.random(300) < 0.8)
    told = [*train[40:48].tolist(), 4, 2, 1]  # 4 stands nowhere in the training text
    bits = Grams(train, 5).bits(np.array(told), longest)
    for place in range(longest - 1, len(told)):
        share = slow(train.tolist(), 5, longest, told[: place + 1])
        assert bits[place] == pytest.approx(-np.log2(share), rel=1e-12), place


@pytest.mark.parametrize("longest", range(1, 6))
def test_shares_of_counts_sum_to_one(longest: int) -> None:
    train, size = np.array(list(text().encode()), np.int64), 130
    grams = Grams(train, size)
    ends = [np.array([*train[100:106], unit]) for unit in range(size)]
    shares = [2.0 ** -grams.bits(told, longest)[-1] for told in ends]
    assert sum(shares) == pytest.approx(1, rel=1e-9)


def test_windows_of_training_are_the_whole_and_carry_the_state() -> None:
    task = made(dropout=0.0, layers=2)
    model = task.model()
    assert isinstance(model, NextUnit)
    batches = task.epoch(0)
    whole = torch.cat([x for x, _, _ in batches])
    following = torch.cat([y for _, y, _ in batches])
    assert torch.equal(whole[1:], following[:-1])
    parts = torch.cat([model.go_on(x, bool(anew)) for x, _, anew in batches])
    assert torch.allclose(parts, model(whole), rtol=0, atol=1e-5)
    assert [bool(anew) for _, _, anew in batches] == [True] + [False] * (len(batches) - 1)
    assert not torch.equal(task.epoch(1)[0][0], batches[0][0])
    again = torch.cat([model.go_on(x, bool(anew)) for x, _, anew in batches])
    assert torch.equal(again, parts)


def test_bits_are_those_of_a_plain_pass() -> None:
    task = made()
    model = task.model().eval()
    tokens = task.vocabulary.encode(task._part("test")[:60])
    shares = model(tokens.numbers[:-1, None]).log_softmax(-1)[:, 0]
    plain = -shares.gather(-1, tokens.numbers[1:, None])[:, 0].double() / np.log(2)
    assert np.allclose(task._bits(model, tokens), plain.detach().numpy(), atol=1e-5)
    longer = task.vocabulary.encode(task._part("test"))
    rows = task._bits(model, longer)
    assert len(rows) == len(longer.numbers) - 1
    whole = -model(longer.numbers[:-1, None]).log_softmax(-1)[:, 0]
    whole = whole.gather(-1, longer.numbers[1:, None])[:, 0].double() / np.log(2)
    assert np.allclose(rows, whole.detach().numpy(), atol=2e-3)  # each row begins 16 steps before


def test_the_vocabulary_is_of_the_training_part_and_new_units_cost_their_spelling() -> None:
    Path("sea.txt").write_text(text() + "ωψ " * 80)
    task = Language(resolve(Language, {"data": "sea.txt", **SMALL}))
    assert "ω" in task._part("test") and "ω" not in task.facts.units
    assert "".join(task._part(one) for one in ("train", "validation", "test")) == read_text(
        "sea.txt"
    )
    tokens = task.vocabulary.encode("aω")
    assert tokens.numbers.tolist()[1] == 0
    assert tokens.spelled.tolist() == [0, task.facts.letters[""]]
    assert measure(np.array([2.0]), tokens)["bits_per_character"] == 2 + task.facts.letters[""]


def test_pieces_are_the_text_whatever_it_holds() -> None:
    odd = "It's 3.5  m\t—“ja”,\n\n_x_ ωψ\r\n  end "
    for units in ("characters", "words"):
        assert "".join(split_units(odd, units)) == odd
    assert split_units("a boat, then", "words") == ["a", " boat", ",", " then"]


def test_words_have_numbers_where_they_stand_twice() -> None:
    task = made(units="words")
    assert " herring" in task.facts.units and " 7" not in task.facts.units
    grams = task.baselines("test")
    assert grams["5-gram"]["bits_per_character"] < grams["unigram"]["bits_per_character"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "sea.txt must hold text, and it has none \\(0 characters\\)"),
        (b"abc\n" * 50, "must have 200 characters for the training part, and it has 164 of 200"),
        (text().encode() * 3, "must be new, and .* lines of 20 .* stand in the training part too"),
        (b"a\n" * 300 + b"\xff\n" + b"a\n" * 900, "must be UTF-8, and line 301 is not"),
    ],
)
def test_a_wrong_text_is_one_sentence(content: bytes, said: str) -> None:
    Path("sea.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        resolve(Language, {"data": "sea.txt", **SMALL})


def test_a_changed_text_is_told() -> None:
    task = made()
    Path("sea.txt").write_text(text() + "more")
    with pytest.raises(DataError, match="must be as it was when the run began"):
        task.baselines("test")


def test_from_a_text_to_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sea.txt").write_text(text())
    flags = "--hidden 6 --steps 6 --validate-every 3 --threads 1 --batch-size 4 --length 16"
    command = ["train", "language", "--data", "sea.txt", "--out", "run", *flags.split()]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for words in ("split by order", "5-gram", "bits_per_character", "How far back"):
        assert words in shown
    results = json.loads(Path("run/results.json").read_text())
    assert list(results["metrics"])[0] == "bits_per_character"
    assert list(results["baselines"]) == ["unigram", "bigram", "trigram", "4-gram", "5-gram"]
    assert main(["generate", "run", "--prompt", "the", "--length", "20", "--seed", "3"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("the") and len(written) == 3 + 20 + 1
    run = throughtime.load("run")
    assert run.generate("the", 20, seed=3) == written[3:-1] != run.generate("the", 20, seed=4)
    assert run.generate("the", 9, temperature=0) == run.generate("the", 9, temperature=0, seed=5)
    assert main(["predict", "run", "the sea", "xx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["the sea", "xx"]
    assert all(line.endswith(" bits a character") for line in lines)
    assert run.evaluate("sea.txt") == {"model": run.scores, **run.baselines}
    Path("other.txt").write_text(text(30))
    assert set(run.evaluate("other.txt")) == {"model", *run.baselines}
    assert main(["data", "sea.txt"]) == 0
    assert "split by order" in capsys.readouterr().out


def test_a_run_goes_on_to_the_same_bits_with_the_state_it_carried() -> None:
    Path("sea.txt").write_text(text())
    given = SMALL | {"schedule": "constant", "validate_every": 4}
    whole = throughtime.train("language", "sea.txt", out="whole", **given | {"steps": 8})
    throughtime.train("language", "sea.txt", out="cut", **given | {"steps": 4})
    cut_off = throughtime.train("language", out="cut", resume=True, steps=8)
    weights = [run.model.state_dict() for run in (whole, cut_off)]
    assert weights[0]["carried_0_0"].abs().max() > 0
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((0, 1.0, 0), "length"), ((5, -1.0, 0), "temperature"), ((5, 1.0, -1), "seed")],
)
def test_numbers_of_writing_have_rules(numbers: tuple[int, float, int], said: str) -> None:
    task = made()
    with pytest.raises(OptionError, match=f"{said} must be a .* of at least"):
        task.write(task.model(), "", *numbers)
