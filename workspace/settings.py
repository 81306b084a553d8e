"""Settings of a workspace: `lab.toml`, overridden by `LAB_*` environment variables. All optional.

`LAB_RUNS__GRACE_SECONDS=5` overrides `[runs] grace_seconds`. `LAB_BACKEND` and `LAB_QDRANT_URL` are short forms.
"""

from __future__ import annotations

import functools
import json
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from workspace.errors import Refused, closest
from workspace.interpreter import PASSED_VARIABLES

SHORT_FORMS = {"LAB_BACKEND": "LAB_HARDWARE__BACKEND", "LAB_QDRANT_URL": "LAB_RAG__QDRANT_URL"}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HardwareSettings(Section):
    backend: Literal["auto", "hpu", "rocm", "cuda", "mps", "cpu"] = Field(
        "auto", description="the accelerator to use; auto takes the first of hpu, rocm, cuda, mps, cpu"
    )
    exclude_devices: list[str | int] = Field([], description="device indices or UUIDs the lab must leave alone")
    share_with_others: bool = Field(
        False, description="may runs start on a device that processes other than the lab's compute on?"
    )
    sample_seconds: float = Field(2.0, ge=0.5, le=60, description="how often devices are sampled")


class RunSettings(Section):
    max_concurrent: int = Field(0, ge=0, le=64, description="runs at once; 0 = one per accelerator, or one on a CPU")
    per_device: int = Field(1, ge=1, le=16, description="runs of this workspace that may share one accelerator")
    time_limit_hours: float = Field(24.0, gt=0, le=24 * 31, description="wall-clock limit of a run that names none")
    grace_seconds: float = Field(20.0, ge=0, le=600, description="time between TERM and KILL when a run is stopped")
    ask_above_hours: float = Field(
        0.0, ge=0, description="ask the user before a call that may use the machine for longer; 0 = never ask"
    )
    log_gigabytes: float = Field(
        2.0, ge=0, le=10_000, description="disk space of one run's log, whose beginning is dropped then; 0 = no limit"
    )
    environment: list[str] = Field(
        list(PASSED_VARIABLES),
        description="variables (* stands for anything) your scripts get from whoever started the lab's service",
    )
    python: str = Field(
        "", description="interpreter for your own scripts; empty = the workspace's .venv, else the lab's own"
    )


Policy = Literal["off", "note", "warn", "stop"]


class AlertSettings(Section):
    """What each rule does: nothing, a note, a warning (`wait_for_run` returns for it), or it stops the run."""

    nan: Policy = Field("warn", description="the loss is NaN or infinite")
    loss_flat: Policy = Field("warn", description="the loss does not fall, although it should")
    loss_rising: Policy = Field("warn", description="the loss rises and stays high")
    overfitting: Policy = Field("warn", description="validation grows worse while the training loss falls")
    throughput_falling: Policy = Field("warn", description="far fewer tokens a second than before")
    memory_growing: Policy = Field("warn", description="memory grows step by step")
    utilisation_low: Policy = Field("warn", description="a GPU of the run is used by less than 70 %")
    imbalance: Policy = Field("warn", description="one GPU of the run works, another hardly does")
    stalled: Policy = Field("warn", description="no step for many times the usual time")
    thermal: Policy = Field("warn", description="heat holds a GPU's clock down")
    device_lost: Policy = Field("warn", description="a GPU of the run fell off the bus")
    compile_fell_back: Policy = Field("note", description="torch.compile could not be used")
    disk_filling: Policy = Field("warn", description="the disk is full soon")
    log: Policy = Field("warn", description="the log outgrows runs.log_gigabytes and cannot be shortened here")
    oom: Policy = Field("stop", description="it ended for lack of memory; here and below stop says that it ended")
    signal: Policy = Field("stop", description="something outside the lab killed it")
    data: Policy = Field("stop", description="a file it needs is missing")
    credential: Policy = Field("stop", description="a credential was refused or has expired")
    import_error: Policy = Field("stop", description="a module it imports is missing or broken")


class ServiceSettings(Section):
    idle_minutes: float = Field(
        30.0,
        ge=0,
        le=60 * 24 * 7,
        description="the service ends after this time without clients, live runs or campaigns; 0 = never",
    )
    port: int = Field(0, ge=0, le=65535, description="on 127.0.0.1; 0 = any free one. A tunnel wants one that stays")
    remote_host: str = Field(
        "", description="address on which other machines may reach the lab, e.g. 0.0.0.0; needs certificate and key"
    )
    remote_port: int = Field(8443, ge=1, le=65535, description="port of remote_host")
    certificate: str = Field("", description="file of the TLS certificate (PEM, with its chain) for remote_host")
    key: str = Field("", description="file of the certificate's private key (PEM, readable by you alone)")


class NeighbourSettings(Section):
    """Services of yours that service_status asks, by any name: `labels = "http://127.0.0.1:8501/healthz"`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str]

    def urls(self) -> dict[str, str]:
        return dict(self.__pydantic_extra__)


class ExperimentSettings(Section):
    test_fraction: float = Field(0.2, gt=0, le=1, description="length of the test run as a fraction of the budget")
    replicates: int = Field(4, ge=2, le=20, description="control runs of a session before a candidate is compared")
    confirmations: int = Field(3, ge=2, le=20, description="pairs of fresh runs before a keep is possible")
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="that a whole campaign, or a week of single experiments, keeps nothing by chance",
    )
    resolution: float = Field(
        2.9, ge=0, le=20, description="gains under this many noise SDs are not searched for; 0: down to smallest_effect"
    )


class ProposerSettings(Section):
    """The language model a campaign may ask. Off by default: what it is asked holds results, notes and papers."""

    api: Literal["off", "anthropic", "openai"] = Field(
        "off", description="anthropic: the Messages API; openai: any server that speaks it (Ollama, vLLM, ...)"
    )
    url: str = Field("", description="of the server; empty = https://api.anthropic.com, or Ollama on this machine")
    model: str = Field("", description="name of the model")
    key_variable: str = Field(
        "",
        pattern=r"^(LAB_[A-Z0-9_]+)?$",
        description="environment variable, LAB_..., with the API key, which is never stored; empty = none is wanted",
    )
    claude_code: bool = Field(False, description="may campaigns ask Claude Code (headless, with reading tools only)?")
    claude_command: str = Field("claude", min_length=1, description="the command of Claude Code")
    patches: bool = Field(False, description="may a model change recipe/*.py, not only settings?")
    price_input: float = Field(0.0, ge=0, description="money for a million tokens of questions")
    price_output: float = Field(0.0, ge=0, description="money for a million tokens of answers")
    spending_cap: float = Field(0.0, ge=0, description="money one campaign may spend on answers; 0 = its budget only")
    requests_per_minute: float = Field(10.0, gt=0, le=10_000, description="questions a minute, at most")
    timeout_seconds: float = Field(300.0, gt=0, le=3600, description="how long one answer may take")
    answer_tokens: int = Field(8000, ge=256, le=200_000, description="longest answer")


class CampaignSettings(Section):
    gpu_hour_price: float = Field(0.0, ge=0, description="money a GPU-hour costs, for budgets in money")


class RagSettings(Section):
    qdrant_url: str = Field("", description="a Qdrant server to use instead of the in-process engine")
    model: str = Field(
        "all-MiniLM-L6-v2",
        min_length=1,
        description="embedding model: the packaged one, or a name sentence-transformers knows",
    )
    floor: float = Field(
        0.3, ge=0, le=1, description="cosine similarity below which a passage without a matching word is not shown"
    )
    reranker: str = Field(
        "", description="a cross-encoder that orders the best passages again: a folder or a name; empty = none"
    )


class NetworkSettings(Section):
    hub: bool = Field(False, description="may data sets be fetched from the Hugging Face hub?")
    git: bool = Field(True, description="may start_training clone a repository from a URL?")
    arxiv: bool = Field(False, description="may papers be fetched from arXiv when somebody asks for them?")


class SearchSettings(Section):
    """A web search, asked only when a search says so. Off by default: questions go to the provider."""

    provider: Literal["off", "searxng", "brave"] = Field("off", description="who is asked: SearXNG, or Brave's API")
    url: str = Field("", description="of the provider; needed for searxng, empty = Brave's own")
    key_variable: str = Field(
        "",
        pattern=r"^(LAB_[A-Z0-9_]+)?$",
        description="environment variable, LAB_..., that holds the provider's key; empty = none is wanted",
    )
    arxiv_url: str = Field(
        "https://export.arxiv.org", pattern="^https?://", description="arXiv, or a mirror, for [network] arxiv = true"
    )


class AskSettings(Section):
    """The language model `lab-mcp ask` may put questions and passages to. Off by default: then passages are shown."""

    api: Literal["off", "anthropic", "openai"] = Field(
        "off", description="anthropic: the Messages API; openai: any server that speaks it (Ollama, vLLM, ...)"
    )
    url: str = Field("", description="of the server; empty = https://api.anthropic.com, or Ollama on this machine")
    model: str = Field("", description="name of the model")
    key_variable: str = Field("", description="environment variable that holds the API key; empty = none is wanted")
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="how long an answer may take")
    answer_tokens: int = Field(1000, ge=64, le=100_000, description="longest answer")


class GitSettings(Section):
    prefix: str = Field(
        "lab", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the lab's own refs are refs/heads/<prefix>/..."
    )


class Settings(BaseSettings):
    """Every setting with its default; see `lab.toml` in a workspace for the same as text."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="LAB_", env_nested_delimiter="__")

    hardware: HardwareSettings = HardwareSettings()
    runs: RunSettings = RunSettings()
    alerts: AlertSettings = AlertSettings()
    service: ServiceSettings = ServiceSettings()
    services: NeighbourSettings = NeighbourSettings()
    experiments: ExperimentSettings = ExperimentSettings()
    campaigns: CampaignSettings = CampaignSettings()
    proposer: ProposerSettings = ProposerSettings()
    rag: RagSettings = RagSettings()
    network: NetworkSettings = NetworkSettings()
    search: SearchSettings = SearchSettings()
    ask: AskSettings = AskSettings()
    git: GitSettings = GitSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)  # the environment wins over the file


def load(file: Path) -> Settings:
    """Read `file` (may be absent) and the environment.

    Raises `Refused` naming the file or variable, the key, what was found and what is allowed.
    """
    content: dict[str, Any] = {}
    if file.exists():
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise Refused(f"{file.name} cannot be read ({error.strerror})", fix=f"check {file.name}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refused(f"{file.name} is not valid TOML: {error}", fix=f"mend {file.name}") from error
    variables: dict[str, str] = {}  # setting -> the short variable that gave it
    for short, full in SHORT_FORMS.items():
        if os.environ.get(short) and full not in os.environ:
            section, key = full.removeprefix("LAB_").lower().split("__")
            if isinstance(content.setdefault(section, {}), dict):
                content[section][key] = os.environ[short]
                variables[f"{section}.{key}"] = short
    try:
        return Settings(**content)
    except ValidationError as error:
        raise _explain(file, error, variables) from error
    except Exception as error:  # pydantic-settings wraps a malformed environment value in SettingsError
        if type(error).__name__ != "SettingsError":
            raise
        raise Refused(f"a LAB_* environment variable cannot be read: {error}", fix="unset or correct it") from error


def _explain(file: Path, error: ValidationError, variables: dict[str, str]) -> Refused:
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    variable = variables.get(key, "LAB_" + "__".join(path).upper())
    source = f"environment variable {variable}" if variable in os.environ else file.name
    if problem["type"] == "extra_forbidden":
        section: Any = Settings
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        known = list(section.model_fields)
        near = closest(path[-1], known)
        return Refused(f"{source}: there is no setting {key}", valid=", ".join(near or known))
    found = json.dumps(problem["input"], ensure_ascii=False, default=str)[:80]
    return Refused(
        f"{source}: {key} = {found} is not allowed",
        valid=_allowed(path) or problem["msg"],
        fix=f"correct {key} in {source}",
    )


@functools.cache
def _schema() -> dict[str, Any]:
    return Settings.model_json_schema()


def _allowed(path: list[str]) -> str:
    """What a setting accepts, in words, from its JSON schema."""
    schema = _schema()
    node: dict[str, Any] = schema
    for part in path:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        node = node.get("properties", {}).get(part, {})
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    words = {
        "number": "a number",
        "integer": "a whole number",
        "string": "text",
        "boolean": "true or false",
        "array": "a list",
    }
    text = words.get(str(node.get("type")), "")
    bounds = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ]
    limits = [f"{word} {node[name]:g}" for name, word in bounds if name in node]
    if "pattern" in node:
        limits.append(f"matching {node['pattern']}")
    return " ".join([text, " and ".join(limits)]).strip()


def default_toml() -> str:
    """The text of a new `lab.toml`: every setting, commented out, at its default."""
    lines = [
        "# Settings of this lab. Everything is optional; what is commented out is at its default.",
        "# An environment variable overrides: LAB_RUNS__GRACE_SECONDS=5 stands for [runs] grace_seconds.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        lines.append(f"[{name}]")
        if section.model_config.get("extra") == "allow":
            lines.append(f"# {section.__doc__}")
        for key, setting in section.model_fields.items():
            allowed = _allowed([name, key])
            lines.append(
                f"# {setting.description}" + (f" ({allowed})" if "one of" in allowed or "at " in allowed else "")
            )
            lines.append(f"# {key} = {json.dumps(setting.default)}")
        lines.append("")
    return "\n".join(lines)
