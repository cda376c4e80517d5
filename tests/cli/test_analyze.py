"""`tda analyze`: its numbers against independent computations, its files, and what it refuses."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import assert_refused
from safetensors.numpy import load_file

LAYER = 1
VIEWS = ("effective", "view 1", "view 2")


@pytest.fixture(scope="module")
def analysis(small_runs, run_tda, tmp_path_factory) -> tuple[dict[str, Any], Path, str]:
    output = tmp_path_factory.mktemp("analysis")
    done = run_tda(
        *(
            "analyze",
            small_runs.softmax,
            small_runs.tda,
            "--text",
            small_runs.text,
            "--output",
            output,
        ),
        *("--windows", "4", "--dump-qkv", LAYER),
    )
    return json.loads((output / "analysis.json").read_text()), output, done.stdout


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def threshold_map(q: np.ndarray, k: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Equation of TRA with kappa = 1, p = 2, in float64; (B, H, T, T)."""
    length, width = q.shape[-2:]
    tau = beta[:, None] * np.sqrt(2 * np.log(np.arange(1, length + 1)) / width)
    scores = unit(q) @ unit(k).swapaxes(-1, -2)
    return np.tril(np.maximum(scores - tau[None, :, :, None], 0) ** 2)


def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
    """The definitions of docs/analysis.md, row by row; results per head."""
    batch, heads, length, _ = weights.shape
    sums = dict.fromkeys(
        (
            "sparsity",
            "empty_rows",
            "survivors_per_row",
            "sink_ratio",
            "effective_entropy",
        )
    )
    sums = {name: np.zeros(heads) for name in sums}
    uniform_first = sum(1 / n for n in range(1, length + 1))
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                row = np.abs(weights[b, h, i, : i + 1])
                sums["sparsity"][h] += (row == 0).sum() / (length * (length + 1) / 2)
                sums["survivors_per_row"][h] += (row != 0).sum() / length
                if not row.any():
                    sums["empty_rows"][h] += 1 / length
                    continue
                share = row / row.sum()
                sums["sink_ratio"][h] += share[0] / uniform_first
                if i > 0:
                    entropy = -sum(p * np.log(p) for p in share if p > 0)
                    sums["effective_entropy"][h] += entropy / np.log(i + 1) / (length - 1)
    return {name: total / batch for name, total in sums.items()}


def test_statistics_of_tda_follow_from_the_dumped_heads(analysis):
    report, output, _ = analysis
    dump = {name: value.astype(np.float64) for name, value in load_file(output / "tda-layer-1-qkv.safetensors").items()}
    assert set(dump) == {"q1", "k1", "q2", "k2", "v", "beta", "lambda"}
    assert dump["q1"].shape == (4, 2, 64, 16)
    first = threshold_map(dump["q1"], dump["k1"], dump["beta"])
    second = threshold_map(dump["q2"], dump["k2"], dump["beta"])
    effective = first - np.clip(dump["lambda"], 0, 1)[None, :, None, None] * second
    for view, weights, name in zip(
        report["runs"][1]["statistics"]["views"], (effective, first, second), VIEWS, strict=True
    ):
        assert view["name"] == name
        expected = statistics(weights)
        pairs = 4 * 64 * 65 / 2
        for head in range(2):
            # fp32 and fp64 may disagree on a score that lies on the threshold: one pair in a head at most.
            assert abs(view["sparsity"][LAYER][head] - expected["sparsity"][head]) <= 1.01 / pairs
            assert abs(view["empty_rows"][LAYER][head] - expected["empty_rows"][head]) <= 1.01 / 256
            assert abs(view["survivors_per_row"][LAYER][head] - expected["survivors_per_row"][head]) <= 1.01 / 256
            assert view["sink_ratio"][LAYER][head] == pytest.approx(expected["sink_ratio"][head], abs=2e-3)
            assert view["effective_entropy"][LAYER][head] == pytest.approx(
                expected["effective_entropy"][head], abs=2e-3
            )


def test_statistics_of_softmax_follow_from_the_dumped_heads(analysis):
    report, output, _ = analysis
    dump = {n: value.astype(np.float64) for n, value in load_file(output / "softmax-layer-1-qkv.safetensors").items()}
    assert set(dump) == {"q", "k", "v"}
    scores = dump["q"] @ dump["k"].swapaxes(-1, -2) / np.sqrt(16)
    weights = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
    expected = statistics(weights / weights.sum(-1, keepdims=True))
    (view,) = report["runs"][0]["statistics"]["views"]
    for name, values in expected.items():
        np.testing.assert_allclose(view[name][LAYER], values, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(view["sparsity"]) == 0), "a softmax has no exact zeros"


def test_means_are_over_layers_and_heads(analysis):
    for run in analysis[0]["runs"]:
        for view in run["statistics"]["views"]:
            for name, value in view["mean"].items():
                assert value == pytest.approx(np.mean(view[name]), abs=1e-12)


def test_score_is_that_of_tda_score(analysis, small_runs, run_tda):
    for run, folder in zip(analysis[0]["runs"], (small_runs.softmax, small_runs.tda), strict=True):
        summary = json.loads(run_tda("score", folder, "--input", small_runs.text).stdout)
        assert run["score"]["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-9)
        assert run["score"]["tokens"] == summary["tokens"]
        assert run["score"]["bytes"] == small_runs.text.stat().st_size


def test_sample_is_that_of_tda_generate(analysis, small_runs, run_tda):
    run = analysis[0]["runs"][1]
    sample = run["sample"]
    length = 64 - 1 - len(sample["prompt"])
    text = run_tda("generate", small_runs.tda, "--prompt", sample["prompt"], "--max-tokens", length).stdout
    assert sample["text"] == text


def test_reference_is_that_of_xz(analysis, small_runs):
    text = small_runs.text.read_bytes()
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    assert analysis[0]["text"]["xz_bits_per_byte"] == 8 * len(packed) / len(text)


def test_history_repeats_the_metrics(analysis, small_runs):
    run = analysis[0]["runs"][1]
    rows = [json.loads(line) for line in (small_runs.tda / "metrics.jsonl").read_text().splitlines()]
    assert run["step"] == rows[-1]["step"] == 6
    assert run["training_seconds"] == [row["seconds"] for row in rows if "seconds" in row][-1]
    nats_to_bits = run["score"]["tokens"] / run["score"]["bytes"] / np.log(2)
    for row in rows:
        (entry,) = [entry for entry in run["history"] if entry["step"] == row["step"]]
        for ours, theirs in (
            ("train_bits_per_byte", "train_loss"),
            ("val_bits_per_byte", "val_loss"),
        ):
            assert (ours in entry) == (theirs in row)
            if theirs in row:
                assert entry[ours] == pytest.approx(row[theirs] * nats_to_bits, rel=1e-12)
        if "sparsity" in row:
            assert entry["sparsity"] == pytest.approx(np.mean(row["sparsity"]), abs=1e-12)
            assert entry["empty_rows"] == pytest.approx(np.mean(row["empty_rows"]), abs=1e-12)


def test_sentence_maps_are_causal_and_signed(analysis):
    softmax, tda = analysis[0]["runs"]
    assert "".join(softmax["sentence"]["tokens"]) == softmax["sentence"]["text"]
    for layer in softmax["sentence"]["views"][0]["maps"]:
        for head in layer:
            assert [len(row) for row in head] == list(range(1, len(head) + 1))
            for row in head:
                assert sum(row) == pytest.approx(1, abs=2e-3)
    assert [view["name"] for view in tda["sentence"]["views"]] == list(VIEWS)
    effective = [
        value for layer in tda["sentence"]["views"][0]["maps"] for head in layer for row in head for value in row
    ]
    assert min(effective) < 0 < max(effective)
    assert 0 in effective


def test_table_on_stdout(analysis):
    report, _, stdout = analysis
    lines = stdout.splitlines()
    header = lines[0]
    for column in (
        "parameters",
        "bits per byte",
        "exact zeros",
        "sink ratio",
        "empty rows",
        "seconds",
    ):
        assert column in header
    for line, run in zip(lines[1:3], report["runs"], strict=True):
        assert line.startswith(run["name"])
        assert f"{run['score']['bits_per_byte']:.3f}" in line
    assert lines[3].startswith("xz -9e")


def test_sentence_and_prompt_of_the_user(small_runs, run_tda, tmp_path):
    run_tda(
        *(
            "analyze",
            small_runs.tda,
            "--text",
            small_runs.text,
            "--output",
            tmp_path,
            "--windows",
            "1",
        ),
        *("--sentence", "Caf\u00e9", "--prompt", "A"),
    )
    (run,) = json.loads((tmp_path / "analysis.json").read_text())["runs"]
    assert run["sentence"]["tokens"] == ["C", "a", "f", "<C3>", "<A9>"]
    assert run["sample"]["prompt"] == "A"


def test_a_step_folder_is_analysed_up_to_its_step(small_runs, run_tda, tmp_path):
    step = small_runs.tda / "checkpoints" / "step-000003"
    run_tda(
        "analyze",
        step,
        "--text",
        small_runs.text,
        "--output",
        tmp_path,
        "--windows",
        "1",
    )
    (run,) = json.loads((tmp_path / "analysis.json").read_text())["runs"]
    assert run["step"] == 3
    assert max(entry["step"] for entry in run["history"]) == 3


def test_runs_of_one_name_are_told_apart(small_runs, run_tda, tmp_path):
    run_tda(
        "analyze",
        small_runs.tda,
        small_runs.tda,
        "--text",
        small_runs.text,
        "--output",
        tmp_path,
        "--windows",
        "1",
    )
    names = [run["name"] for run in json.loads((tmp_path / "analysis.json").read_text())["runs"]]
    assert names == ["tda (1)", "tda (2)"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--text", "{missing}"], "missing.txt"),
        (["--text", "{empty}"], "token"),
        (["--text", "{text}", "--dump-qkv", "2"], "--dump-qkv 2"),
        (["--text", "{text}", "--windows", "0"], "--windows"),
        (["--text", "{text}", "--temperature", "-1"], "temperature is -1, expected a number of at least 0"),
        ([], "--text"),
    ],
)
def test_bad_input_is_refused_in_one_line(small_runs, run_tda, tmp_path, arguments, complaint):
    (tmp_path / "empty.txt").touch()
    places = {
        "missing": tmp_path / "missing.txt",
        "empty": tmp_path / "empty.txt",
        "text": small_runs.text,
    }
    filled = [argument.format(**places) for argument in arguments]
    output = tmp_path / "output"
    done = run_tda("analyze", small_runs.tda, *filled, "--output", output, code=2)
    assert_refused(done, complaint, at_work=True)
    assert not output.exists()


def test_output_that_cannot_be_written_is_found_before_the_work(small_runs, run_tda, tmp_path):
    """One line: no model has begun to work."""
    file = tmp_path / "file"
    file.write_text("mine")
    taken = tmp_path / "taken"
    (taken / "report.html").mkdir(parents=True)
    for output, expected in (
        (file, f"cannot make the folder {file}"),
        (file / "inside", f"cannot make the folder {file / 'inside'}"),
        (taken, f"cannot write {taken / 'report.html'}: Is a directory"),
        ("/proc/analysis", "cannot make the folder /proc/analysis"),
    ):
        done = run_tda("analyze", small_runs.tda, "--text", small_runs.text, "--output", output, code=2)
        assert_refused(done, expected)
    assert file.read_text() == "mine"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "file", "taken", "taken/report.html"
    ]  # fmt: skip


def test_work_that_fails_leaves_no_folder(small_runs, run_tda, tmp_path):
    (tmp_path / "empty.txt").touch()
    arguments = ("analyze", small_runs.tda, "--text", tmp_path / "empty.txt", "--output")
    assert_refused(run_tda(*arguments, tmp_path / "new" / "output", code=2), "token", at_work=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    assert_refused(run_tda(*arguments, f"{tmp_path / 'old'}/", code=2), "token", at_work=True)
    assert list((tmp_path / "old").iterdir()) == []


@pytest.mark.parametrize("option", ["--prompt", "--sentence"])
def test_text_that_json_cannot_hold_is_refused(small_runs, run_tda, tmp_path, option):
    output = tmp_path / "output"
    bad = (option, os.fsdecode(b"The \xff\n king"), "--output", output)
    done = run_tda("analyze", small_runs.tda, "--text", small_runs.text, *bad, code=2)
    assert_refused(done, f'{option} is "The \\xFF\\x0A king", expected UTF-8')
    assert not output.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(small_runs, run_tda, tmp_path):
    output = tmp_path / "output"
    done = run_tda("analyze", tmp_path, "--text", small_runs.text, "--output", output, code=2)
    assert_refused(done, str(tmp_path), "manifest.json is missing")
    assert not output.exists()
