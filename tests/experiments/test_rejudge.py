"""Somebody else's results.tsv, read as it is and judged by what one run can show."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from made_up_night import night

from experiments.imported import Imported, Row, read
from experiments.rejudge import LONGEST_STRETCH, MOST_PAIRS, _pieces, rejudge
from experiments.results import COLUMNS, row
from workspace.errors import LabError, NotFound, Refused

FILES = Path(__file__).parent / "results_files"
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
NIGHT = HEADER + "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\nb2c3d4e\t0.993200\t44.2\tkeep\thalve the batch\n"


def written(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "results.tsv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


# -- reading ----------------------------------------------------------------------------------------------------------


def test_five_columns_as_autoresearch_writes_them() -> None:
    found = read(FILES / "night.tsv")
    assert found.metric == "val_bpb" and not found.problems and not found.foreign and not found.notes
    assert len(found.rows) == 72 and found.rows[0].baseline and not any(row.baseline for row in found.rows[1:])
    crashes = [row for row in found.rows if row.status == "crash"]
    assert len(crashes) == 4 and all(row.score is None and row.memory_gb is None for row in crashes)


def test_a_fork_with_more_columns_and_windows_line_ends() -> None:
    found = read(FILES / "fourteen_columns.tsv")
    assert found.columns == {
        "score": "val_bpb", "status": "status", "memory": "peak_mem_gb", "description": "description"
    }  # fmt: skip
    assert "gpu_name" in found.foreign and "baseline_sha" in found.foreign
    assert {row.status for row in found.rows} == {"keep", "discard", "crash", "skip"} and not found.problems
    assert not any("\r" in row.description for row in found.rows)


def test_without_a_header_the_order_of_autoresearch_is_recognised(tmp_path: Path) -> None:
    found = read(written(tmp_path, NIGHT.removeprefix(HEADER)))
    assert [row.score for row in found.rows] == [0.9979, 0.9932] and "no header" in found.notes[0]
    fork = "\n".join((FILES / "fourteen_columns.tsv").read_text().splitlines()[1:])
    assert len(read(written(tmp_path, fork + "\n")).rows) == 40


def test_a_torn_last_line_is_set_aside_with_its_number(tmp_path: Path) -> None:
    found = read(written(tmp_path, NIGHT + "c3d4e5f\t0.99"))
    assert len(found.rows) == 2
    assert str(found.problems[0]) == "line 4: torn: the file ends inside it, after 2 of 5 cells"
    whole = read(written(tmp_path, NIGHT.rstrip("\n")))
    assert len(whole.rows) == 2 and not whole.problems and "no line end" in whole.notes[0]


@pytest.mark.parametrize(
    ("cells", "column", "text"),
    [
        ("c\tabc\t1\tdiscard\tx", "2 (val_bpb)", "'abc' is not a number"),
        ("c\t0,9971\t1\tdiscard\tx", "2 (val_bpb)", "a decimal comma?"),
        ("c\t\t1\tkeep\tx", "2 (val_bpb)", "a keep without a score"),
        ("c\tnan\t1\tdiscard\tx", "2 (val_bpb)", "a discard without a score"),
        ("c\t0.000000\t0.0\tdiscard\tx", "2 (val_bpb)", "is no val_bpb"),
        ("c\t0.99\t1\tperhaps\tx", "4 (status)", "'perhaps' is no status"),
        ("c\t0.99", "4 (status)", "there is no status (2 cells, 5 columns)"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_by_line_and_column(
    tmp_path: Path, cells: str, column: str, text: str
) -> None:
    found = read(written(tmp_path, NIGHT + cells + "\n"))
    (problem,) = found.problems
    assert problem.line == 4 and problem.column == column and text in problem.text
    assert all(row.score is None for row in found.rows[2:]), "nothing is invented"


def test_statuses_spelled_otherwise_and_oddities_of_real_files(tmp_path: Path) -> None:
    content = (
        "\ufeffCommit\tVal BPB\tPeak VRAM MB\tStatus\tDescription\tmood\r\n"
        "a1\t1.0\t2048\tKEPT\tbaseline\tfine\r\n"
        "\r\n"
        "# a thought\r\n"
        'b2\t0.99\t2048\treverted\t"said ""no"""\t\r\n'
        "c3\t0.000\t0\tCrash (OOM)\tdeeper\t\r\n"
        "Commit\tVal BPB\tPeak VRAM MB\tStatus\tDescription\tmood\r\n"
        "d4\t1.2\t1024\taccepted\tBaseline again\t\r\n"
    )
    found = read(written(tmp_path, content))
    assert [row.status for row in found.rows] == ["keep", "discard", "crash", "keep"]
    assert [row.session for row in found.rows] == [0, 0, 0, 1] and [r.baseline for r in found.rows] == [1, 0, 0, 1]
    assert found.rows[0].memory_gb == 2.0 and found.rows[1].description == 'said "no"' and found.foreign == ["mood"]
    assert "line 7 repeats the header" in found.notes[0]


def test_a_tab_in_the_last_column_is_text_and_commas_separate_too(tmp_path: Path) -> None:
    found = read(written(tmp_path, NIGHT + "c3\t0.99\t1\tdiscard\ta\tb\n"))
    assert found.rows[2].description == "a b" and "1 more cell than" in found.notes[0]
    commas = HEADER.replace("\t", ",") + 'a1,0.99,44,keep,"deeper, wider"\n'
    assert read(written(tmp_path, commas)).rows[0].description == "deeper, wider"


def test_another_metric_is_named(tmp_path: Path) -> None:
    content = "run\taccuracy\toutcome\n1\t0.7\tbaseline\n2\t0.8\tkeep\n"
    with pytest.raises(Refused, match=r"line 1: no column is called val_bpb.*run, accuracy, outcome.*--metric"):
        read(written(tmp_path, content))
    found = read(written(tmp_path, content), metric="Accuracy")
    assert rejudge(found, noise=0.001, direction="higher").calls == {"beyond noise": 1}


@pytest.mark.parametrize(
    ("content", "what"),
    [("", "is empty"), (HEADER, "holds no row"), ("1\t2\t3\n", "no header"), ("hello world\n", "no column is called"),
     ("commit\tval_bpb\tnote\n", "no column is called status")],
)  # fmt: skip
def test_what_is_no_results_file_is_refused(tmp_path: Path, content: str, what: str) -> None:
    with pytest.raises(LabError, match=what):
        read(written(tmp_path, content))
    with pytest.raises(NotFound):
        read(tmp_path / "no-such-file.tsv")


def test_this_labs_own_file_is_not_taken_for_single_runs(tmp_path: Path) -> None:
    record = next(record for record in night(20) if record.verdict == "keep")
    content = "\t".join(COLUMNS) + "\n" + row(record) + "\n"
    with pytest.raises(Refused, match=r"means of several runs.*verdict, effect, low"):
        read(written(tmp_path, content))


def test_a_baseline_that_is_not_called_one_is_noted(tmp_path: Path) -> None:
    found = read(written(tmp_path, NIGHT.replace("baseline", "as it was")))
    assert found.rows[0].baseline and found.notes == [
        "line 2 is taken as the baseline, what the others start from: it has the first score, though nothing in it "
        "says baseline"
    ]


@pytest.mark.parametrize("commit", ["-", "n/a", "None", "0000000", "0" * 40, "", "unknown"])
def test_what_stands_in_place_of_a_commit_is_no_repeat_of_it(tmp_path: Path, commit: str) -> None:
    lines = [f"{commit}\t{1 + 0.1 * n}\t1\tdiscard\tchange {n}" for n in range(5)]
    night = rejudge(read(written(tmp_path, NIGHT + "\n".join(lines) + "\n")))
    assert night.noise is None, "five different changes say nothing of the noise of one"


def test_quotes_that_do_not_match_are_refused_with_their_line(tmp_path: Path) -> None:
    head, rows = HEADER.replace("\t", ","), [f"c{n},0.9{n},44,discard,change {n}" for n in range(5)]
    rows[2] = 'c2,0.92,44,discard,"change 2'
    with pytest.raises(Refused, match=r"results.tsv line 4: the row that begins here cannot be read"):
        read(written(tmp_path, head + "\n".join(rows) + "\n"))
    rows[2] = 'c2,0.92,44,discard,"change ""2"" of'
    rows[3] = 'two lines"'
    found = read(written(tmp_path, head + "\n".join(rows) + "\n"))
    assert len(found.rows) == 4 and found.rows[2].description == 'change "2" of\ntwo lines'
    assert "lines 4 to 5 are one row: 2 lines within quotes" in found.notes


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    draw = random.Random(3)
    night = (FILES / "night.tsv").read_bytes()
    for _ in range(150):
        damaged = bytearray(night)
        for _ in range(draw.randrange(1, 30)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            rejudge(read(written(tmp_path, bytes(damaged[: draw.randrange(len(damaged))]))))
        except LabError as error:
            assert str(error)


# -- judging ----------------------------------------------------------------------------------------------------------


def simulated(seed: int, *, sd: float = 1.0, tries: int = 80, gain: float = 0.0) -> Imported:
    """A night of keep-if-lower; the tenth change gains `gain`, the others do nothing."""
    draw = random.Random(seed)
    level, best, rows = 100.0, float("inf"), list[Row]()
    for i in range(tries + 1):
        truth = level - (gain if i == 10 else 0.0)
        score = draw.gauss(truth, sd)
        keep = score < best
        if keep:
            best, level = score, truth
        rows.append(
            Row(line=i + 2, session=0, commit=f"c{i}", score=score, memory_gb=None, description="",
                status="keep" if keep else "discard", baseline=i == 0)
        )  # fmt: skip
    return Imported(name="night.tsv", metric="m", columns={}, foreign=[], rows=rows, problems=[], notes=[])


def test_a_night_in_which_nothing_works_is_seen_through() -> None:
    nights = [rejudge(simulated(seed)) for seed in range(300)]
    kept = sum(len(night.keeps) for night in nights) / len(nights)
    assert kept == pytest.approx(nights[0].lucky_keeps, abs=0.35), "keep-if-lower keeps luck, as foretold"
    false = sum(bool(night.would_keep) for night in nights)
    assert false <= 300 * 0.05 + 3 * (300 * 0.05 * 0.95) ** 0.5
    sds = sorted(night.noise.sd for night in nights if night.noise)
    assert 0.9 < sds[len(sds) // 2] < 1.1
    assert sum(night.noise.low <= 1 <= night.noise.high for night in nights if night.noise) > 0.8 * 300


def test_a_file_of_ten_thousand_discards_is_judged_from_neighbours() -> None:
    pieces = _pieces(range(10_000))
    assert [each for piece in pieces for each in piece] == list(range(10_000))
    assert sum(math.comb(len(piece), 2) for piece in pieces) <= MOST_PAIRS
    assert _pieces(range(LONGEST_STRETCH)) == [range(LONGEST_STRETCH)] and _pieces([]) == []
    night = rejudge(simulated(1, tries=10_000))
    assert night.noise and night.noise.sd == pytest.approx(1.0, rel=0.05)


def test_a_true_gain_is_kept_and_found_beyond_noise() -> None:
    nights = [rejudge(simulated(seed, gain=12.0)) for seed in range(200)]
    found = sum(12 in [kept.line for kept in night.would_keep] for night in nights)
    assert found >= 0.95 * len(nights)
    lows = [night.best_gain_low or 0.0 for night in nights]
    assert sum(low < 12 for low in lows) >= 0.93 * len(nights), "the best was picked: its limit allows for that"
    assert sum(low > 0 for low in lows) >= 0.95 * len(nights)


def test_repeated_commits_tell_the_noise_best(tmp_path: Path) -> None:
    lines = [f"base\t{score}\t1\tdiscard\tagain" for score in (1.001, 0.999, 1.002, 0.998)]
    found = read(written(tmp_path, HEADER + "base\t1.0\t1\tkeep\tbaseline\n" + "\n".join(lines) + "\n"))
    night = rejudge(found)
    assert night.noise and night.noise.source == "repeats" and night.noise.df == 4
    assert night.noise.sd == pytest.approx(0.00158, abs=1e-5) and night.noise.low < night.noise.sd < night.noise.high


def test_without_any_measure_of_noise_nothing_is_judged(tmp_path: Path) -> None:
    night = rejudge(read(written(tmp_path, NIGHT)))
    assert night.noise is None and night.threshold is None and not night.would_keep
    assert [kept.call for kept in night.keeps] == [None]
    assert any("--noise" in line for line in night.statements)
    given = rejudge(read(written(tmp_path, NIGHT)), noise=0.0005)
    assert [kept.call for kept in given.keeps] == ["beyond noise"]


@pytest.mark.parametrize(("noise", "budget"), [(0.0, 0.05), (-1.0, 0.05), (float("nan"), 0.05), (1.0, 0.0), (1.0, 0.9)])
def test_impossible_wishes_are_refused(noise: float, budget: float) -> None:
    with pytest.raises(Refused):
        rejudge(simulated(1), noise=noise, error_budget=budget)


def test_what_is_said_uses_one_run_for_one() -> None:
    words = " ".join(rejudge(read(FILES / "night.tsv")).statements)
    for wrong in ("1 keeps", "1 changes", "1 sessions", "1 crashes", "1 are"):
        assert wrong not in words
