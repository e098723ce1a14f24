"""One small model, trained once for all tests of the room, in a folder as users have them."""

from pathlib import Path

import pytest

from polyloom.methods.layerskip.data import example_batches, tokenize, world_examples
from polyloom.methods.layerskip.training import PRESETS, LayerSkipLoss, build_llama
from polyloom.models.device import pin_threads
from polyloom.models.exits import exit_parts
from polyloom.models.load import save_model
from polyloom.models.tokenizers import train_tokenizer
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of four layers that has learned the parses' brackets."""
    pin_threads()
    examples = world_examples(["en", "de"], 400, 0, "train")
    tokenizer = train_tokenizer([one.prompt + one.response for one in examples], 400)
    model = build_llama(4, 64, 128, len(tokenizer), 0)
    loss = LayerSkipLoss(exit_parts(model), PRESETS["embedded"], 60, 0)
    config = TrainConfig(steps=60, batch_size=8, lr=6e-3, warmup_steps=5)
    with loss.installed():
        train(model, example_batches(tokenize(tokenizer, examples, 160), 8, 0), config, loss=loss)
    folder = tmp_path_factory.mktemp("layerskip") / "model"
    save_model(model, folder, tokenizer)
    return folder
