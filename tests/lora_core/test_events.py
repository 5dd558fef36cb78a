import pytest
from lora_loom.lora_core.events import Control, Listener, Listeners


def test_listeners_pass_every_event_of_the_contract_on_in_order():
    calls = []

    def recorder(label):
        methods = {
            n: (lambda self, *a, n=n: calls.append((label, n, a))) for n in vars(Listener) if n.startswith("on_")
        }
        return type("Recorder", (Listener,), methods)()

    both = Listeners([recorder("first"), recorder("second")])
    events = {
        "on_start": (0, 5, {}),
        "on_step": (1,),
        "on_validation": (2, 1),
        "on_sample": (1, [], "p"),
        "on_save": (1, "p"),
    }
    events |= {
        "on_progress": ("progress.captions", 1, 2),
        "on_warning": ("w",),
        "on_note": ("n",),
        "on_result": (1, ["p"]),
        "on_end": ("finished", 5),
    }
    assert events.keys() == {n for n in vars(Listener) if n.startswith("on_")}
    for name, arguments in events.items():
        getattr(both, name)(*arguments)
        assert calls[-2:] == [("first", name, arguments), ("second", name, arguments)]


def test_an_error_of_a_listener_reaches_the_run():
    class Fails(Listener):
        def on_step(self, report):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Listeners([Fails()]).on_step(None)


def test_stop_is_asked_for_once_and_stays():
    control = Control()
    assert not control.stopping
    control.stop_and_keep()
    assert control.stopping


def test_pausing_ends_a_run_too_and_a_stop_asked_for_as_well_wins():
    control = Control()
    control.pause()
    assert control.stopping
    assert control.pausing
    control.stop_and_keep()
    assert control.stopping
    assert not control.pausing


def test_a_save_or_a_sample_that_was_asked_for_is_taken_once():
    control = Control()
    control.save_now()
    control.save_now()
    assert not control.take_sample()
    assert control.take_save()
    assert not control.take_save()
    control.sample_now()
    assert control.take_sample()
    assert not control.take_sample()
