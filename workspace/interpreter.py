"""How our own child processes are started, so that a user's `tools/` folder or PYTHONPATH can never shadow ours.

Standard library only.
"""

from __future__ import annotations

import fnmatch
import os
import site
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent.parent
PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONNOUSERSITE")

# What the service and our children get of the environment, whoever started them. Everything else (a client's API
# keys, a virtual environment of the user's, ...) stays out.
ALLOWED_VARIABLES = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LC_ALL LC_CTYPE TZ TMPDIR XDG_STATE_HOME XDG_CACHE_HOME XDG_RUNTIME_DIR "
    "XDG_CONFIG_HOME LD_LIBRARY_PATH DYLD_LIBRARY_PATH CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER "
    "NVIDIA_VISIBLE_DEVICES ROCM_PATH HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION "
    "HABANA_VISIBLE_DEVICES GC_KERNEL_PATH OMP_NUM_THREADS MKL_NUM_THREADS HF_HOME HF_HUB_OFFLINE SSL_CERT_FILE "
    "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy SYSTEMROOT CC CXX".split()
)

# What a user's scripts get besides, by default (`runs.environment` in lab.toml): names, * stands for anything.
PASSED_VARIABLES = (
    "SSH_AUTH_SOCK", "HF_*", "WANDB_*", "MLFLOW_*", "COMET_*", "NEPTUNE_*", "KAGGLE_*", "TORCH_*", "PYTORCH_*",
    "NCCL_*", "TRITON_*", "XLA_*", "JAX_*", "TF_*", "OMP_*", "TOKENIZERS_PARALLELISM", "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
)  # fmt: skip


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules clean: no current folder, no PYTHONPATH, no user site-packages."""
    flags = ["-P"]
    user_site = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    if not user_site or not str(PACKAGE_ROOT).startswith(user_site):
        flags.append("-s")
    return [sys.executable, *flags, "-m", module, *arguments]


def service_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allowed part of an environment, plus `LAB_*` settings; never PYTHONPATH and its kin, never secrets."""
    source = os.environ if environment is None else environment
    kept = {k: v for k, v in source.items() if k in ALLOWED_VARIABLES or k.startswith("LAB_")}
    kept.setdefault("PATH", os.defpath)
    return kept


def passed_variables(
    patterns: Collection[str] = PASSED_VARIABLES, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The part of an environment that users' scripts alone get: what matches, but for our own and Python's variables.

    What every child of ours gets anyway (`service_environment`) is not among it.
    """
    source = os.environ if environment is None else environment
    never = {*ALLOWED_VARIABLES, *PYTHON_VARIABLES}
    names = (n for n in source if n not in never and not n.startswith("LAB_"))
    return {n: source[n] for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)}


def is_shadowed() -> bool:
    """True when this process would import somebody else's `tools`, `training`, ... instead of ours."""
    from importlib.machinery import PathFinder

    for name in ("tools", "experiments", "training", "rag", "sessions", "workspace"):
        found = PathFinder.find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().parent.parent != PACKAGE_ROOT:
            return True
    return False
