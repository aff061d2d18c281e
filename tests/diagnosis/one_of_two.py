"""One of two processes that train a model together: prints what it logged and how it ended."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from tests.diagnosis.test_flow import GradientFlow, Kept, Learner, batch, made, pl
from throughtime.errors import NotFiniteError

RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Bad(Learner):
    """The second process alone comes to NaN, at its second step."""

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        bad = RANK == 1 and number == 1
        return super().training_step(batch, number) + (float("nan") if bad else 0.0)


def half(seed: int) -> tuple[Tensor, Tensor]:
    """This process's rows of a batch."""
    x, target = batch(seed)
    return x[:, RANK::2], target[RANK::2]


def trained(learner: Learner) -> dict[str, Any]:
    """What is logged and warned of, and the error that ends the training."""
    logger, error = Kept(), ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", logger=logger, max_epochs=1,
            callbacks=[GradientFlow(2)], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        data = torch.utils.data.DataLoader([half(s) for s in range(3)], batch_size=None)
        try:
            trainer.fit(learner, data)
        except NotFiniteError as found:
            error = str(found)
    said = [str(w.message) for w in caught if "Training step" in str(w.message)]
    return {"rows": logger.rows, "said": said, "error": error}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([trained(kind(made("drop_in"))) for kind in (Learner, Bad)]))
