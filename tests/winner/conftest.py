"""Small winners that know a little, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas import data, network
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.space import SearchSpace
from nas.target import Target
from nas.winner.export import export
from nas.winner.score import evaluate


@pytest.fixture(scope="session")
def winner_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what exports the smallest network of `tiny`, trained on digits for a few epochs, with
    a promise for a target; the folder is not to be written to."""
    digits = data.load("digits")
    space = SearchSpace.load("tiny").replace(num_classes=10)
    blocks = space.blocks(space.smallest())

    def made(target: Target, *, epochs: int) -> Path:
        torch.manual_seed(0)
        model = network.build(blocks)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for epoch in range(epochs):
            for images, labels in data.batches(
                digits.split("train"), digits, batch_size=64, seed=0, epoch=epoch, augment=None
            ):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        search = digits.split("search")
        winner = Winner(
            architecture=space.smallest().to_json(),
            blocks=tuple(str(block) for block in blocks),
            accuracy=Accuracy(
                search=evaluate(model, search, digits).accuracy, search_images=len(search)
            ),
            budgets={f"latency_ms:{target.id}": 1000.0},
            targets=(TargetResult(target=target.id, predicted_ms=0.03),),
            ancestry=Ancestry(study="s", trial=3),
            data="digits",
        )
        folder = tmp_path_factory.mktemp("winners") / winner.id
        export(model, folder=folder, winner=winner, data=digits)
        return folder

    return made
