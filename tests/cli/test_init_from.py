"""`tda train --init-from`: weights of another run, a longer context, and nothing else that could differ unnoticed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program import PROGRAM, assert_refused, sign_checkpoint
from safetensors.torch import load_file

LONGER = ("--model.context", "256", "--model.rope_scaling", "4", "--train.tokens_per_step", "1024")
TIMINGS = {"seconds", "tokens_per_second", "model_flops_utilization"}


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def recipe_of(run: Path) -> Path:
    return run.parent / f"{run.name}.toml"


@pytest.fixture(scope="module", params=["softmax", "tda"])
def source(request: pytest.FixtureRequest, small_runs) -> Path:
    """A model trained on windows of 64."""
    return getattr(small_runs, request.param)


@pytest.fixture(scope="module")
def extended(source: Path, run_tda, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("extended") / "run"
    done = run_tda("train", recipe_of(source), "--init-from", source, "--output", output, *LONGER)
    step = source / "checkpoints" / "step-000006"
    assert f"starting from the weights of {step}\n" in done.stderr
    assert "model.context changes from 64 to 256\n" in done.stderr
    assert "model.rope_scaling changes from 1.0 to 4.0\n" in done.stderr
    return output


def test_it_begins_with_the_weights_and_nothing_else(source: Path, run_tda, tmp_path: Path) -> None:
    """Without a change the first validation is the last one of the source; schedule, step and moments begin anew."""
    output = tmp_path / "run"
    run_tda("train", recipe_of(source), "--init-from", source, "--output", output, "--train.stop_after", "3")
    lines = metrics(output)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["val_loss"] == metrics(source)[-1]["val_loss"]
    assert [line["learning_rate"] for line in lines[1:]] == [line["learning_rate"] for line in metrics(source)[1:4]]
    state = json.loads((output / "checkpoints" / "step-000003" / "state.json").read_text())
    assert state["start_weights"] == str(source / "checkpoints" / "step-000006")
    random_start = json.loads((source / "checkpoints" / "step-000006" / "state.json").read_text())
    assert random_start["start_weights"] == ""
    # Moments begun anew: all there is in the second one is (1 - beta2) g^2 of three steps.
    moments = load_file(output / "checkpoints" / "step-000003" / "optimizer.safetensors")
    clipped = (1 - 0.95) * (1 + 0.95 + 0.95**2)  # of a gradient of norm 1
    total = sum(tensor.sum().item() for name, tensor in moments.items() if name.startswith("second_moment."))
    assert 0 < total <= clipped * 1.001


def test_a_step_folder_is_as_good_as_a_run(source: Path, run_tda, tmp_path: Path) -> None:
    step = source / "checkpoints" / "step-000003"
    run_tda("train", recipe_of(source), "--init-from", step, "--output", tmp_path / "run", "--train.stop_after", "1")
    assert metrics(tmp_path / "run")[0]["val_loss"] == metrics(source)[3]["val_loss"]


def test_the_result_holds_its_scaling(extended: Path, source: Path) -> None:
    step = extended / "checkpoints" / "step-000006"
    config = json.loads((step / "config.json").read_text())
    assert config["max_position_embeddings"] == 256
    assert config["rope_scaling"] == {"rope_type": "ntk-aware", "factor": 4.0}
    assert json.loads((source / "checkpoints" / "step-000006" / "config.json").read_text())["rope_scaling"] is None
    assert "rope_scaling = 4.0" in (step / "recipe.toml").read_text()


def test_all_commands_see_the_longer_model(
    extended: Path, small_runs, run_tda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """score, generate, analyze and the exported model agree, at positions that the source never saw."""
    pytest.importorskip("transformers", reason="pip install -r requirements.txt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import transformers  # noqa: PLC0415

    run_tda("export", extended, "--to", "huggingface", tmp_path / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True).eval()
    assert model.config.rope_ntk_factor == 4.0
    assert model.config.max_position_embeddings == 256

    text = small_runs.text.read_bytes()[:256]
    (tmp_path / "text.txt").write_bytes(text)
    run_tda("score", extended, "--input", tmp_path / "text.txt", "--output", tmp_path / "tokens.jsonl")
    ours = [json.loads(line)["logprob"] for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    ids = torch.tensor([[256, *text]])
    with torch.no_grad():
        logprobs = model(ids[:, :-1]).logits.double().log_softmax(-1)[0]
    theirs = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert len(ours) == 256  # one window
    assert ours == pytest.approx(theirs, abs=2e-4)

    prompt = text[:150].decode()
    written = run_tda("generate", extended, "--prompt", prompt, "--temperature", "0", "--max-tokens", "80").stdout
    start = torch.tensor([[256, *prompt.encode()]])
    tokens = model.generate(start, max_new_tokens=80, do_sample=False)[0, start.shape[1] :].tolist()
    assert written.encode() == bytes(token for token in tokens if token < 256)

    run_tda("analyze", extended, "--text", tmp_path / "text.txt", "--output", tmp_path / "page")
    (described,) = json.loads((tmp_path / "page" / "analysis.json").read_text())["runs"]
    assert described["config"]["rope_scaling"]["factor"] == 4.0


def test_scaling_matters_where_the_source_never_was(source: Path, extended: Path, run_tda, tmp_path: Path) -> None:
    """The first validation of the extended run is that of another function than the source's on the same windows."""
    plain = (*LONGER[:2], *LONGER[4:], "--train.stop_after", "1")
    run_tda("train", recipe_of(source), "--init-from", source, "--output", tmp_path / "plain", *plain)
    unscaled, scaled = metrics(tmp_path / "plain")[0]["val_loss"], metrics(extended)[0]["val_loss"]
    assert math.isfinite(scaled)
    assert unscaled != scaled


def test_resuming_wins_where_there_is_a_checkpoint(source: Path, extended: Path, run_tda, tmp_path: Path) -> None:
    """One command, repeated until the run is done, leaves the run that was never stopped; the source may be gone."""
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    output = tmp_path / "run"
    command = ("train", recipe_of(source), "--init-from", moved, "--resume", "--output", output, *LONGER)
    first = run_tda(*command, "--train.stop_after", "2")
    assert "starting from the weights" in first.stderr
    shutil.rmtree(moved)
    second = run_tda(*command)
    assert "resuming from" in second.stderr
    assert "starting from the weights" not in second.stderr
    assert metrics(output) == metrics(extended)
    for name in ("model.safetensors", "optimizer.safetensors", "config.json"):
        path = Path("checkpoints") / "step-000006" / name
        assert (output / path).read_bytes() == (extended / path).read_bytes(), name
    assert json.loads((output / "checkpoints" / "step-000006" / "state.json").read_text())["start_weights"] == str(
        moved / "checkpoints" / "step-000006"
    )


def test_under_torchrun(source: Path, extended: Path, tmp_path: Path) -> None:
    """Two processes start from the same weights; what cannot work is one error line of both."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")

    def torchrun(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = ("train", recipe_of(source), "--init-from", source, "--output", output, *options)
        command = [sys.executable, *map(str, (*launcher, PROGRAM, *arguments))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)

    done = torchrun(tmp_path / "run", *LONGER)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting from the weights of") == 1
    lines, expected = metrics(tmp_path / "run"), metrics(extended)
    assert lines[0]["val_loss"] == pytest.approx(expected[0]["val_loss"], abs=1e-6)
    assert lines[1]["train_loss"] == pytest.approx(expected[1]["train_loss"], abs=1e-5)

    refused = torchrun(tmp_path / "refused", "--model.width", "64")
    assert refused.returncode != 0
    assert refused.stderr.count("error: ") == 1, refused.stderr
    assert "model.width is 32 there and 64 here" in refused.stderr
    assert not (tmp_path / "refused").exists()


def test_a_signal_before_the_first_checkpoint_leaves_one_to_resume(source: Path, run_tda, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = ("train", recipe_of(source), "--init-from", source, "--output", output, "--train.steps", "100000")
    process = subprocess.Popen([PROGRAM, *map(str, arguments), "--checkpoint.every", "0"], stderr=subprocess.DEVNULL)
    while not (output / "metrics.jsonl").exists() or len(metrics_bytes(output)) < 600:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    run_tda(*arguments, "--resume", "--train.stop_after", "1")


def metrics_bytes(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


def test_what_does_not_fit_is_refused_and_nothing_is_written(small_runs, tda, run_tda, tmp_path: Path) -> None:
    output = tmp_path / "run"

    def refused(*options: object, source: object = small_runs.tda, parts: tuple[str, ...]) -> None:
        done = tda("train", recipe_of(small_runs.tda), "--init-from", source, "--output", output, *options)
        assert_refused(done, *parts, "HINT: ")
        assert not output.exists()

    refused(
        source=small_runs.softmax,
        parts=('model.mechanism is "softmax" there and "tda" here', 'pass --model.mechanism "softmax"'),
    )
    refused("--model.layers", "3", parts=("model.layers is 2 there and 3 here",))
    refused("--model.heads", "4", parts=("model.heads is 2 there and 4 here",))
    refused("--model.width", "64", parts=("model.width is 32 there and 64 here",))
    refused("--model.vocabulary", "384", parts=("model.vocabulary is 320 there and 384 here",))
    refused("--model.view_heads", "halved", parts=('model.view_heads is "full" there and "halved" here',))
    refused("--model.power", "1", parts=("model.power is 2.0 there and 1.0 here",))
    refused("--model.rope_theta", "5000", parts=("model.rope_theta is 10000.0 there and 5000.0 here",))
    refused(source=tmp_path / "absent", parts=(f"checkpoint {tmp_path / 'absent'} does not exist",))
    refused(source="", parts=("checkpoint  does not exist",))

    damaged = tmp_path / "damaged"
    shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", damaged)
    weights = damaged / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    refused(source=damaged, parts=(f"checkpoint {damaged} is damaged: model.safetensors",))
    weights.write_bytes(content)
    # Another tokenizer, of which only the name is looked at here: its ranks are missing.
    description = json.loads((damaged / "tokenizer.json").read_text())
    (damaged / "tokenizer.json").write_text(json.dumps({**description, "type": "gpt2"}))
    sign_checkpoint(damaged)
    refused(source=damaged, parts=("gpt2.tiktoken",))

    # Options that the mechanism does not read are no mismatch, and start values are replaced by the weights.
    options = ("--model.lssar_power", "3", "--model.beta", "0.9", "--model.learn_lambda", "false")
    run_tda(
        *("train", recipe_of(small_runs.tda), "--init-from", small_runs.tda, "--output", output),
        *("--train.stop_after", "1", *options),
    )
    assert metrics(output)[0]["val_loss"] == metrics(small_runs.tda)[-1]["val_loss"]


def test_another_tokenizer_is_refused(small_runs, tda, run_tda, real_data: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    run_tda(*words, "--input", small_runs.text, "--output", tmp_path / "data")
    options = ("--data.path", tmp_path / "data", "--model.vocabulary", "0", "--output", tmp_path / "run")
    done = tda("train", recipe_of(small_runs.tda), "--init-from", small_runs.tda, *options)
    assert_refused(done, "its model was trained with the tokenizer byte, the dataset is of gpt2", "HINT: ")
    assert not (tmp_path / "run").exists()
