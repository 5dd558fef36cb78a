import random

import pytest
from lora_loom.lora_core.events import Measure
from lora_loom.lora_core.training.advice import advice
from lora_loom.lora_core.training.validation import History


def history(*pairs):
    return History([Measure(25 * n, held, trained) for n, (held, trained) in enumerate(pairs)])


@pytest.mark.parametrize(("course", "word"), [
    (history((1.0, 1.0), (0.5, 0.5), (0.6, 0.4), (0.8, 0.2)), "Overtrained: best on validation pictures after step 25, 60 % worse at the end"),
    (history((1.0, 1.0), (1.1, 0.9), (1.2, 0.8), (1.3, 0.7)), "never fell below that of the untrained model"),
    (history((1.0, 1.0), (0.995, 1.0), (0.99, 1.0), (0.985, 0.99)), "has hardly changed: raise the learning rate"),
])  # fmt: skip
def test_the_course_on_held_out_pictures_is_put_into_words(course, word):
    (said,) = advice([1.0] * 100, course)
    assert word in str(said)


def test_a_good_course_needs_no_words():
    assert advice([1.0] * 100, history((1.0, 1.0), (0.7, 0.7), (0.5, 0.5), (0.45, 0.4))) == []
    assert advice([1.0] * 100, History()) == []


def test_without_probes_only_a_loss_that_rises_clearly_is_said():
    assert "The loss has risen" in str(advice([1.0] * 50 + [2.0] * 50, History())[0])
    assert advice([1.0] * 50 + [1.2] * 50, History()) == []
    assert advice([1.0, 2.0, 3.0], History()) == []


def drawn(count, spread=0.3, level=lambda n: 1.0, grow=lambda n: 1.0):
    rng = random.Random(0)
    return [level(n) + spread * grow(n) * rng.gauss(0, 1) for n in range(count)]


def test_a_loss_that_swings_is_told_and_one_that_scatters_as_noise_levels_do_is_not():
    word = "The loss goes up and down"
    swinging = drawn(400, 0.1, level=lambda n: 1.0 + 0.5 * (-1) ** (n // 40))
    assert word in str(advice(swinging, History())[0])
    assert word in str(advice(drawn(400, grow=lambda n: 1 + n / 30), History())[0])
    for seedless in (drawn(400), drawn(400, level=lambda n: 2.0 - n / 400), drawn(60), [1.0] * 400):
        assert advice(seedless, History()) == []


def test_a_trigger_the_text_encoder_knows_as_a_word_is_told(toy_config, run_toy, tmp_path):
    from lora_loom.lora_core.events import Listener

    class Heard(Listener):
        def __init__(self):
            self.messages = []

        def on_warning(self, message):
            self.messages.append(str(message))

    for trigger, told in (("circle", True), ("qwxz7", False)):
        heard = Heard()
        run_toy(toy_config(steps=1, data={"trigger": trigger}), tmp_path / trigger, heard)
        assert any("is one word to the text encoder" in m for m in heard.messages) == told
