"""The trainer where something goes wrong: each a clear error, the run's folder intact."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from training_support import facts, module_command, run_folder, small, summary, train, train_here, workspace_with_text

from training import size
from training.flops import flops_per_token
from workspace.layout import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


def failed(folder: Path, code: int, kind: str | None, told: str) -> None:
    assert train_here(folder) == code
    end = summary(folder)
    assert (end["state"], end["class"]) == ("failed", kind)
    assert told in end["error"]


def test_a_loss_that_is_not_a_number(workspace: Workspace) -> None:
    recipe = workspace.root / "recipe"
    recipe.mkdir()
    (recipe / "model.py").write_text(
        "import torch\nfrom training.model import GPT\n"
        "class Explodes(GPT):\n"
        "    steps = 0\n"
        "    def loss(self, tokens, targets):\n"
        "        self.steps += 1\n"
        "        value = super().loss(tokens, targets)\n"
        "        return value * float('nan') if self.steps > 5 else value\n"
        "def build_model(config):\n    return Explodes(config)\n"
    )
    folder = run_folder(workspace, small())
    failed(folder, 10, "nan", "the loss is nan at step")
    assert not (folder / "checkpoints").exists()  # weights that are not numbers are not kept


def test_no_memory(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.trainer import Trainer

    def no_memory(self: Trainer, next_rows: object) -> torch.Tensor:
        return torch.empty(2**55)  # the real allocator says no

    monkeypatch.setattr(Trainer, "_gradients", no_memory)
    failed(run_folder(workspace, small()), 11, "oom", "Next: a smaller batch.rows than 4")


def test_no_corpus(workspace: Workspace) -> None:
    failed(run_folder(workspace, small(data__files=["nowhere.txt"])), 12, "data", "nowhere.txt")


def test_a_corpus_that_changed_since_the_checkpoint(workspace: Workspace) -> None:
    assert train_here(run_folder(workspace, small(), "first")) == 0
    (workspace.root / "text" / "part0.txt").write_text("other words\n" * 3000)
    failed(run_folder(workspace, small(), "second", resume_from="runs/first"), 12, "data", "changed since")


def test_a_configuration_that_is_wrong(workspace: Workspace) -> None:
    folder = run_folder(workspace, small())
    raw = json.loads((folder / "config.json").read_text())
    raw["model"]["depht"] = 3
    (folder / "config.json").write_text(json.dumps(raw))
    failed(folder, 13, "exit", "model.depth")


ANSWERS = (
    "from training.model import GPT\nclass Other(GPT):\n    def forward(self, t):\n        return {}\n"
    "def build_model(config):\n    return Other(config)\n"
)
LOSS = (
    "from training.model import GPT\nclass Other(GPT):\n    def loss(self, tokens, targets):\n        return {}\n"
    "def build_model(config):\n    return Other(config)\n"
)
VOCABULARY = (
    "from training.config import apply\nfrom training.model import GPT\nclass Other(GPT): pass\n"
    "def build_model(config):\n    return Other(apply(config, {{'data.vocab_size': {}}}))\n"
)


@pytest.mark.parametrize(
    ("name", "code", "kind", "told"),
    [
        ("model.py", "import no_such_package\n", "import", "no_such_package"),
        ("model.py", "def build_model(config)\n", "import", "line 1"),
        ("model.py", "import sys\nsys.exit(0)\n", "import", "SystemExit"),
        ("model.py", "import sys\ndef build_model(config):\n    sys.exit(0)\n", "exit", "SystemExit"),
        ("model.py", "def build_modle(config): ...\n", "exit", "build_modle"),
        (
            "model.py",
            "from torch import nn\ndef build_model(config):\n    return nn.Embedding(300, 300)\n",
            "exit",
            "write recipe/optim.py",
        ),
        ("model.py", "def build_model(config):\n    return 3\n", "exit", "not a torch.nn.Module"),
        ("model.py", ANSWERS.format("super().forward(t), 0"), "exit", "the model returned tuple for tokens (1, 32)"),
        ("model.py", ANSWERS.format("super().forward(t)[:, -1]"), "exit", "returned (1, 300)"),
        ("model.py", ANSWERS.format("super().forward(t).long()"), "exit", "returned torch.int64"),
        ("model.py", VOCABULARY.format(299), "exit", "with ids up to 299: IndexError"),
        ("model.py", VOCABULARY.format(400), "exit", "Valid: floating-point logits of shape (1, 32, 300)"),
        ("model.py", LOSS.format("super().forward(tokens)"), "exit", "loss(tokens, targets) returned (4, 32, 300)"),
        ("model.py", LOSS.format("1.5"), "exit", "returned float"),
        ("model.py", LOSS.format("super().loss(tokens, targets).detach()"), "exit", "without a gradient"),
        ("model.py", "def build_model(config):\n    raise KeyError('x')\n", "exit", "KeyError"),
        (
            "optim.py",
            "import torch\ndef build_optimizer(model, config):\n    return torch.optim.SGD([model.skip_weights])\n",
            "exit",
            "in 0 groups",
        ),
    ],
)
def test_recipe_code_that_fails(workspace: Workspace, name: str, code: str, kind: str, told: str) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / name).write_text(code)
    failed(run_folder(workspace, small()), 13, kind, told)


def test_the_log_of_a_failure_ends_with_the_exception(workspace: Workspace) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text("import no_such_package\n")
    done = train(run_folder(workspace, small()))
    assert done.returncode == 13
    assert done.stdout.rstrip().endswith("ModuleNotFoundError: No module named 'no_such_package'")


def test_a_recipes_own_model_and_optimizer_are_used(workspace: Workspace) -> None:
    recipe = workspace.root / "mine"
    recipe.mkdir()
    (recipe / "model.py").write_text(
        "from torch import nn\n"
        "def build_model(config):\n"
        "    v, c = config.data.vocab_size, config.model.width\n"
        "    return nn.Sequential(nn.Embedding(v, c), nn.Linear(c, v))\n"
    )
    (recipe / "optim.py").write_text(
        "import torch\n"
        "def build_optimizer(model, config):\n"
        "    return torch.optim.AdamW(model.parameters(), lr=config.optimizer.head_lr)\n"
    )
    folder = run_folder(workspace, small(), recipe_dir="mine")
    assert train_here(folder) == 0
    end = facts(folder)
    assert set(end["recipe_files"]) == {"model.py", "optim.py"}
    assert end["parameters"]["total"] == 300 * 32 * 2 + 300
    assert end["flops_per_token"] == 6 * 300 * 32


def test_a_budget_in_flops_counts_what_a_model_really_does(workspace: Workspace) -> None:
    """Not what it says of itself. One derived from ours that does the same spends the same."""
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text(
        "from training.model import GPT\nclass Boasts(GPT): pass\n"
        "def build_model(config):\n    model = Boasts(config)\n    model.flops_per_token = 1.0\n    return model\n"
    )
    config = small(budget__kind="flops", budget__amount=2e8)
    assert train_here(run_folder(workspace, config)) == 0
    told = facts(workspace.run_dir("run-0001"))
    assert told["flops_per_token"] == pytest.approx(size.flops_per_token(config))
    assert told["tokens"] * told["flops_per_token"] == pytest.approx(2e8, rel=0.5)


def test_ours_is_counted_as_it_is_worked_out() -> None:
    """With short windows that divide the context or do not, and shared keys."""
    from training.model import GPT

    class Same(GPT):
        pass

    for changes in ({}, {"model__depth": 3, "model__short_window": 0.4, "model__kv_share": 2}):
        config = small(**changes)
        found = flops_per_token(Same(config), config, torch.device("cpu"))
        assert found == pytest.approx(size.flops_per_token(config), rel=1e-9)


def test_attention_is_counted(workspace: Workspace) -> None:
    """On a CPU too, where torch's own counter does not know it."""
    from torch import nn

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(300, 300)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens).unsqueeze(1)
            seen: torch.Tensor = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
            return seen.squeeze(1)

    assert flops_per_token(Looks(), small(), torch.device("cpu")) == 3 * 4 * 32 * 300


def test_a_model_without_products_cannot_spend_a_budget_in_flops(workspace: Workspace) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "optim.py").write_text(PLAIN_ADAM)
    (workspace.root / "recipe" / "model.py").write_text(
        "from torch import nn\ndef build_model(config):\n    return nn.Embedding(300, 300)\n"
    )
    told = "would never be spent"
    failed(run_folder(workspace, small(budget__kind="flops", budget__amount=1e9)), 13, "exit", told)
    assert train_here(run_folder(workspace, small(), "run-0002")) == 0


PLAIN_ADAM = (
    "import torch\ndef build_optimizer(model, config):\n    return torch.optim.AdamW(model.parameters(), lr=0.01)\n"
)


def test_a_model_that_sees_the_answers_gets_no_score(workspace: Workspace) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "optim.py").write_text(PLAIN_ADAM)
    (workspace.root / "recipe" / "model.py").write_text(
        "from torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def __init__(self, v):\n"
        "        super().__init__()\n"
        "        self.embedding, self.head = nn.Embedding(v, 16), nn.Linear(16, v)\n"
        "    def forward(self, tokens):\n"
        "        x = self.embedding(tokens)\n"
        "        return self.head(x + x.mean(dim=1, keepdim=True))\n"
        "def build_model(config):\n    return Mean(config.data.vocab_size)\n"
    )
    failed(run_folder(workspace, small()), 13, "exit", "looks ahead")


def test_a_model_for_full_rows_only_keeps_its_result(workspace: Workspace) -> None:
    """It cannot continue a short prompt, so there is no sample; hours of training are not lost for that."""
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "optim.py").write_text(PLAIN_ADAM)
    (workspace.root / "recipe" / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Rigid(nn.Module):\n"
        "    def __init__(self, v, length):\n"
        "        super().__init__()\n"
        "        self.embedding, self.head = nn.Embedding(v, 16), nn.Linear(16, v)\n"
        "        self.position = nn.Parameter(torch.zeros(length, 16))\n"
        "    def forward(self, tokens):\n"
        "        return self.head(self.embedding(tokens) + self.position)\n"
        "def build_model(config):\n    return Rigid(config.data.vocab_size, config.data.context)\n"
    )
    folder = run_folder(workspace, small())
    assert train_here(folder) == 0
    assert facts(folder)["sample"] == ""


def test_an_unwritable_disk_is_no_success(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.tensor_file.write", full)
    folder = run_folder(workspace, small())
    assert train_here(folder) == 1
    assert "No space left" in summary(folder)["error"]


def test_starting_does_not_import_the_heavy_libraries_early() -> None:
    code = "import sys, training.train; print([m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules])"
    answer = subprocess.run(
        [*module_command("x")[:2], "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert answer.stdout.strip() == "[]"
