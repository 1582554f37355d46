from cdvft_server.service.lastknown import LastKnown


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_for_a_time_after_it_was_asked_for() -> None:
    clock = Clock()
    known = LastKnown[str, int](60.0, clock=clock)
    assert known.get("a") is None
    asked = known.ask()
    clock.now += 10  # the answer took long
    known.put("a", 1, asked)
    known.put("b", 2, known.ask())
    clock.now += 50
    assert (known.get("a"), known.get("b")) == (1, 2)
    clock.now += 0.1
    assert (known.get("a"), known.get("b")) == (None, 2)
    known.put("a", 3, known.ask())
    clock.now += 60
    assert (known.get("a"), known.get("b")) == (3, None)


def test_with_no_time_at_all() -> None:
    clock = Clock()
    known = LastKnown[str, int](0.0, clock=clock)
    known.put("a", 1, known.ask())
    clock.now += 0.001
    assert known.get("a") is None


def test_the_oldest_make_way_and_what_is_over_takes_no_room() -> None:
    clock = Clock()
    known = LastKnown[int, int](60.0, size=3, clock=clock)
    for key in range(5):
        known.put(key, key, known.ask())
    assert [known.get(key) for key in range(5)] == [None, None, 2, 3, 4]
    known.put(2, 7, known.ask())
    known.put(5, 5, known.ask())
    assert [known.get(key) for key in (2, 3, 4, 5)] == [7, None, 4, 5]
    clock.now += 61
    known.put(6, 6, known.ask())
    assert list(known._values) == [6]


def test_what_was_forgotten_does_not_come_back_with_a_late_answer() -> None:
    known = LastKnown[str, int](60.0)
    early = known.ask()
    known.put("a", 1, early)
    known.put("b", 2, known.ask())
    known.forget(lambda key, value: value == 1)
    assert (known.get("a"), known.get("b")) == (None, 2)
    known.put("a", 1, early)
    assert known.get("a") is None
    known.put("a", 3, known.ask())
    assert known.get("a") == 3
