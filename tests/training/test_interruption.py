"""Ctrl-C and SIGTERM save the step that is being made, and the run goes on from there."""

import dataclasses
import os
import signal
import threading

import pytest
from diffad_training import train
from diffad_training.batch_losses import training_loss
from diffad_training.interruption import SIGNALS, Interruption
from tiny_training import assert_equal_models, tiny_config


class Accelerator:
    num_processes = 1


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_run_saves_its_step_and_goes_on_to_the_same_end(number, good_images, tmp_path, monkeypatch, capsys):
    calls = []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return training_loss(*args)

    config = tiny_config(good_images, tmp_path / "model", checkpointing_steps=100)
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(config)
    assert "interrupted: saved step 3 of 4; --resume_from_checkpoint latest goes on" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "model").glob("checkpoint-*")] == ["checkpoint-3"]
    train.main(dataclasses.replace(config, resume_from_checkpoint="latest"))
    train.main(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    assert_equal_models(tmp_path / "model", tmp_path / "whole")


def test_a_second_interruption_ends_at_once_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), Interruption(Accelerator) as interruption:
        assert not interruption.agreed(ask_others=False)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.agreed(ask_others=False)
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_signals_are_left_alone():
    noted = []

    def train_in_a_thread():
        with Interruption(Accelerator) as interruption:
            noted.append(interruption.agreed(ask_others=True))

    thread = threading.Thread(target=train_in_a_thread)
    thread.start()
    thread.join()
    assert noted == [False]


def test_processes_agree_only_in_the_steps_in_which_they_ask():
    class Two:
        num_processes, device = 2, "cpu"
        asked = 0

        def reduce(self, noted):
            self.asked += 1
            return noted + 1  # the other one was interrupted

    accelerator = Two()
    interruption = Interruption(accelerator)
    assert not interruption.agreed(ask_others=False) and accelerator.asked == 0
    assert interruption.agreed(ask_others=True)
