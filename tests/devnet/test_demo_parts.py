"""The demo's parts: its board, view, plot and configurations."""

import io
import math

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from hypha_devnet.config import DataConfig, SchedulerConfig, load
from hypha_devnet.demo.board import PHASES, Board
from hypha_devnet.demo.inference import inference_job, next_token_loss, score_predictions
from hypha_devnet.demo.models import DIGITS, LANGUAGE, MODELS
from hypha_devnet.demo.plot import plot, smoothed
from hypha_devnet.demo.run import Result
from hypha_devnet.demo.settings import (
    NEEDED,
    NODES,
    SHOWN,
    TRAINERS,
    WORKERS,
    Files,
    job_config,
    node_config,
    worker_config,
    write_config,
)
from hypha_devnet.demo.view import PlainView, draw, sparks
from hypha_worker.config_file import load as load_worker

GATEWAY = "/ip4/127.0.0.1/tcp/4001"


@pytest.fixture
def board():
    board = Board(began=1000.0)
    board.peers = {f"12D3{name}": name for name in NODES}
    return board


def scheduler(board, event, worker="trainer-1", **values):
    board.take("scheduler", {"event": event, "peer": f"12D3{worker}", **values})


def test_a_worker_is_followed_from_its_offer_to_its_losses(board):
    scheduler(board, "offer", price=100.0)
    assert board.workers["trainer-1"].state == "offers"
    scheduler(board, "lease", role="trainer", expires=1010.0)
    scheduler(board, "lease", role="trainer", expires=1017.0)
    scheduler(board, "dispatched", role="trainer")
    for samples, loss in ((64, 2.0), (32, 1.5)):
        scheduler(board, "batch", samples=samples)
        scheduler(board, "metrics", metrics={"loss": loss, "samples": samples})
    worker = board.workers["trainer-1"]
    assert (worker.offer, worker.lease_until, worker.renewals) == (100.0, 1017.0, 1)
    assert worker.losses == [(64, 2.0), (96, 1.5)]
    assert (worker.state, worker.batches) == ("trains", 2)
    scheduler(board, "lease_lost")
    assert worker.lease_until is None


def test_a_round_is_shown_with_its_last_losses(board):
    scheduler(board, "metrics", metrics={"loss": 0.5})
    board.take("scheduler", {"event": "round", "round": 3, "of": 20, "seconds": 1.25})
    assert board.rounds == [1.25]
    assert board.recent[-1] == "round 3 of 20 in 1.2 s; loss: trainer-1 0.500"


def test_unknown_events_do_not_change_the_board(board):
    before = repr(board)
    board.take("gateway", {"event": "listening", "addresses": []})
    board.take("scheduler", {"event": "take"})
    assert repr(board) == before


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("phase", PHASES)
def test_the_board_fits_the_terminal(board, width, phase):
    board.phase, board.page = phase, "http://127.0.0.1:65535/"
    for worker in WORKERS:
        scheduler(board, "offer", worker, price=100.0)
        scheduler(board, "lease", worker, role="trainer", expires=1012.0)
        scheduler(board, "batch", worker, samples=640)
        for _ in range(100):
            scheduler(board, "metrics", worker, metrics={"loss": 0.1234, "samples": 32})
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(draw(board, 1002.5))
    text = console.file.getvalue()
    for shown in (*WORKERS, "9.5 s", "0.1234", f"round 1 of {DIGITS.rounds}", "640 of 1280 samples", board.page):
        assert shown in text
    assert "…" not in text


def test_after_the_last_round_the_board_says_that_all_are_done(board):
    for worker in WORKERS:
        scheduler(board, "offer", worker, price=100.0)
        scheduler(board, "lease", worker, role="trainer", expires=1012.0)
    board.rounds = [1.0] * DIGITS.rounds
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(draw(board, 1020.0))
    text = console.file.getvalue()
    assert f"round {DIGITS.rounds} of {DIGITS.rounds}" in text
    assert ("all done" in text, "samples" in text, text.count("over")) == (True, False, len(WORKERS))


def test_without_a_terminal_each_line_is_printed_once(board):
    output = io.StringIO()
    view = PlainView(Console(file=output, width=80))
    for number in range(30):
        board.add_line(f"note {number}.")
        if number % 4 == 0:
            view.show(board)
    view.show(board)
    view.show(board)
    lines = [line.split("  ")[-1] for line in output.getvalue().splitlines()]
    assert lines == ["== certificates", *(f"note {number}." for number in range(30))]


def test_sparks_are_tallest_where_the_numbers_are():
    assert sparks([8, 4, 1]) == "█▄▁"
    assert sparks([]) == ""
    assert sparks([0.0, 0.0]) == "  "
    assert len(sparks(range(1000))) <= 12


def test_smoothing_uses_the_neighbours_that_exist():
    assert smoothed([1, 1, 1, 10]) == [1, 3.25, 3.25, 4]
    assert smoothed([]) == []


def test_the_plot_is_drawn(board, tmp_path):
    for trainer in TRAINERS:
        for number in range(50):
            scheduler(board, "metrics", trainer, metrics={"loss": 2 / (number + 1), "samples": 32})
    board.alone = [(number * 320, 2 / number) for number in range(1, 40)]
    plot(board, 0.98, 0.975, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("network", "alone", "good"),
    [(0.97, 0.975, True), (0.99, 0.95, True), (0.95, 0.95, False), (0.96, 0.99, False), (0.951, 0.96, True)],
)
def test_the_verdict_requires_both_accuracy_and_closeness(network, alone, good):
    assert DIGITS.score.verdict(network, alone, baseline=0.1).good == good


@pytest.mark.parametrize(
    ("network", "alone", "good"),
    [(1.8, 1.8, True), (1.8, 1.9, True), (2.05, 1.8, True), (2.1, 1.8, False), (2.2, 2.2, False)],
)
def test_the_verdict_on_a_language_model_requires_a_low_perplexity_and_closeness(network, alone, good):
    assert LANGUAGE.score.verdict(network, alone, baseline=3.24).good == good


def test_an_inference_job_that_predicts_otherwise_than_one_process_is_noticed():
    assert Result(0.975, 0.975 + 1e-8, 0.97, 0.1, "").same
    assert not Result(0.975, 0.9722, 0.97, 0.1, "").same  # one digit of 360


def test_predictions_are_joined_with_their_slices_by_index(tmp_path):
    files = Files(tmp_path)
    files.held_out.mkdir(parents=True)
    files.predictions.mkdir()
    for index, labels in enumerate(([3, 1], [2])):
        slice_ = {"labels": np.array(labels), "pixel_values": np.zeros((len(labels), 1), np.float32)}
        save_file(slice_, files.held_out / f"slice-{index:04}.safetensors")
        logits = np.eye(10, dtype=np.float32)[labels]
        save_file({"logits": logits if index else logits[::-1].copy()}, files.predictions / f"{index}.safetensors")
    assert score_predictions(files) == pytest.approx(1 / 3)


def test_the_loss_of_a_language_model_is_that_of_each_next_token():
    logits = np.log(np.array([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]]))
    assert next_token_loss(logits, np.array([[0, 1, 1]])) == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_nodes_understand_their_configurations(tmp_path, model):
    files = Files(tmp_path, model)
    data = {**node_config(files, "data", GATEWAY), "dataset_path": str(files.dataset)}
    assert load(DataConfig, write_config(files, "data", data)).datasets == (files.dataset,)
    inference = {"scheduler": {"job": inference_job(files, "a/b", NEEDED)}}
    loaded = load(SchedulerConfig, write_config(files, "inference", node_config(files, "x", GATEWAY) | inference))
    assert loaded.scheduler.job.results.directory == files.predictions
    assert loaded.scheduler.job.model.input_names == model.input_names[:-1]
    assert (loaded.scheduler.job.preprocessor is not None) == model.tokenized
    job = {**node_config(files, "scheduler", GATEWAY), "scheduler": {"job": job_config(model)}}
    loaded = load(SchedulerConfig, write_config(files, "scheduler", job)).scheduler.job
    assert loaded.rounds.update_rounds == model.rounds
    assert loaded.schedule.training_steps == model.steps(2 * model.batch_size)
    for worker in WORKERS:
        path = write_config(files, worker, worker_config(files, worker, GATEWAY, tmp_path / "work"))
        assert load_worker(path, {}, {}).config.gateway_addresses == [GATEWAY]
    shown = worker_config(files, SHOWN, GATEWAY, tmp_path / "work", "127.0.0.1:8081")
    assert load_worker(write_config(files, SHOWN, shown), {}, {}).config.status_page.listen == "127.0.0.1:8081"


def test_text_of_others_on_the_board_is_escaped(board):
    board.take("scheduler", {"event": "failed", "reason": "\x1b[2J\u202eit\nended"})
    assert board.recent[-1] == r"the job failed: \x1b[2J\u202eit\nended"
