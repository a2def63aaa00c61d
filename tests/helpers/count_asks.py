"""Use the Hub as the course does; prints how often the Hub's library asked Colab.

The argument is a repository of the stand-in of the Hub. No token is known, and this is
Colab. The result is one line of JSON: each step, the requests to Colab's page in it,
and the type of its error.
"""

import contextlib
import io
import json
import sys
import tempfile

import huggingface_hub.utils._auth as auth
from datasets import Dataset
from google.colab import _message
from peft import LoraConfig
from trl import SFTConfig

from colab_utils import data, hub, models
from colab_utils.training.sft import FastSFTTrainer

NAME = sys.argv[1]


def train_and_save() -> None:
    """Train an adapter for one step, with a checkpoint, as if on a model of the Hub."""
    model, tokenizer = models.load_model("demo"), models.load_tokenizer("demo")
    model.name_or_path = model.config._name_or_path = NAME
    turns = [("user", "Hello?"), ("assistant", "Hello.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = data.tokenize([{"messages": messages}] * 2, tokenizer)
    trainer = FastSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=1,
            save_steps=1,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(),
    )
    trainer.train()
    trainer.save_model(tempfile.mkdtemp())
    assert trainer.model.peft_config["default"].base_model_name_or_path == NAME


STEPS = {
    "token": hub.token,
    "access": lambda: hub.can_read(NAME, hub.token()),
    "config": lambda: models.load_config(NAME),
    "tokenizer": lambda: models.load_tokenizer(NAME),
    "model": lambda: models.load_model(NAME),
    "download": lambda: models.download(NAME),
    "dataset": lambda: data.load(NAME),
    "training": train_and_save,
}
auth.is_google_colab = lambda: True  # a kernel of Colab's own class decides it
asked = {}
for step, run in STEPS.items():
    auth._IS_GOOGLE_COLAB_CHECKED = False  # the library asks once in a process
    _message.reset()
    problem = ""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            run()
        except Exception as error:
            problem = type(error).__name__
    asked[step] = [_message.calls(), problem]
print(json.dumps(asked))
