"""`throughtime diagnose`, and the memory report that training ends with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import throughtime
from tests.main_job.test_cli import refused
from throughtime.cli import main
from throughtime.cli.commands import train
from throughtime.diagnosis.report import Report
from throughtime.errors import MissingExtra, OptionError
from throughtime.tasks import find
from throughtime.tasks.pronounce import START
from throughtime.tasks.recipe import Recipe
from throughtime.train.run import Run, create, read

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.LSTM(3, 8)
batches = torch.rand(30, 4, 3)
"""


@pytest.fixture(scope="module")
def latched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a memory task of which training saw next to nothing."""
    folder = tmp_path_factory.mktemp("runs") / "latch"
    flags = "--length 30 --hidden 6 --steps 4 --batch-size 8 --validate-every 2 --threads 1"
    assert main(["train", "latch", "--out", str(folder), *flags.split()]) == 0
    return read(folder)


def kept(folder: Path) -> Report:
    return Report.from_json((folder / "report.json").read_text())


def test_training_ends_with_the_report_of_its_own_weights(
    latched: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    told = kept(latched.folder)
    assert (told.model, told.steps, told.lag) == ("Rememberer", 30, 29)
    assert told.clipping is not None and told.clipping.threshold == latched.recipe.clip_threshold
    page = (latched.folder / "report.html").read_text()
    assert "<html" in page and told.troubles[0].kind == "vanishing"
    assert main(["train", "latch", "--resume", "--out", str(latched.folder)]) == 0
    said = capsys.readouterr().out
    assert "How far back it learned:" in said
    for trouble in told.troubles:
        assert f"{trouble.sentence} {trouble.advice}" in said
    assert said.rstrip().endswith(f"report: {latched.folder / 'report.html'}")


def test_the_report_of_a_run_is_that_of_its_model_and_training_data(
    latched: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from throughtime.train.result import load_trained

    out = str(tmp_path / "new")
    assert main(["diagnose", str(latched.folder), "--lag", "7", "--out", out]) == 0
    said = capsys.readouterr().out
    task, model = load_trained(latched)
    batches = [tuple(v[:, :16] if v.dim() > 1 else v[:16] for v in task.epoch(0)[n])
               for n in range(8)]  # fmt: skip
    expected = throughtime.diagnose(model, batches, torch.nn.functional.cross_entropy, lag=7)
    told = kept(tmp_path / "new")
    assert told.lag == 7
    assert told.lag_gradients[0].log10_rho_by_lag == pytest.approx(
        expected.lag_gradients[0].log10_rho_by_lag, rel=1e-4
    )
    assert told.loss == pytest.approx(expected.loss, rel=1e-5)
    assert str(told) in said


def test_a_file_of_the_users_is_diagnosed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "forecaster.py"
    (tmp_path / "beside.py").write_text("lag, clip = 11, 0.5\n")
    file.write_text("from beside import clip, lag\n" + MODEL)
    assert main(["diagnose", f"{file}:model"]) == 0
    torch.manual_seed(0)
    expected = throughtime.diagnose(torch.nn.LSTM(3, 8), torch.rand(30, 4, 3), lag=11)
    told = kept(tmp_path)
    assert told.lag == 11, "as the file beside it says"
    assert told.lag_gradients[0].log10_rho_by_lag == pytest.approx(
        expected.lag_gradients[0].log10_rho_by_lag, rel=1e-4
    )
    assert str(told) in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    assert main(["diagnose", str(file), "--lag", "5"]) == 0
    assert kept(tmp_path).lag == 5, "the option goes before the file"


def test_a_tuple_of_pairs_is_several_batches_and_a_loss_is_called(tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(
        MODEL + "net = model\n"
        "batches = tuple((torch.rand(12, 4, 3), torch.full((4, 8), 2.0)) for _ in range(3))\n"
        "clip = 0.25\n"
        "def loss(y, target):\n    return 5 + 0 * y.sum() + (y[-1].sum() * target.mean())\n"
    )
    assert main(["diagnose", f"{file}:net", "--out", str(tmp_path / "out")]) == 0
    torch.manual_seed(0)
    net = torch.nn.LSTM(3, 8)
    torch.rand(30, 4, 3)
    x = torch.rand(12, 4, 3)
    told = kept(tmp_path / "out")
    assert told.bands[0].batches == 3
    assert told.clipping is not None and told.clipping.threshold == 0.25
    assert told.loss == pytest.approx(5 + 2 * net(x)[0][-1].sum().item(), rel=1e-4)


@pytest.mark.parametrize("own", ["", "clip, truncation = 7.0, 9\n"])
def test_clip_and_truncation_are_flags_that_go_before_the_file(own: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MODEL + "batches = [torch.rand(12, 4, 3) for _ in range(2)]\n" + own)
    assert main(["diagnose", str(file), "--clip", "0.125", "--truncation", "5"]) == 0
    told = kept(tmp_path)
    assert told.clipping is not None
    assert (told.clipping.threshold, told.truncation) == (0.125, 5)


def test_flags_go_before_a_run(latched: Run, tmp_path: Path) -> None:
    flags = ["--clip", "0.125", "--truncation", "5", "--out", str(tmp_path)]
    assert main(["diagnose", str(latched.folder), *flags]) == 0
    told = kept(tmp_path)
    assert told.clipping is not None
    assert (told.clipping.threshold, told.truncation) == (0.125, 5)


BROKEN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 8)

    def forward(self, x):
        raise ValueError("no such\\nthing")
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\nmodel = 1 / 0\n", ", line 2, raises ZeroDivisionError: division by zero"),
        ("model = (\n", ", line 1, raises SyntaxError: "),
        ("import nowhere_at_all\n", ", line 1, raises ModuleNotFoundError: No module named 'no"),
        ("\nopen('/nowhere/at/all')\n", ", line 2, raises FileNotFoundError: [Errno 2] No such"),
        ("import sys\nsys.exit(3)\n", ", line 2, raises SystemExit: 3"),
        ("import torch\nmodel = torch.nn.LSTM(1)\n", ", line 2, raises TypeError: "),
        (MODEL + BROKEN + "model = Net()\n", ", line 15, raises ValueError: no such thing"),
        (MODEL + "def loss(y):\n    raise ValueError\n", ", line 9, raises ValueError"),
    ],
)
def test_what_a_file_raises_is_told_with_its_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert f"{file}{said}" in refused(capsys, "diagnose", file)


SEQUENCE = """
class Last(nn.Module):
    def forward(self, y):
        return y[0][-1]

net = nn.Sequential(nn.Linear(5, 3), nn.LSTM(3, 8), Last())
loss = nn.functional.cross_entropy
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batches = torch.rand(30, 4, 5)\n",
         "`net` in {0} cannot take what `batches` holds: RuntimeError: input.size(-1) must be"),
        (SEQUENCE + "batches = [(torch.rand(30, 4, 6), torch.randint(2, (4,)))]\n",
         "`net` in {0} cannot take what `batches` holds: RuntimeError: mat1 and mat2 shapes"),
        (SEQUENCE + "batches = [(torch.rand(30, 4, 5), torch.randint(2, (3,)))]\n",
         "`loss` in {0} cannot take what `batches` holds: ValueError: Expected input batch_size"),
        (SEQUENCE + "batches = torch.utils.data.DataLoader([torch.rand(3), torch.rand(4)], 2)\n",
         "`batches` in {0} gives no batch: RuntimeError: stack expects each tensor to be equal"),
        ("loss = 3\n", "`loss` in {0} must be a function of output and target, got 3"),
        ("clip = '1'\n", "clip must be a finite number above 0, got '1'"),
        ("before = [1]\n", "before must be a state_dict, parameters by name, got list"),
        ("from next_door import Net\nnet = Net()\n",
         "{1}/next_door.py, line 6, raises RuntimeError: shape '[7, -1]' is invalid for input of"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_sentence(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line of the file itself raises, or one of a file beside it."""
    (tmp_path / "next_door.py").write_text(
        "import torch\nclass Net(torch.nn.LSTM):\n    def __init__(self):\n"
        "        super().__init__(3, 8)\n    def forward(self, x):\n"
        "        return x.view(7, -1)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(f"{MODEL}net = model\n{text}")
    if "next_door" in text:  # a subclass is not looked at, the layer beside it is
        file.write_text(file.read_text() + "net = nn.Sequential(net, nn.LSTM(3, 8))\n")
    assert said.format(file, tmp_path) in refused(capsys, "diagnose", f"{file}:net")


@pytest.mark.parametrize("path", ["mine.py", "../here/mine.py"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = (\n", ", line 1, raises SyntaxError: "),
        ("model = 1 / 0\n", ", line 1, raises ZeroDivisionError: division by zero"),
        ("\nopen('/nowhere/at/all')\n", ", line 2, raises FileNotFoundError: [Errno 2] No such"),
        (
            f"import os\nos.chdir('/')\n{MODEL}def loss(y):\n    raise ValueError\n",
            ", line 11, raises ValueError",
        ),
    ],
)
def test_a_file_named_from_here_is_told_with_its_line(
    text: str, said: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path / "here")
    assert f"{path}{said}" in refused(capsys, "diagnose", Path(path))


def test_debug_shows_where_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("model = 1 / 0\n")
    assert main(["diagnose", str(file), "--debug"]) == 2
    assert "Traceback" in (said := capsys.readouterr().err) and "ZeroDivisionError" in said


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (None, "model", "cannot be used (No such file or directory); see that it can"),
        ("modle = 1\n", "model", "must define `model`, got none; did you mean modle?"),
        ("model = 1\n", "model", "must be a torch.nn.Module, got int"),
        ("import torch\nmodel = torch.nn.LSTM(1, 2)\n", "model", "must define `batches`, got none"),
        (MODEL + "model = nn.Linear(3, 2)\n", "model", "the model has no recurrent layer of torch"),
        (MODEL + "lag = 30\n", "model", "lag must be a number of steps from 1 to 29, got 30"),
        (MODEL + "batches = []\n", "model", "at least one batch, got none"),
    ],
)
def test_a_file_that_cannot_be_diagnosed_is_one_sentence(
    text: str | None, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert said in refused(capsys, "diagnose", f"{file}:{name}")
    assert not (tmp_path / "report.json").exists()


def test_a_folder_that_is_no_run_is_one_sentence(
    latched: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name the folder that `throughtime train` printed" in refused(
        capsys, "diagnose", tmp_path / "nothing"
    )
    copy = Path(shutil.copytree(latched.folder, tmp_path / "copy"))
    (copy / "weights.safetensors").unlink()
    assert "a run has weights when its training has ended" in refused(capsys, "diagnose", copy)


def test_help_says_that_the_file_is_executed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a Python file, which is executed" in said


@pytest.mark.usefixtures("dictionary_in_small")
def test_the_main_job_ends_with_its_report(
    trained_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained_run.folder, tmp_path / "copy"))
    assert main(["diagnose", str(folder)]) == 0
    told = kept(folder)
    assert [m.name for m in told.modules] == ["translator.encoder", "translator.decoder"]
    assert told.loss is not None and 0 < told.loss < 5
    assert main(["train", "pronounce", "--resume", "--out", str(folder)]) == 0
    assert "How far back it learned:" in capsys.readouterr().out


def test_what_the_main_job_is_diagnosed_on_is_its_own_loss() -> None:
    """Without smoothing, words of one length, each as it stands in training."""
    from tests.main_job.small import small_dictionary

    with small_dictionary():
        task = find("pronounce")(Recipe(hidden=4, batch_size=64))
        torch.manual_seed(0)
        model = task.model().eval()
        posed = task.prepare_diagnosis(model, 2, 3)
        (both, sounds), *_ = posed.batches
        letters, given = both.split([12, 11])
        assert (given[0] == START).all() and torch.equal(given[1:], sounds[:-1])
        logits = model(letters, given)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sounds.flatten())
        assert posed.loss(posed.model(both), sounds).item() == pytest.approx(expected.item())
        whole = task.loss(model, (letters, sounds)).item() * 64 / letters.shape[1]
        assert expected.item() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "error", [OptionError("it cannot be seen"), MissingExtra("no plotly"), RuntimeError("torch")]
)
def test_a_report_that_cannot_be_made_never_fails_a_training(
    error: Exception, latched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise error

    folder = Path(shutil.copytree(latched.folder, tmp_path / "copy"))
    monkeypatch.setattr(train, "report_run", refuse)
    assert main(["train", "latch", "--resume", "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"There is no memory report of this run: {error}\n" in said
    assert "run folder:" in said


def test_a_task_that_does_not_say_how_is_told_in_one_sentence(tmp_path: Path) -> None:
    from throughtime.tasks.task import Task

    task = find("latch")(create(tmp_path / "run", Recipe(task="latch")).recipe)
    with pytest.raises(OptionError, match="latch does not say how its model can be diagnosed"):
        Task.prepare_diagnosis(task, torch.nn.LSTM(1, 2), 1, 1)


@pytest.mark.parametrize("name", ["adding", "copy", "order", "parity", "latch"])
def test_every_memory_task_poses_itself(name: str) -> None:
    task = find(name)(Recipe(task=name, length=12, hidden=4, batch_size=6, directions=1))
    torch.manual_seed(0)
    model = task.model().eval()
    posed = task.prepare_diagnosis(model, 2, 4)
    (x, y), _ = posed.batches
    assert x.shape[1] == 4 and len(posed.batches) == 2
    inputs, truth = task.epoch(0)[0]
    assert torch.equal(x, inputs[:, :4])
    along = 1 if truth.dim() > 1 else 0
    expected = task.distance(model(inputs)[..., :4, :], truth.narrow(along, 0, 4))
    torch.testing.assert_close(posed.loss(posed.model(x), y), expected)
