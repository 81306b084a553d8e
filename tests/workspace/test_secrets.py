"""What the lab masks before it keeps or shows a text, and what it must leave alone."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace import secrets
from workspace.secrets import MASK, is_secret_name, mask, mask_value

LETTERS = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"login with hf_{LETTERS}", LETTERS),
        (f"OPENAI key sk-proj-{LETTERS}", LETTERS),
        (f"key sk-ant-api03-{LETTERS}-x", LETTERS),
        ("aws AKIAIOSFODNN7EXAMPLE here", "IOSFODNN7EXAMPLE"),
        (f"remote ghp_{LETTERS}", LETTERS),
        (f"remote gho_{LETTERS}", LETTERS),
        (f"github_pat_{LETTERS}", LETTERS),
        (f"Authorization: Bearer {LETTERS}", LETTERS),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        (f"curl -H 'bearer {LETTERS}'", LETTERS),
        ("password=hunter2", "hunter2"),
        ("password: swordfish", "swordfish"),
        ("PASSWORD = 'two words'", "two words"),
        ("token=abcdef", "abcdef"),
        ("HF_TOKEN=abcdef", "abcdef"),
        ('{"token": "abcdef"}', "abcdef"),
        ('{"wandb_api_key": "0123456789abcdef"}', "0123456789abcdef"),
        ("api_key=xyz-123&next=1", "xyz-123"),
        ("api-key: xyz123", "xyz123"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("train.py --api-key abcdef --depth 4", "abcdef"),
        ("train.py --hf-token abcdef", "abcdef"),
        ("train.py --password hunter2", "hunter2"),
        ("https://ada:lovelace@example.org/x.git", "lovelace"),
        (f"eyJhbGciOiJIUzI1NiJ9.{LETTERS}.{LETTERS}", LETTERS),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow\nlog cut here", "MIIEow"),
    ],
)
def test_a_secret_is_masked(text: str, secret: str) -> None:
    masked = mask(text)
    assert secret not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "tokens=524288 tokens_per_s=81234.5 max_tokens: 128",
        "bits per token: 1.2345, loss per token = 3.1",
        "pad_token=<pad> eos_token='</s>' bos_token: <s>",
        "next token: the",
        "token: 512",
        "the secret: patience",
        "tokenizer: bpe-8192 and tokenizer=bpe",
        "def login(password: str, token: str | None = None)",
        "sk-learn and scikit-learn, task-0123456789abcdef0123",
        "bearer of bad news",
        "hf_hub and hf_transfer",
        "see https://example.org:8080/a@b",
        "passes=3 compass=north",
        "step 100 loss 2.31 lr 0.02",
        "sha256 " + "ab12" * 16,
    ],
)
def test_ordinary_words_of_a_lab_are_left_alone(text: str) -> None:
    assert mask(text) == text


def test_what_follows_a_secret_stays() -> None:
    assert mask("token=abcdef, depth=4") == "token=***, depth=4"
    assert mask('{"token": "a\\"b", "depth": 4}') == '{"token": "***", "depth": 4}'
    assert mask("https://u:p@h/x") == "https://u:***@h/x"


def test_values_are_masked_by_their_key_too() -> None:
    arguments = {"env": {"HF_TOKEN": "short", "DEPTH": "4"}, "args": ["--token", f"hf_{LETTERS}"], "tokens": 10}
    assert mask_value(arguments) == {
        "env": {"HF_TOKEN": "***", "DEPTH": "4"},
        "args": ["--token", "hf_***"],
        "tokens": 10,
    }
    assert mask_value({"pad_token": "<pad>", "api_key": ""}) == {"pad_token": "<pad>", "api_key": ""}


def test_secret_names() -> None:
    assert all(map(is_secret_name, ("password", "HF_TOKEN", "wandb_api_key", "AWS_SECRET_ACCESS_KEY", "authorization")))
    assert not any(map(is_secret_name, ("tokens", "max_tokens", "tokenizer", "pad_token", "key", "name")))


@given(st.text(alphabet=st.sampled_from(list("tokenpaswrd=:\"' \n-_hf3/@")), max_size=200))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "piece",
    [
        "eyJ",
        "token ",
        "a-",
        "password=",
        "://a:",
        "bearer ",
        '\\"',
        "--a-b-",
        "-----BEGIN PRIVATE KEY",
        "'password': '",
    ],
)
def test_a_long_hostile_log_takes_linear_time(piece: str) -> None:
    def seconds(repeats: int) -> float:
        text = piece * repeats
        started = time.perf_counter()
        mask(text)
        return time.perf_counter() - started

    short, long = seconds(2_000), seconds(20_000)
    assert long < 60 * max(short, 0.002)  # ten times the text; quadratic would be a hundred


PIECES = (
    "tok tOKen pass WORD secret key api - _ = : \" ' hf_ ghp_ sk- AKIA eyJ . Bearer authorization :// @ -----BEGIN "
    "PRIVATE KEY----- -----END ſ K İ ı █ pad_ per\xa0 é 0 7 ab12cd34ef56gh78 credential phrase access private "
    "github_pat_ glpat- npm_ pypi- xoxb- AIza ASIA"
).split(" ")


@given(st.lists(st.sampled_from([*PIECES, " ", "\n"]) | st.text(max_size=3), max_size=30).map("".join))
def test_the_quick_look_beforehand_changes_no_result(text: str) -> None:
    assert mask(text) == secrets._mask(text)
