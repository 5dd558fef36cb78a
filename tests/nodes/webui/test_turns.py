"""A run and the host's new page wait for each other."""

import threading

from lora_loom.nodes.webui.turns import PageGate

SOON_S = 120


def test_the_page_is_made_anew_only_while_the_run_stands_and_the_run_goes_on_when_it_is_there():
    gate, course = PageGate(), []
    at_work, page_done = threading.Event(), threading.Event()

    def run():
        with gate.held():
            at_work.set()
            while not gate.shut:
                page_done.wait(0.01)
            course.append("between two steps")
            gate.wait()
            course.append("goes on")

    worker = threading.Thread(target=run)
    worker.start()
    assert at_work.wait(SOON_S)
    gate.shut_now()
    course.append("page is taken down")
    gate.open_again()
    worker.join(SOON_S)
    assert course == ["between two steps", "page is taken down", "goes on"]


def test_without_a_run_the_page_does_not_wait():
    gate = PageGate()
    gate.shut_now()
    assert gate.shut
    gate.open_again()
    assert not gate.shut


def test_an_interrupt_with_the_page_going_down_is_told_from_one_without(monkeypatch):
    gate = PageGate()
    monkeypatch.setitem(PageGate.shuts_soon.__globals__, "INTERRUPT_S", 0.05)
    assert not gate.shuts_soon()
    gate.shut_now()
    assert gate.shuts_soon()
