"""The configuration of a training run: one frozen, typed object. No torch here.

A recipe is `recipe/recipe.toml`: every key optional, what is absent is at its default. Keys are addressed with dots,
`optimizer.matrix_lr`. The defaults make a small run that learns something on two CPU cores within a minute;
`suggest` gives the values for a larger machine.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from training import shares
from workspace.errors import LabError, Refused, closest

RECIPE_NAME = "recipe.toml"
BYTE_VOCABULARY = 257  # 256 raw bytes and the beginning-of-sequence token
MEBI = 2**20
GIBI = 2**30


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    depth: int = Field(4, ge=1, le=128, description="layers")
    width: int = Field(128, ge=16, le=16384, description="channels; a multiple of head_dim")
    head_dim: int = Field(64, ge=8, le=256, description="channels of one attention head; even")
    kv_share: int = Field(1, ge=1, le=64, description="query heads that share one key/value head; divides the heads")
    mlp_ratio: int = Field(4, ge=1, le=16, description="width of the MLP's hidden layer in units of width")
    activation: Literal["relu2", "gelu", "silu"] = Field("relu2", description="non-linearity of the MLP")
    windows: str = Field(
        "SSSL",
        pattern="^[SL]{1,64}$",
        description="attention window by layer, repeated: S short, L full; last always L",
    )
    short_window: float = Field(0.5, gt=0, le=1, description="length of the short window as a fraction of the context")
    rope_base: float = Field(10000.0, ge=100, le=1e8, description="longest wavelength of the rotary positions")
    softcap: float = Field(15.0, ge=0, le=200, description="logits are held within +-softcap by tanh; 0 = off")
    value_embeddings: bool = Field(True, description="add gated token embeddings to the values of every second layer")
    residual_init: float = Field(1.0, ge=0, le=2, description="initial weight of the residual stream, per layer")
    skip_init: float = Field(0.1, ge=0, le=2, description="initial weight of the embedding added back in, per layer")


class OptimizerConfig(Section):
    matrix_lr: float = Field(0.04, gt=0, le=10, description="Muon: the matrices of the layers")
    embedding_lr: float = Field(0.6, gt=0, le=10, description="AdamW: token and value embeddings")
    head_lr: float = Field(0.004, gt=0, le=10, description="AdamW: the output head")
    scalar_lr: float = Field(0.5, gt=0, le=10, description="AdamW: skip weights (residual weights take 1 % of it)")
    weight_decay: float = Field(0.2, ge=0, le=10, description="Muon: cautious decay, falling to 0 over the run")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon: momentum after its warm-up")
    momentum_start: float = Field(0.85, ge=0, lt=1, description="Muon: momentum at the first step")
    momentum_warmup: float = Field(0.3, ge=0, le=1, description="Muon: part of the budget in which momentum rises")
    polar_steps: int = Field(5, ge=1, le=5, description="Muon: iterations of the Polar Express orthogonalisation")
    variance_beta: float = Field(0.95, ge=0, lt=1, description="Muon: decay of the per-neuron variance (NorMuon)")
    adam_beta1: float = Field(0.8, ge=0, lt=1, description="AdamW: first moment")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: second moment")
    state_bits: Literal[32, 8] = Field(32, description="AdamW: bits of a moment; 8 needs lab-mcp[adam8]")
    offload: bool = Field(False, description="AdamW: moments in the machine's memory instead of the device's")
    grad_clip: float = Field(0.0, ge=0, le=1000, description="largest gradient norm; 0 = no clipping")


class ScheduleConfig(Section):
    warmup: float = Field(0.0, ge=0, lt=1, description="part of the budget in which the rates rise from 0")
    warmdown: float = Field(0.5, ge=0, le=1, description="part of the budget, at its end, in which the rates fall")
    final: float = Field(0.0, ge=0, le=1, description="rates at the end, as a fraction of their peak")
    shape: Literal["linear", "cosine", "sqrt"] = Field("linear", description="how the rates fall")


class DataConfig(Section):
    corpus: str = Field(
        "python-stdlib",
        pattern=r"^(python-stdlib|files|hub:[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?)$",
        description="python-stdlib (the library sources of this Python), files, or hub:OWNER/NAME (Hugging Face)",
    )
    files: tuple[str, ...] = Field(
        (), description="corpus 'files': .txt .md .py .jsonl .parquet files or folders, inside the workspace"
    )
    text_field: str = Field(
        "text", min_length=1, description="which field of .jsonl, .parquet and hub rows is the text"
    )
    max_bytes: int = Field(12_000_000, ge=10_000, le=10**12, description="bytes of text used, at most")
    vocab_size: int = Field(2048, ge=BYTE_VOCABULARY, le=2**20, description="tokens, the 256 bytes and BOS included")
    context: int = Field(256, ge=8, le=2**20, description="tokens a row holds")
    validation_percent: float = Field(5.0, gt=0, le=45, description="documents kept for the search's evaluation")
    audit_percent: float = Field(5.0, gt=0, le=45, description="documents kept for the audit; training never sees them")


class BatchConfig(Section):
    tokens: int = Field(2048, ge=8, le=2**28, description="tokens of one optimizer step; a multiple of rows x context")
    rows: int = Field(8, ge=1, le=65536, description="rows on the device at once; memory, not mathematics")


class BudgetConfig(Section):
    kind: Literal["seconds", "steps", "tokens", "flops"] = Field("seconds", description="what the budget counts")
    amount: float = Field(
        60.0,
        gt=0,
        le=1e30,
        description="training seconds (start-up, evaluation excluded), steps, tokens, or floating-point operations",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in ("steps", "tokens") and self.amount != int(self.amount):
            raise ValueError(f"a budget in {self.kind} is a whole number")
        if self.kind in ("seconds", "steps") and self.amount > 10**9:
            raise ValueError(f"a budget in {self.kind} is at most 1e9")
        return self


class EvaluationConfig(Section):
    bytes: int = Field(
        150_000, ge=1000, le=10**10, description="validation text of the final evaluation, in whole documents"
    )
    quick_bytes: int = Field(20_000, ge=1000, le=10**10, description="validation text of a quick evaluation")
    quick_count: int = Field(4, ge=0, le=1000, description="quick evaluations, spread evenly over the budget")
    patience: int = Field(
        0, ge=0, le=1000, description="quick evaluations without a better one after which training ends; 0 = never"
    )
    min_delta: float = Field(0.0, ge=0, le=10, description="bits per byte that count as better, for patience")
    sample_tokens: int = Field(96, ge=0, le=100_000, description="length of the sample in the summary; 0 = none")


class CheckpointConfig(Section):
    every_seconds: float = Field(300.0, ge=0, le=10**7, description="time between checkpoints; 0 = only at the end")
    keep: int = Field(2, ge=1, le=1000, description="checkpoints kept, newest first")


class ParallelConfig(Section):
    kind: Literal["none", "ddp", "fsdp"] = Field(
        "none", description="several devices: ddp copies the model to each, fsdp shards it over them"
    )
    processes: int = Field(0, ge=0, le=1024, description="one for each device; 0 = as many as the run has devices")


class ProfileConfig(Section):
    steps: int = Field(0, ge=0, le=100, description="steps that torch.profiler records into profile/; 0 = none")


class TrainingConfig(Section):
    """Everything that decides a run. `model_dump(mode="json")` and `TrainingConfig(**...)` are inverse."""

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    budget: BudgetConfig = BudgetConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="initial weights and order of the rows")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of the matrix products")
    deterministic: bool = Field(False, description="the same bits each time on a GPU too; slower")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto = where it pays")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="where metrics are mirrored to, beside the run's own files"
    )


# -- reading and changing ---------------------------------------------------------------------------------------------


def load_config(value: Mapping[str, Any], *, source: str = "configuration") -> TrainingConfig:
    """A nested mapping as a checked `TrainingConfig`. Raises `Refused` naming `source`, the key and what is allowed."""
    try:
        config = TrainingConfig.model_validate(dict(value))
    except ValidationError as error:
        raise _explain(source, error) from error
    check(config, source=source)
    return config


def read_recipe(recipe_dir: Path) -> dict[str, Any]:
    """The tables of `recipe.toml` as they stand there, `[search_space]` included; empty when there is no file."""
    file = recipe_dir / RECIPE_NAME
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{RECIPE_NAME} is not valid TOML: {error}", fix=f"mend {RECIPE_NAME}") from error


def load_recipe(recipe_dir: Path) -> TrainingConfig:
    """The configuration `recipe_dir/recipe.toml` describes; the defaults where it is silent or absent."""
    content = read_recipe(recipe_dir)
    content.pop("search_space", None)
    return load_config(content, source=RECIPE_NAME)


def apply(config: TrainingConfig, changes: Mapping[str, Any], *, source: str = "changes") -> TrainingConfig:
    """`config` with some keys changed, e.g. `{"optimizer.matrix_lr": 0.02}`; checked as a whole."""
    nested = config.model_dump(mode="json")
    known = dict(knobs())
    for key, value in changes.items():
        if key not in known:
            raise Refused(f"{source}: there is no setting {key[:120]!r}", valid=_nearest(key, known))
        *path, last = key.split(".")
        node = nested
        for part in path:
            node = node[part]
        node[last] = value
    return load_config(nested, source=source)


def knobs(section: type[BaseModel] = TrainingConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting as (dotted key, field), in order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from knobs(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def value_of(config: TrainingConfig, key: str) -> Any:
    """The value at a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def check(config: TrainingConfig, *, source: str = "configuration") -> None:
    """What single fields cannot know: divisibility and what belongs together. Raises `Refused` with a way out."""
    m, b, d = config.model, config.batch, config.data

    def refuse(problem: str, fix: str) -> None:
        raise Refused(f"{source}: {problem}", fix=fix)

    if m.head_dim % 2:
        refuse(f"model.head_dim = {m.head_dim} is odd", "rotary positions turn pairs: take an even head_dim")
    if m.width % m.head_dim:
        near = max(1, round(m.width / m.head_dim)) * m.head_dim
        refuse(f"model.width = {m.width} is not a multiple of model.head_dim = {m.head_dim}", f"model.width = {near}")
    if (m.width // m.head_dim) % m.kv_share:
        refuse(f"model.kv_share = {m.kv_share} does not divide the {m.width // m.head_dim} heads", "model.kv_share = 1")
    if round(m.short_window * d.context) < 1:
        refuse(f"model.short_window = {m.short_window} of {d.context} tokens is no token", "take a longer window")
    row_tokens = b.rows * d.context
    if b.tokens % row_tokens:
        fitting = max(1, round(b.tokens / row_tokens)) * row_tokens
        refuse(
            f"batch.tokens = {b.tokens} is not a multiple of batch.rows x data.context = {b.rows} x {d.context}",
            f"batch.tokens = {fitting}",
        )
    if d.corpus == "files" and not d.files:
        refuse("data.corpus = 'files' names no data.files", "name files or folders inside the workspace in data.files")
    if d.corpus != "files" and d.files:
        refuse(f"data.files is not used by data.corpus = {d.corpus!r}", "data.corpus = 'files', or drop data.files")
    if config.evaluation.quick_bytes > config.evaluation.bytes:
        refuse("evaluation.quick_bytes is above evaluation.bytes", f"at most {config.evaluation.bytes}")
    if count := config.parallel.processes:  # 0: as many as the run gets, which is checked when that is known
        shares.check(config, count, source=source, by=f"parallel.processes = {count}")
    if config.parallel.processes and config.parallel.kind == "none":
        refuse("parallel.processes is not used by parallel.kind = 'none'", "parallel.kind = 'ddp' or 'fsdp'")
    if config.parallel.kind == "fsdp" and (config.optimizer.state_bits == 8 or config.optimizer.offload):
        refuse("optimizer.state_bits = 8 and optimizer.offload do not go with sharded moments", "drop one of both")
    if config.evaluation.min_delta and not config.evaluation.patience:
        refuse("evaluation.min_delta is not used without evaluation.patience", "evaluation.patience = 3")
    if config.evaluation.patience and not config.evaluation.quick_count:
        refuse("evaluation.patience counts quick evaluations, and there are none", "evaluation.quick_count = 10")
    if config.schedule.warmup + config.schedule.warmdown > 1:
        refuse("schedule.warmup + schedule.warmdown is above 1", "together they are parts of one budget")


def suggest(backend: str, memory_bytes: int | None = None, devices: int = 1) -> dict[str, Any]:
    """Changes to the defaults for a machine: `backend` as in `training.hardware`, memory of one device in bytes, and
    how many there are: rows are fewer where all of them could not share a step otherwise.

    On NVIDIA and AMD cards the largest tiers are the setting published for one H100 by karpathy/autoresearch (45 GB at
    128 rows); on Gaudi and Apple those of elementalcollision/autoresearch-unified.
    """
    if backend == "cpu":
        return {}
    memory = memory_bytes or 8 * GIBI
    smallest, *larger = _TIERS.get(backend, _TIERS["cuda"])
    tier = next((tier for tier in reversed(larger) if memory >= tier[0] * GIBI), smallest)
    _, depth, context, rows, tokens = tier
    tokens, rows = shares.fitting(tokens, rows, context, devices)
    return {
        "data.vocab_size": 8192, "data.max_bytes": 100_000_000, "data.context": context, "budget.amount": 300.0,
        "evaluation.bytes": 2_000_000, "evaluation.quick_bytes": 200_000, "model.depth": depth,
        "model.width": 64 * depth, "model.head_dim": 128, "batch.rows": rows, "batch.tokens": tokens,
    }  # fmt: skip


# memory in GiB from which on, depth, context, rows on the device, tokens of a step
_TIERS: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "cuda": ((0, 6, 512, 16, 2**15), (14, 8, 1024, 32, 2**17), (38, 8, 2048, 64, 2**19), (70, 8, 2048, 128, 2**19)),
    "hpu": ((0, 8, 2048, 32, 2**17), (64, 12, 2048, 32, 2**17), (96, 16, 2048, 32, 2**18)),  # half their rows at 96
    "mps": ((0, 4, 512, 4, 2**12), (18, 6, 1024, 8, 2**13), (48, 8, 2048, 16, 2**15), (128, 10, 2048, 32, 2**16)),
}


# -- as text ----------------------------------------------------------------------------------------------------------

SEARCH_SPACE = """\
# Where a campaign may look. A range {low, high, log?} or {choices}; a key that is absent is left alone.
[search_space]
"optimizer.matrix_lr" = { low = 0.005, high = 0.1, log = true }
"optimizer.embedding_lr" = { low = 0.05, high = 2.0, log = true }
"optimizer.head_lr" = { low = 0.0005, high = 0.02, log = true }
"optimizer.weight_decay" = { low = 0.0, high = 0.5 }
"schedule.warmdown" = { low = 0.2, high = 0.9 }
"model.depth" = { choices = [2, 3, 4, 6, 8] }
"model.short_window" = { choices = [0.25, 0.5, 1.0] }
"""


def default_recipe_toml(changes: Mapping[str, Any] | None = None) -> str:
    """The text of a new `recipe.toml`: every setting at its default, commented out, except those in `changes`."""
    changed = dict(changes or {})
    lines = [
        "# The recipe: what a training run does. Everything is optional; what is commented out is at its default.",
        "# model.py (build_model(config)) and optim.py (build_optimizer(model, config)) beside this file replace ours.",
    ]
    entries = sorted(knobs(), key=lambda entry: "." in entry[0])  # TOML: keys without a table come first
    table = ""
    for key, field in entries:
        section, _, name = key.rpartition(".")
        if section != table:
            table = section
            lines += ["", f"[{section}]"]
        mark = "" if key in changed else "# "
        lines += [f"# {_describe(field, key)}", f"{mark}{name} = {toml_value(changed.get(key, field.default))}"]
    return "\n".join(lines) + "\n\n" + SEARCH_SPACE


def to_toml(config: TrainingConfig) -> str:
    """`config` as TOML, nothing left out; `load_config(tomllib.loads(...))` gives it back."""
    return "\n".join(f"{key} = {toml_value(value_of(config, key))}" for key, _ in knobs()) + "\n"


def toml_value(value: Any) -> str:
    """A string, number, boolean or list of these as TOML."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _describe(field: FieldInfo, key: str) -> str:
    allowed = allowed_values(key)
    return f"{field.description}" + (f" ({allowed})" if allowed.startswith("one of") else "")


@cache
def _schema() -> dict[str, Any]:
    return TrainingConfig.model_json_schema()


def allowed_values(key: str) -> str:
    """What the setting at a dotted key accepts, in words, read off its JSON schema."""
    schema = _schema()
    node: dict[str, Any] = schema
    for part in key.split("."):
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        node = node.get("properties", {}).get(part, {})
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    words = {"number": "a number", "integer": "a whole number", "string": "text", "boolean": "true or false"}
    text = words.get(str(node.get("type")), "a list of texts" if node.get("type") == "array" else "")
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {node[name]:.15g}" for name, word in bounds.items() if name in node]
    if "pattern" in node:
        limits.append(f"matching {node['pattern']}")
    return " ".join([text, " and ".join(limits)]).strip()


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    leaves = closest(leaf, {name.rsplit(".", 1)[-1] for name in known}, limit=2)
    near = same_leaf or closest(key, known) or [name for name in known if name.rsplit(".", 1)[-1] in leaves]
    return "closest " + ", ".join(near) if near else ", ".join(known)


def _explain(source: str, error: ValidationError) -> LabError:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    known = dict(knobs())
    if problem["type"] == "extra_forbidden":
        return Refused(f"{source}: there is no setting {key[:120]!r}", valid=_nearest(key, known))
    found = json.dumps(problem["input"], ensure_ascii=False, default=str)[:80]
    named = next((name for name in known if key == name or key.startswith(name + ".")), key)
    valid = allowed_values(named) if named in known else ""
    message = problem["msg"].removeprefix("Value error, ")
    return Refused(f"{source}: {key} = {found} is not allowed", valid=valid or message, fix=f"correct {key}")
