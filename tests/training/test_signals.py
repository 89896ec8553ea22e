"""Stop requests: the state that they leave, and the errors that they raise."""

import signal
import threading

import pytest

from sigmoid_attention.training.signals import (
    REQUESTS,
    Interrupted,
    ending_later,
    interruptible,
    requests_ignored,
)


def test_an_error_that_an_interrupt_became_is_an_interrupt():
    """As of a module that is half imported: its C code makes another error of it."""
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise AttributeError("module has no attribute") from error
    assert caught.value.code == 143


def test_other_errors_stay_what_they_are():
    with pytest.raises(AttributeError), interruptible():
        raise AttributeError("a bug")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), ending_later() as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failure_of_the_work_does_not_lose_the_request():
    with pytest.raises(KeyboardInterrupt), ending_later():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the work")


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work():
        with ending_later():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("second", REQUESTS, ids=lambda number: number.name)
def test_a_second_request_after_the_work_is_ignored(second):
    before = [signal.getsignal(number) for number in REQUESTS]
    with requests_ignored():
        with pytest.raises(Interrupted), interruptible():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(second)
    assert [signal.getsignal(number) for number in REQUESTS] == before
